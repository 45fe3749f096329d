"""The models of a run: one backbone, the adapter of each stage switched on in turn.

The web process imports torch only here, in a thread, after the page is up.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from demo.models import MAX_GROUP_SIZE
from demo.models.routing import group_record
from demo.models.stream import sampled_tokens
from demo.runs import folder, samples
from prism_lite.config import RunConfig
from prism_lite.data.task import TaskData
from prism_lite.digits.base_model import tiny_base_folder
from prism_lite.discriminator.model import Discriminator, discriminator_for
from prism_lite.models.backbone import TRUNK, Backbone, load_backbone
from prism_lite.recipe import parse_config
from prism_lite.runs.checkpoint import load_final
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.types import Sample

MAX_COMPLETION_TOKENS = 2_048
STREAM_EVERY_S = 0.1


@dataclass(frozen=True)
class Answer:
    """A completion, or the part of it that has been sampled so far (finish_reason "")."""

    text: str
    num_tokens: int
    seconds: float
    finish_reason: str = ""


class Model:
    """A loaded run. Use one at a time, and ask it from one thread at a time."""

    def __init__(self, path: Path) -> None:
        config: RunConfig = parse_config(folder.read_config(path))
        base = config.model.name
        if base == "tiny":
            base = str(tiny_base_folder(config.tiny, config.data.digits))
            if not Path(base).is_dir():
                raise ValueError("its tiny base is not cached on this machine")
        logging.disable_progress_bar()
        self.path = path
        self.config = config
        self.stages = folder.stages_with_weights(path)
        self.backbone: Backbone = load_backbone(config.model, config.lora, base, seed=config.seed)
        self.task: TaskData = samples.task_of(path)
        self.device = self.backbone.device.type
        fresh = self.backbone.adapter_state()  # B = 0: the base itself
        self._policies: dict[str, Any] = {"base": fresh} | {
            stage: load_final(path / "stages" / stage)["policy"] for stage in self.stages[1:]
        }
        self.discriminator_stage = next(
            (s for s in ("align", "warmup") if (path / "stages" / s / "final").is_dir()), None
        )
        self._discriminator: Discriminator | None = None
        if self.device == "cpu" and config.model.name == "tiny":
            torch.set_num_threads(1)  # its products are too small to be worth sharing out

    @property
    def place(self) -> str:
        """The processor that answers, in words."""
        return "this CPU" if self.device == "cpu" else torch.cuda.get_device_name(0)

    def answer(
        self, stage: str, sample: Sample, *, seed: int, temperature: float
    ) -> Generator[Answer, None, None]:
        """Sample one completion of a stage's policy, yielding it as it grows; the last one is whole.

        The same seed gives the same text.
        """
        started_s = time.perf_counter()
        self.backbone.load_adapter_state(self._policies[stage])
        sampling = self.config.sampling
        limit = min(sampling.max_completion_tokens, MAX_COMPLETION_TOKENS)
        drawn = sampled_tokens(
            self.backbone,
            sample,
            sampling=dataclasses.replace(
                sampling, temperature=temperature, max_completion_tokens=limit
            ),
            seed=("demo", seed),
        )
        token_ids: list[int] = []
        next_s = 0.0
        for item in drawn:
            now_s = time.perf_counter() - started_s
            if not isinstance(item, int):
                yield Answer(item.text, len(item.token_ids), now_s, item.finish)
                continue
            token_ids.append(item)
            if now_s >= next_s:  # every token for itself would cost more than sampling it
                next_s = now_s + STREAM_EVERY_S
                yield Answer(self.backbone.tokenizer.decode(token_ids), len(token_ids), now_s)

    def group(self, sample: Sample, stage: str, *, group_size: int, seed: int) -> dict[str, Any]:
        """A group of a policy and the teacher, scored by the run's last discriminator.

        Returns:
            What `demo.routing.group_record` writes: the shape that recorded groups have.

        Raises:
            ValueError: there is no discriminator yet, or the size is out of bounds.
        """
        if self.discriminator_stage is None:
            raise ValueError(
                "this run has no trained discriminator yet: it comes with the warm-up."
            )
        if not 2 <= group_size <= MAX_GROUP_SIZE:
            raise ValueError(f"group size {group_size}: expected 2 to {MAX_GROUP_SIZE}.")
        backbone = self.backbone
        backbone.load_adapter_state(self._policies[stage])
        (group,) = sample_groups(
            backbone,
            [sample],
            group_size=group_size,
            sampling=self.config.sampling,
            seed=("demo", seed),
        )
        record = group_record(backbone, self._loaded_discriminator(), group, self.config)
        return record | {"policy": stage, "discriminator": self.discriminator_stage}

    def _loaded_discriminator(self) -> Discriminator:
        if self._discriminator is None:
            config = self.config.discriminator
            if config.trunk == "sft":
                self.backbone.load_adapter_state(self._policies["sft"], TRUNK)
            self._discriminator = discriminator_for(self.backbone, config, seed=self.config.seed)
            assert self.discriminator_stage is not None
            tensors: Any = load_final(self.path / "stages" / self.discriminator_stage)
            self._discriminator.load_state_dict(tensors["discriminator"])
            self._discriminator.requires_grad_(False)
        return self._discriminator
