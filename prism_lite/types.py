"""The values that travel through the pipeline: frozen, small, without behaviour.

data -> Sample -> rollouts -> Group of Rollout -> scores, rewards, advantages -> losses.

Shape letters: C completion tokens of one rollout.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from PIL import Image

from prism_lite import parts
from prism_lite.parts import Malformed, Parts

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
FinishReason = Literal["end", "length"]


@dataclass(frozen=True)
class Picture:
    """One picture of a prompt, opened when it is needed.

    Attributes:
        id: names the content (a path or a hash): equal ids may share vision features.
        source: where the pixels are: a file, encoded bytes, or an image in memory.
        min_pixels, max_pixels: the row's own limits for the processor, or None.
    """

    id: str
    source: Path | bytes | Image.Image = field(repr=False)
    min_pixels: int | None = None
    max_pixels: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the file's header alone.

        Raises:
            ValueError: as `open`.
        """
        return self._read(lambda image: image.size)

    def open(self) -> Image.Image:
        """The pixels as an RGB image.

        Raises:
            ValueError: the file is missing or is not a readable picture; names the picture.
        """
        return self._read(lambda image: image.convert("RGB"))

    def _read(self, use: Callable[[Image.Image], T]) -> T:
        if isinstance(self.source, Image.Image):
            return use(self.source)
        stream = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        try:
            with Image.open(stream) as image:
                return use(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"cannot read picture {self.id}: {error}. Check that the path is right and the file is a "
                "picture that Pillow opens (`prism-lite data check` lists all such rows)."
            ) from error


@dataclass(frozen=True)
class Turn:
    """One message before the completion. `<image>` in the text fixes where a picture stands."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sample:
    """One row of data: a prompt and whatever is known about its completion.

    Attributes:
        id: unique within its file; the prompt id of rollout records and of sampling's seeds (rows of
            two files with the same id draw from the same random numbers).
        turns: the conversation up to the completion; usually one user turn.
        pictures: in the order of their `<image>` marks; without marks they stand before the first
            user turn's text.
        answer: gold answer that the accuracy reward compares with (RLVR, evaluation).
        accepted: further accepted forms of the answer.
        choices: option texts from A on of a multiple-choice question, as the data gives them.
        demonstration: completion to imitate (SFT).
        teacher: completion of the teacher (warm-up, alignment).
        student: completion of an earlier student, for warm-up on recorded pairs.
        facts: what a verifier of the task needs (the digits task: the digits and the question's kind).
        source: file and row, for error messages: two files of the same name look alike in it.
        file: path or hub id of the data file, as it was given; "" where none was read.
        row: number in that file, from 1.
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
    file: str = field(default="", compare=False)
    row: int = field(default=0, compare=False)

    @property
    def key(self) -> str:
        """Names the row among those of all files of a run: what dictionaries of rows are keyed by.

        The path is the given one, not the resolved one: a run whose folder moved finds its rows.
        """
        return f"{self.file}:{self.row}" if self.file else f"{self.source}:{self.id}"

    @property
    def question(self) -> str:
        """The text of the last user turn."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "user"), "")


@dataclass(frozen=True)
class Rollout:
    """One sampled completion with what was known when it was sampled.

    Attributes:
        token_ids: completion tokens; the end token is the last one where finish is "end".
        text: the decoded completion without the end token.
        parts: caption, think and answer, or why there are none.
        finish: "end" (the model stopped) or "length" (cut at the limit).
        sampling_logprob_C: float32 [C], natural log, of the sampled tokens under the distribution
            they were drawn from.
        sampling_entropy_C: float32 [C], nats, of those distributions.
    """

    token_ids: tuple[int, ...]
    text: str
    parts: Parts | Malformed
    finish: FinishReason
    sampling_logprob_C: Tensor = field(repr=False)
    sampling_entropy_C: Tensor = field(repr=False)

    @property
    def is_well_formed(self) -> bool:
        return isinstance(self.parts, Parts) and self.finish == "end"


@dataclass(frozen=True)
class Group:
    """The rollouts of one prompt."""

    sample: Sample
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True)
class ProbePair:
    """A prompt with clean parts and parts that differ from them in content only."""

    sample: Sample
    clean: Parts
    corrupted: Parts


POLICY_STAGES = ("sft", "align", "rlvr")


STAGE_ORDER = ("base", "sft", "align", "rlvr")


def students_of(group: Group) -> tuple[Parts, ...]:
    """The parts of a group's well-formed rollouts, in order."""
    return tuple(
        rollout.parts
        for rollout in group.rollouts
        if rollout.is_well_formed and isinstance(rollout.parts, Parts)
    )


def teacher_parts(sample: Sample) -> Parts:
    """The teacher's parts of a row.

    Raises:
        ValueError: there is no teacher completion, or it is malformed; names the row.
    """
    return _parts_of(sample, "teacher")


def _parts_of(sample: Sample, side: Literal["teacher", "student"]) -> Parts:
    found = parts.parse(getattr(sample, side) or "")
    if isinstance(found, Parts):
        return found
    raise ValueError(
        f"{sample.source or sample.id}: the {side} completion is malformed ({found.reason}). "
        "Expected <caption>..</caption><think>..</think><answer>..</answer>."
    )
