"""The samples of a run: drawn again (digits) or read from the files that its settings name.

torch is not imported. A run's data is held in memory once asked for.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.runs import folder
from prism_lite.digits.wording import DigitsFacts
from prism_lite.types import Sample

if TYPE_CHECKING:
    from prism_lite.data.task import TaskData

SOURCES = {
    "SFT demonstrations": "sft",
    "alignment prompts": "align",
    "RLVR prompts": "rlvr",
    "held-out prompts": "heldout",
}
HELD_RUNS = 4
_READING = threading.Lock()  # two visitors do not read the same files twice


@dataclass(frozen=True)
class Row:
    """One sample as the browser lists it.

    Attributes:
        kind: the question's kind on digits, "" elsewhere.
        difficulty: number of digits in the picture; 0 where unknown.
        num_characters: of the question and whatever completion the row holds.
        slip: what is wrong with the demonstration ("caption", "think"), "" if nothing or unknown.
    """

    sample: Sample
    kind: str
    difficulty: int
    num_characters: int
    slip: str


def task_of(path: Path) -> TaskData:
    """The data of a run.

    Raises:
        ValueError: a data file of the run is missing or broken.
    """
    with _READING:
        return _task(path, (path / "config.yaml").stat().st_mtime_ns)


@functools.lru_cache(maxsize=HELD_RUNS)
def _task(path: Path, _changed_ns: int) -> TaskData:
    from prism_lite.data.task import load_task
    from prism_lite.recipe import parse_config

    config = folder.read_config(path)
    # Only what decides the data: an older run whose other settings have new names since stays readable.
    settings = {"data": config.get("data", {})}
    if "num_probe" in config.get("warmup", {}):
        settings["warmup"] = {"num_probe": config["warmup"]["num_probe"]}
    return load_task(parse_config(settings))


def samples_of(path: Path, source: str) -> Sequence[Sample]:
    """The samples of one of SOURCES.

    Raises:
        ValueError: as `task_of`, or no such source.
    """
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}: choose one of {', '.join(SOURCES)}.")
    return getattr(task_of(path), SOURCES[source])


def sample_by_id(path: Path, prompt_id: str) -> Sample | None:
    """The sample of a rollout record, or None where the data has it no more.

    A recording carries its own: the task's wordings may have changed since.
    """
    for line in folder.read_lines(path / "demo" / "samples.jsonl"):
        if line["id"] == prompt_id:
            return recorded_sample(line)
    task_of(path)
    return _by_id(path, (path / "config.yaml").stat().st_mtime_ns).get(prompt_id)


def sample_line(sample: Sample) -> dict[str, Any]:
    """What a recording keeps of a digits sample; pictures are named by their digits' indices."""
    return {
        "id": sample.id,
        "question": sample.question,
        "picture_ids": [picture.id for picture in sample.pictures],
        "answer": sample.answer,
        "teacher": sample.teacher,
    }


def recorded_sample(line: Mapping[str, Any]) -> Sample:
    """The sample of such a line; without facts, so its marks must be recorded too."""
    from prism_lite.digits.task import strip_image
    from prism_lite.types import Picture, Turn

    pictures = tuple(
        Picture(name, strip_image(tuple(map(int, name.split("-")[1:]))))
        for name in line["picture_ids"]
    )
    turns = (Turn("user", line["question"]),)
    return Sample(
        line["id"],
        turns,
        pictures,
        answer=line["answer"],
        teacher=line["teacher"],
        source="recording",
    )


@functools.lru_cache(maxsize=HELD_RUNS)
def _by_id(path: Path, changed_ns: int) -> dict[str, Sample]:
    task = _task(path, changed_ns)
    return {s.id: s for part in (task.sft, task.align, task.rlvr, task.heldout) for s in part}


@functools.lru_cache(maxsize=HELD_RUNS * len(SOURCES))
def _index(path: Path, source: str, _changed_ns: int) -> tuple[Row, ...]:
    return tuple(_row(sample) for sample in samples_of(path, source))


def filtered(
    path: Path, source: str, *, kind: str, difficulty: int, slips: str, longest: int
) -> list[Row]:
    """Rows of a source that pass every filter.

    Args:
        kind: "all" or a question kind.
        difficulty: number of digits, 0 for all.
        slips: "all", "clean" or "with a slip", of the demonstration.
        longest: most characters.
    """
    rows = _index(path, source, (path / "config.yaml").stat().st_mtime_ns)
    return [
        row
        for row in rows
        if kind in ("all", row.kind)
        and difficulty in (0, row.difficulty)
        and (slips == "all" or bool(row.slip) == (slips == "with a slip"))
        and row.num_characters <= longest
    ]


def _row(sample: Sample) -> Row:
    shown = sample.demonstration or sample.teacher or ""
    facts = sample.facts
    return Row(
        sample=sample,
        kind=facts.kind if isinstance(facts, DigitsFacts) else "",
        difficulty=len(facts.digits) if isinstance(facts, DigitsFacts) else 0,
        num_characters=len(sample.question) + len(shown),
        slip=slip_of(sample, sample.demonstration),
    )


def slip_of(sample: Sample, completion: str | None) -> str:
    """Which parts of a completion the digits task's verifiers find wrong, "" if none or unknown."""
    from prism_lite.digits import wording
    from prism_lite.parts import Parts, parse

    parts = parse(completion or "")
    if not isinstance(sample.facts, DigitsFacts) or not isinstance(parts, Parts):
        return ""
    verdict = wording.verify(sample.facts, parts)
    found = [
        name for name, ok in (("caption", verdict.caption), ("think", verdict.think)) if not ok
    ]
    return " and ".join(found)
