"""The models of a run: one backbone, with the adapter of one stage active at a time.

The web process imports torch only here, in a thread, after the page is up.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from demo.models import MAX_GROUP_SIZE
from demo.models.routing import group_record
from demo.models.shares import rows_with_shares
from demo.runs import folder, game, samples
from prism_lite.config import RunConfig
from prism_lite.digits.base_model import tiny_base_folder
from prism_lite.discriminator.model import Discriminator, discriminator_for
from prism_lite.models.backbone import TRUNK, Backbone, load_backbone
from prism_lite.recipe import parse_config
from prism_lite.runs.checkpoint import load_final
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.types import Group, Rollout, Sample

_MAX_COMPLETION_TOKENS = 2_048
_STREAM_EVERY_S = 0.1


class _SamplingCanceled(BaseException):
    """Ends a sampling call from inside a hook; not an Exception, so that no handler catches it."""


@dataclass(frozen=True)
class Answer:
    """A completion, or the beginning that is sampled so far (finish_reason "")."""

    text: str
    num_tokens: int
    seconds: float
    finish_reason: str = ""


class Model:
    """A loaded run. Use it from one thread at a time."""

    def __init__(self, path: Path) -> None:
        config: RunConfig = parse_config(folder.read_config(path))
        base = config.model.name
        if base == "tiny":
            base = str(tiny_base_folder(config.tiny, config.data.digits))
            if not Path(base).is_dir():
                raise ValueError("its tiny base model is not cached on this machine")
        logging.disable_progress_bar()
        self.path = path
        self.config = config
        self.stages = folder.stages_with_weights(path)
        self.backbone: Backbone = load_backbone(config.model, config.lora, base, seed=config.seed)
        self.task = samples.task_of(path)
        self.device = self.backbone.device.type
        base_adapter = self.backbone.adapter_state()  # B = 0: the base model itself
        self._policies: dict[str, Any] = {"base": base_adapter} | {
            stage: load_final(path / "stages" / stage)["policy"] for stage in self.stages[1:]
        }
        self.discriminator_stage = next(
            (s for s in ("rlvr", "align", "warmup") if folder.has_discriminator(path, s)), None
        )
        self._discriminators: dict[str, Discriminator] = {}
        if self.device == "cpu" and config.model.name == "tiny":
            torch.set_num_threads(1)  # its products are too small to gain from more

    @property
    def place(self) -> str:
        """Name of the processor."""
        return "this CPU" if self.device == "cpu" else torch.cuda.get_device_name(0)

    def answer(
        self, stage: str, sample: Sample, *, seed: int, temperature: float
    ) -> Generator[Answer, None, None]:
        """Sample a completion of a stage's policy; yield it as it grows, at last complete.

        The same seed gives the same text.
        """
        started_s = time.perf_counter()
        max_tokens = min(self.config.sampling.max_completion_tokens, _MAX_COMPLETION_TOKENS)
        settings = {"temperature": temperature, "max_completion_tokens": max_tokens}
        token_ids: list[int] = []
        next_s = 0.0
        for item in self._stream(lambda: self._sample(stage, sample, 1, seed, **settings)):
            now_s = time.perf_counter() - started_s
            if isinstance(item, Rollout):
                yield Answer(item.text, len(item.token_ids), now_s, item.finish)
                continue
            token_ids.append(item)
            if now_s >= next_s:  # sending every token would cost more than sampling it
                next_s = now_s + _STREAM_EVERY_S
                yield Answer(self.backbone.tokenizer.decode(token_ids), len(token_ids), now_s)

    def group(self, sample: Sample, stage: str, *, group_size: int, seed: int) -> dict[str, Any]:
        """Sample a group and score it, and the teacher, with the run's last discriminator.

        Returns:
            The record of `routing.group_record`, as in `demo/groups.jsonl` of a recording.

        Raises:
            ValueError: the run has no discriminator yet, or the group size is out of range.
        """
        discriminator = self._loaded_discriminator()
        if not 2 <= group_size <= MAX_GROUP_SIZE:
            raise ValueError(f"group size {group_size}: expected 2 to {MAX_GROUP_SIZE}.")
        group = self._sample(stage, sample, group_size, seed)
        record = group_record(self.backbone, discriminator, group, self.config)
        return record | {"policy": stage, "discriminator": self.discriminator_stage}

    def play(self, step: game.Step) -> dict[str, Any]:
        """Add the scores and the token shares of the discriminator at the end of alignment to a step."""
        completions = game.completions_to_score(step)
        sample = samples.sample_by_id(self.path, step["prompt_id"])
        played = dict(step)
        if sample is None or not completions:
            return played
        rows = rows_with_shares(
            self.backbone, self._loaded_discriminator("align"), sample, completions
        )
        for who, row in zip(("teacher", "sample"), rows, strict=False):
            played[who] = step[who] | row
        return played

    def rollouts(
        self, stage: str, sampled: Sequence[Sample], *, seed: int, temperature: float
    ) -> list[Rollout]:
        """Sample one completion for each of many samples, as `answer` does for one."""
        groups = self._sample_all(stage, sampled, 1, seed, temperature=temperature)
        return [group.rollouts[0] for group in groups]

    def _sample(
        self, stage: str, sample: Sample, group_size: int, seed: int, **settings: Any
    ) -> Group:
        (group,) = self._sample_all(stage, [sample], group_size, seed, **settings)
        return group

    def _sample_all(
        self, stage: str, sampled: Sequence[Sample], group_size: int, seed: int, **settings: Any
    ) -> list[Group]:
        self.backbone.load_adapter_state(self._policies[stage])
        return sample_groups(
            self.backbone,
            sampled,
            group_size=group_size,
            sampling=dataclasses.replace(self.config.sampling, **settings),
            seed=("demo", seed),
        )

    def _stream(self, sample_group: Callable[[], Group]) -> Generator[int | Rollout, None, None]:
        """Yield the tokens of a completion as they are sampled, and the rollout at the end.

        A hook sees each token when it enters the decoder, so the last token is missing. Closing the
        generator stops the sampling before the next token and waits until it has stopped.
        """
        tokens: queue.Queue[int | None] = queue.Queue()
        is_canceled = threading.Event()
        rollouts: list[Rollout] = []
        errors: list[ValueError | RuntimeError] = []

        def watch(_module: Any, inputs: tuple[Any, ...]) -> None:
            if is_canceled.is_set():
                raise _SamplingCanceled
            if inputs[0].numel() == 1:  # the prompt has more
                tokens.put(int(inputs[0]))

        def work() -> None:
            handle = self.backbone.core.get_input_embeddings().register_forward_pre_hook(watch)
            try:
                rollouts.extend(sample_group().rollouts)
            except (ValueError, RuntimeError) as error:  # raised again in the caller's thread
                errors.append(error)
            except _SamplingCanceled:
                pass
            finally:
                handle.remove()
                tokens.put(None)

        worker = threading.Thread(target=work, name="sampling", daemon=True)
        worker.start()
        try:
            while (token := tokens.get()) is not None:
                yield token
        finally:
            is_canceled.set()
            worker.join()
        if errors:
            raise errors[0]
        yield rollouts[0]

    def _loaded_discriminator(self, stage: str | None = None) -> Discriminator:
        """Return the discriminator at the end of a stage, by default the last one that trained it."""
        stage = stage or self.discriminator_stage
        if stage is None:
            raise ValueError("this run has no discriminator yet: the warm-up stage trains it.")
        if stage not in self._discriminators:
            config = self.config.discriminator
            if config.trunk == "sft":
                self.backbone.load_adapter_state(self._policies["sft"], TRUNK)
            discriminator = discriminator_for(self.backbone, config, seed=self.config.seed)
            tensors: Any = load_final(self.path / "stages" / stage)
            discriminator.load_state_dict(tensors["discriminator"])
            self._discriminators[stage] = discriminator.requires_grad_(False)
        return self._discriminators[stage]
