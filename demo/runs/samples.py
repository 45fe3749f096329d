"""The samples of a run: generated again (digits) or read from the files that its settings name.

They stay in memory once they are loaded. torch is not imported.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from demo.runs import folder
from prism_lite.digits import wording
from prism_lite.digits.task import strip_image
from prism_lite.digits.wording import DigitsFacts
from prism_lite.parts import Parts, parse
from prism_lite.types import Picture, Sample, Turn

if TYPE_CHECKING:
    from prism_lite.data.task import TaskData

# title -> attribute of TaskData
SOURCES = {
    "SFT demonstrations": "sft",
    "alignment prompts": "align",
    "RLVR prompts": "rlvr",
    "held-out prompts": "heldout",
    "transfer prompts": "transfer",
    "unseen pictures by training writers": "familiar",
}
ALL, CORRECT, WITH_ERRORS = "all", "correct", "with errors"
_CACHED_RUNS = 4
_LOADING = threading.Lock()  # two visitors must not load the same files twice


class Row(NamedTuple):
    """A sample with the properties that the Data tab filters by.

    Attributes:
        question_kind: "" if the task is not digits.
        num_digits: in the picture; 0 if the task is not digits.
        num_characters: of the question and the completion.
        errors: what is wrong in the demonstration ("caption", "think"), "" if nothing or unknown.
    """

    sample: Sample
    question_kind: str
    num_digits: int
    num_characters: int
    errors: str


def task_of(path: Path) -> TaskData:
    """Return the data of a run; raise a ValueError if one of its files is missing or broken."""
    with _LOADING:
        return _task(path, _changed_ns(path))


def samples_of(path: Path, source: str) -> Sequence[Sample]:
    """Return the samples of one of SOURCES."""
    return getattr(task_of(path), SOURCES[source])


def sample_by_id(path: Path, prompt_id: str) -> Sample | None:
    """Return the sample of a rollout record, or None if the data no longer contains it.

    A recording stores its own samples, because the wording of the task may have changed since.
    """
    for line in folder.read_lines(path / "demo" / "samples.jsonl"):
        if line["id"] == prompt_id:
            return recorded_sample(line)
    return _by_id(path, _changed_ns(path)).get(prompt_id)


def sample_line(sample: Sample) -> dict[str, Any]:
    """Return the fields of a digits sample that a recording stores."""
    return {
        "id": sample.id,
        "question": sample.question,
        "picture_ids": [picture.id for picture in sample.pictures],
        "answer": sample.answer,
        "teacher": sample.teacher,
        "facts": asdict(sample.facts) | {"digits": list(sample.facts.digits)},
    }


def recorded_sample(line: Mapping[str, Any]) -> Sample:
    """Return the sample of a recorded line."""
    # the id of a digits picture lists the indices of its digits
    pictures = tuple(
        Picture(name, strip_image(tuple(map(int, name.split("-")[1:]))))
        for name in line["picture_ids"]
    )
    turns = (Turn("user", line["question"]),)
    facts = DigitsFacts(**line["facts"] | {"digits": tuple(line["facts"]["digits"])})
    return Sample(
        line["id"], turns, pictures, answer=line["answer"], teacher=line["teacher"], facts=facts
    )


def filtered_rows(
    path: Path, source: str, question_kind: str, num_digits: str, errors: str, max_characters: float
) -> list[Row]:
    """Return the rows of a source that pass every filter of the Data tab (ALL passes any row)."""
    return [
        row
        for row in _rows(path, source, _changed_ns(path))
        if question_kind in (ALL, row.question_kind)
        and num_digits in (ALL, str(row.num_digits))
        and (errors == ALL or bool(row.errors) == (errors == WITH_ERRORS))
        and row.num_characters <= max_characters
    ]


def _changed_ns(path: Path) -> int:
    return (path / "config.yaml").stat().st_mtime_ns


@functools.lru_cache(maxsize=_CACHED_RUNS)
def _task(path: Path, _changed_ns: int) -> TaskData:
    from prism_lite.data.task import load_task
    from prism_lite.recipe import parse_config

    config = folder.read_config(path)
    # Only the settings that determine the data: others may have been renamed since an older run.
    settings = {"data": config.get("data", {})}
    if "num_probe" in config.get("warmup", {}):
        settings["warmup"] = {"num_probe": config["warmup"]["num_probe"]}
    return load_task(parse_config(settings))


@functools.lru_cache(maxsize=_CACHED_RUNS)
def _by_id(path: Path, _changed_ns: int) -> dict[str, Sample]:
    return {sample.id: sample for source in SOURCES for sample in samples_of(path, source)}


@functools.lru_cache(maxsize=_CACHED_RUNS * len(SOURCES))
def _rows(path: Path, source: str, _changed_ns: int) -> tuple[Row, ...]:
    return tuple(_row(sample) for sample in samples_of(path, source))


def _row(sample: Sample) -> Row:
    completion = sample.demonstration or sample.teacher or ""
    num_characters = len(sample.question) + len(completion)
    facts, parts = sample.facts, parse(sample.demonstration or "")
    if not isinstance(facts, DigitsFacts):
        return Row(sample, "", 0, num_characters, "")
    errors = ""
    if isinstance(parts, Parts):
        checked = wording.verify(facts, parts)
        names = [name for name in ("caption", "think") if not getattr(checked, name)]
        errors = " and ".join(names)
    return Row(sample, facts.kind, len(facts.digits), num_characters, errors)
