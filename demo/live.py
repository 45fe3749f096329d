"""The models of a run, asked live: one backbone, the adapter of each stage switched on in turn.

The web process imports torch only here, in a thread, after the page is up. One model is held at a time
and asked by one visitor at a time.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo import folder, rows
from prism_lite.types import Sample

if TYPE_CHECKING:
    from prism_lite.data.task import TaskData
    from prism_lite.models.backbone import Backbone

MAX_QUESTION_CHARACTERS = 2_000
MAX_GROUP_SIZE = 16
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
        from transformers.utils import logging

        from prism_lite.checkpoint import load_final
        from prism_lite.config import RunConfig
        from prism_lite.models.backbone import load_backbone
        from prism_lite.recipe import parse_config
        from prism_lite.stages.base import tiny_base_folder

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
        self.task: TaskData = rows.task_of(path)
        self.device = str(self.backbone.device)
        fresh = self.backbone.adapter_state()  # B = 0: the base itself
        self._policies: dict[str, Any] = {"base": fresh} | {
            stage: load_final(path / "stages" / stage)["policy"] for stage in self.stages[1:]
        }
        self.discriminator_stage = next(
            (s for s in ("align", "warmup") if (path / "stages" / s / "final").is_dir()), None
        )
        self._discriminator: Any = None
        if self.device == "cpu" and config.model.name == "tiny":
            import torch

            torch.set_num_threads(1)  # its products are too small to be worth sharing out

    def answer(
        self, stage: str, sample: Sample, *, seed: int, temperature: float
    ) -> Iterator[Answer]:
        """Sample one completion of a stage's policy, yielding it as it grows; the last one is whole.

        The same seed gives the same text. Tokens are seen on their way into the decoder, so sampling
        itself is the one that training uses.
        """
        from prism_lite.rollouts import sample_groups

        backbone = self.backbone
        backbone.load_adapter_state(self._policies[stage])
        sampling = dataclasses.replace(
            self.config.sampling,
            temperature=temperature,
            max_completion_tokens=min(
                self.config.sampling.max_completion_tokens, MAX_COMPLETION_TOKENS
            ),
        )
        seen: queue.Queue[int | None] = queue.Queue()

        def watch(_module: Any, inputs: tuple[Any, ...]) -> None:
            if inputs and inputs[0].numel() == 1:
                seen.put(int(inputs[0]))

        found: list[Any] = []

        def work() -> None:
            handle = backbone.core.get_input_embeddings().register_forward_pre_hook(watch)
            try:
                found.extend(
                    sample_groups(
                        backbone,
                        [sample],
                        group_size=1,
                        sampling=sampling,
                        system_prompt=self.task.system_prompt,
                        seed=("demo", seed),
                    )
                )
            finally:
                handle.remove()
                seen.put(None)

        started_s = time.perf_counter()
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        token_ids: list[int] = []
        next_s = 0.0
        while (token := seen.get()) is not None:
            token_ids.append(token)
            now_s = time.perf_counter() - started_s
            if now_s >= next_s:  # every token for itself would cost more than sampling it
                next_s = now_s + STREAM_EVERY_S
                yield Answer(backbone.tokenizer.decode(token_ids), len(token_ids), now_s)
        worker.join()
        if not found:
            raise RuntimeError("sampling failed; the terminal that runs the demo shows why.")
        rollout = found[0].rollouts[0]
        seconds = time.perf_counter() - started_s
        yield Answer(rollout.text, len(rollout.token_ids), seconds, rollout.finish)

    def group(self, sample: Sample, stage: str, *, group_size: int, seed: int) -> dict[str, Any]:
        """A group of a policy and the teacher, scored by the run's last discriminator.

        Returns:
            What `demo.routing.group_record` writes: the shape that recorded groups have.
        """
        from demo.routing import group_record
        from prism_lite.rollouts import sample_groups

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
            system_prompt=self.task.system_prompt,
            seed=("demo", seed),
        )
        record = group_record(
            backbone, self._loaded_discriminator(), group, self.task.system_prompt, self.config
        )
        return record | {"policy": stage, "discriminator": self.discriminator_stage}

    def _loaded_discriminator(self) -> Any:
        from prism_lite.checkpoint import load_final
        from prism_lite.models.backbone import TRUNK
        from prism_lite.models.discriminator import Discriminator

        if self._discriminator is None:
            config = self.config.discriminator
            if config.trunk == "sft":
                self.backbone.load_adapter_state(self._policies["sft"], TRUNK)
            self._discriminator = Discriminator(self.backbone, config, seed=self.config.seed)
            assert self.discriminator_stage is not None
            tensors = load_final(self.path / "stages" / self.discriminator_stage)
            self._discriminator.load_state_dict(tensors["discriminator"])
            self._discriminator.requires_grad_(False)
        return self._discriminator


@dataclass(frozen=True)
class Readiness:
    """Whether a run can be asked live.

    Attributes:
        kind: "recorded", "loading", "tiny" or "live".
        detail: why, in a few words.
    """

    kind: str
    detail: str


class Models:
    """Keeps at most one run loaded; loading goes on in a thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held by whoever asks the model
        self._state_lock = threading.Lock()
        self._path: Path | None = None
        self._finals: tuple[str, ...] = ()
        self._model: Model | None = None
        self._problem = ""

    def readiness(self, path: Path) -> Readiness:
        """What the badge says; asks nothing of the disk but which weights there are."""
        name = folder.read_config(path).get("model", {}).get("name", "tiny")
        if len(folder.stages_with_weights(path)) == 1:
            return Readiness("recorded", "no weights here: recorded completions, no GPU needed")
        with self._state_lock:
            if self._path != path:
                return Readiness("recorded", "its model is not loaded")
            if self._problem:
                return Readiness("recorded", self._problem)
            if self._model is None:
                return Readiness("loading", "the model is on its way")
            if name == "tiny":
                return Readiness("tiny", "answers on this CPU, trained in this run")
            return Readiness("live", f"{name} on {self._model.device}")

    def prepare(self, path: Path) -> None:
        """Begin to load a run's model, unless it is loaded or cannot be."""
        finals = folder.stages_with_weights(path)
        if len(finals) == 1:
            return
        with self._state_lock:
            if (self._path, self._finals) == (path, finals):
                return
            self._path, self._finals, self._model, self._problem = path, finals, None, ""
        threading.Thread(target=self._load, args=(path,), daemon=True).start()

    def get(self, path: Path) -> Model | None:
        """The loaded model of this run, or None."""
        with self._state_lock:
            return self._model if self._path == path else None

    def _load(self, path: Path) -> None:
        model, problem = None, ""
        try:
            with self.lock:
                model = Model(path)
        except (ValueError, RuntimeError, OSError) as error:
            problem = str(error).splitlines()[0]
        with self._state_lock:
            if self._path == path:
                self._model, self._problem = model, problem


def sample_for(
    question: str, picture: Any, *, digits: Sequence[int] = (), pivot: int = 5, kind: str = ""
) -> Sample:
    """A Sample of a person's own question.

    Args:
        question: at most MAX_QUESTION_CHARACTERS.
        picture: a PIL image, RGB.
        digits: what the person says the picture shows; with `kind` it makes the answer verifiable.

    Raises:
        ValueError: the question is empty or too long.
    """
    import hashlib

    from prism_lite.data import wording
    from prism_lite.types import Picture, Turn

    question = question.strip()
    if not 0 < len(question) <= MAX_QUESTION_CHARACTERS:
        raise ValueError(
            f"the question has {len(question)} characters: expected 1 to {MAX_QUESTION_CHARACTERS}."
        )
    digest = hashlib.sha256(picture.tobytes() + str(picture.size).encode()).hexdigest()[:24]
    facts = answer = None
    if digits and kind:
        facts = wording.DigitsFacts(tuple(digits), kind, pivot)
        answer = wording.answer_text(facts, wording.steps(facts.digits, facts))
    return Sample(
        id=f"{digest}-{hashlib.sha256(question.encode()).hexdigest()[:12]}",
        turns=(Turn("user", question),),
        pictures=(Picture(digest, picture),),
        answer=answer,
        facts=facts,
        source="a visitor's question",
    )
