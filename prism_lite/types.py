"""The values that the stages pass to each other: frozen and small.

data -> Sample -> rollouts -> Group of Rollout -> scores, rewards, advantages -> losses.

Shape letters: C completion tokens of one rollout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prism_lite import parts
from prism_lite.parts import Malformed, Parts

if TYPE_CHECKING:  # `prism-lite --help` does not wait for them
    from PIL import Image
    from torch import Tensor

FinishReason = Literal["end", "length"]
Stage = Literal["sft", "control", "warmup", "align", "rlvr"]

# All stages in order; those that change the policy; those that are evaluated. "control" is RLVR alone,
# which a run trains beside the others where `rlvr.control` is set.
STAGES: tuple[Stage, ...] = ("sft", "warmup", "align", "rlvr")
POLICY_STAGES: tuple[Literal["sft", "align", "rlvr"], ...] = ("sft", "align", "rlvr")
EVALUATED_STAGES: tuple[Literal["base", "sft", "control", "align", "rlvr"], ...] = (
    "base",
    "sft",
    "control",
    "align",
    "rlvr",
)


class Stopped(Exception):  # noqa: N818 - not an error: the user asked for it
    """The run was asked to stop and has saved; running the same command again resumes it."""


class NotFiniteError(RuntimeError):
    """A step met NaN or infinity: in its gradient, in scores or in logits. Nothing of it was kept."""


@dataclass(frozen=True)
class Picture:
    """One picture of a prompt, opened when it is needed.

    Attributes:
        id: names the content (a path or a hash): equal ids may share vision features.
        source: a file, encoded bytes, or an image in memory.
        min_pixels, max_pixels: the row's own limits for the processor, or None.
    """

    id: str
    source: Path | bytes | Image.Image = field(repr=False)
    min_pixels: int | None = None
    max_pixels: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels as `open` returns it, from the file's header alone.

        Raises:
            ValueError: as `open`.
        """
        from prism_lite.pixels import read_size

        return read_size(self.source, self.id)

    def open(self) -> Image.Image:
        """Return the pixels as an upright RGB image, transparent pixels white (see `pixels`).

        Raises:
            ValueError: the file is missing or is not a readable picture; names the picture.
        """
        from prism_lite.pixels import read_rgb

        return read_rgb(self.source, self.id)


@dataclass(frozen=True)
class Turn:
    """One message before the completion. `<image>` in the text marks the place of a picture."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sample:
    """One row of data: a prompt and what is known about its completion.

    Attributes:
        id: unique within its file (an id that repeats there gets the row's number); the prompt id of
            rollout records and of sampling's seeds (two rows with the same id in different files are
            sampled with the same random numbers).
        turns: the conversation up to the completion; usually one user turn.
        pictures: in the order of their `<image>` marks; without marks they precede the first user
            turn's text.
        answer: gold answer that the accuracy reward compares with (RLVR, evaluation).
        accepted: further accepted forms of the answer.
        choices: option texts from A on of a multiple-choice question, as the data gives them.
        demonstration: completion to imitate (SFT).
        teacher: completion of the teacher (warm-up, alignment).
        other_teachers: its further completions of the same prompt; see `with_teacher`.
        student: completion of an earlier student, for warm-up on recorded pairs.
        facts: what a verifier of the task needs (the digits task: the digits and the question's kind).
        source: file name and row, for error messages; not unique, as it has no folder.
        file: path or hub id of the data file, as the user gave it; "" where none was read.
        row: number in that file, from 1.
        columns: the fields of the row as stored, without pictures, for the user's reward functions.
    """

    id: str
    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...] = ()
    answer: str | None = None
    demonstration: str | None = None
    teacher: str | None = None
    student: str | None = None
    facts: Any = None
    source: str = ""
    accepted: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    other_teachers: tuple[str, ...] = ()
    file: str = field(default="", compare=False)
    row: int = field(default=0, compare=False)
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> str:
        """A name that is unique among the rows of all files of a run: the key of dictionaries.

        It has the path as the user gave it, so that rows are found after a folder has moved.
        """
        return f"{self.file}:{self.row}" if self.file else f"{self.source}:{self.id}"

    @property
    def question(self) -> str:
        """The text of the last user turn."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "user"), "")

    @property
    def teachers(self) -> tuple[str, ...]:
        """All completions of the teacher; () where there is none."""
        return () if self.teacher is None else (self.teacher, *self.other_teachers)

    def with_teacher(self, number: int) -> Sample:
        """Return the sample with this one of its teacher completions first; numbers wrap around."""
        if not self.other_teachers:
            return self
        first = number % len(self.teachers)
        teacher, *others = self.teachers[first:] + self.teachers[:first]
        return dataclasses.replace(self, teacher=teacher, other_teachers=tuple(others))

    @property
    def teacher_parts(self) -> Parts:
        """The teacher's parts.

        Raises:
            ValueError: the teacher completion is missing or malformed; names the row.
        """
        return self._parts_of("teacher")

    @property
    def student_parts(self) -> Parts:
        """The recorded student's parts.

        Raises:
            ValueError: as `teacher_parts`.
        """
        return self._parts_of("student")

    def with_system_prompt(self, text: str) -> Sample:
        """Return the sample with this system turn unless it has one; "" adds none."""
        if not text or any(turn.role == "system" for turn in self.turns):
            return self
        return dataclasses.replace(self, turns=(Turn("system", text), *self.turns))

    def _parts_of(self, side: Literal["teacher", "student"]) -> Parts:
        parsed = parts.parse(getattr(self, side) or "")
        if isinstance(parsed, Parts):
            return parsed
        raise ValueError(
            f"{self.source or self.id}: the {side} completion is malformed ({parsed.reason}). "
            "Expected <caption>..</caption><think>..</think><answer>..</answer>."
        )


@dataclass(frozen=True)
class Rollout:
    """One sampled completion and what sampling recorded about it.

    Attributes:
        token_ids: completion tokens; the end token is the last one where finish is "end".
        text: the decoded completion without the end token.
        parts: caption, think and answer, or why there are none.
        finish: "end" (the model stopped) or "length" (truncated at the limit).
        sampling_logprob_C: float32 [C], natural log, of the sampled tokens under the distribution
            that they were sampled from.
        sampling_entropy_C: float32 [C], nats, of those distributions.
        is_teacher: the teacher's completion in the place of a rollout (`rlvr.teacher_rollout`).
    """

    token_ids: tuple[int, ...]
    text: str
    parts: Parts | Malformed
    finish: FinishReason
    sampling_logprob_C: Tensor = field(repr=False)
    sampling_entropy_C: Tensor = field(repr=False)
    is_teacher: bool = False

    @property
    def is_well_formed(self) -> bool:
        return isinstance(self.parts, Parts) and self.finish == "end"


@dataclass(frozen=True)
class Group:
    """The rollouts of one prompt."""

    sample: Sample
    rollouts: tuple[Rollout, ...]

    @property
    def students(self) -> tuple[Parts, ...]:
        """The parts of the well-formed rollouts, in order."""
        return tuple(
            rollout.parts
            for rollout in self.rollouts
            if rollout.finish == "end" and isinstance(rollout.parts, Parts)
        )


@dataclass(frozen=True)
class ProbePair:
    """A prompt with clean parts and parts that differ from them in content only."""

    sample: Sample
    clean: Parts
    corrupted: Parts
