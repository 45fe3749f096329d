"""The data of a run: samples for each stage, and what can be verified about completions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from rich.console import Console

from prism_lite import parts
from prism_lite.config import DataConfig, RunConfig
from prism_lite.data.checks.rules import Stage
from prism_lite.data.stage_rows import (
    SkippedRow,
    StoredFile,
    describe_skipped,
    needed_by,
    read_file,
    rows_for,
)
from prism_lite.digits import lessons, wording
from prism_lite.digits import task as digits
from prism_lite.digits.wording import Verdict
from prism_lite.parts import Parts
from prism_lite.types import ProbePair, Sample


@dataclass(frozen=True)
class TaskData:
    """What the stages read.

    Attributes:
        sft, align, rlvr: rows with a demonstration, a teacher completion, an answer.
        heldout: evaluation rows; empty where none were given.
        probe: held-out pairs for the grounding probe.
        verify: judges caption, think and answer apart, where the task can; else None.
        warmup: rows with a recorded student beside the teacher; empty where none were given.
        skipped: rows that were left out.
    """

    sft: tuple[Sample, ...]
    align: tuple[Sample, ...]
    rlvr: tuple[Sample, ...]
    heldout: tuple[Sample, ...]
    probe: tuple[ProbePair, ...]
    verify: Callable[[Sample, Parts], Verdict] | None
    warmup: tuple[Sample, ...] = ()
    skipped: tuple[SkippedRow, ...] = ()


def load_task(
    config: RunConfig, *, console: Console | None = None, stamps: Path | None = None
) -> TaskData:
    """Draw or read the samples of a run; each file is read once, whatever stages need it.

    Args:
        console: is told of slow files and of rows that were left out.
        stamps: see `row_files.read_file`.

    Raises:
        ValueError: a file is missing, empty or holds a broken row; names file and row.
    """
    if config.data.task == "digits":
        task = _digits(config)
    else:
        task = _files(config, console=console, stamps=stamps)
    return _with_system_prompt(task, system_prompt_of(config))


def load_heldout(config: RunConfig, *, console: Console | None = None) -> TaskData:
    """The task with its held-out rows alone: no other file is read.

    Raises:
        ValueError: as `load_task`.
    """
    if config.data.task == "digits":
        heldout, verify, skipped = _digits_heldout(config), _verify_digits, ()
    else:
        rows, verify = _Rows(config.data, console), None
        heldout, skipped = rows.of("heldout", "eval"), rows.skipped()
    task = TaskData(
        sft=(),
        align=(),
        rlvr=(),
        heldout=heldout,
        probe=(),
        verify=verify,
        skipped=skipped,
    )
    return _with_system_prompt(task, system_prompt_of(config))


def system_prompt_of(config: RunConfig) -> str:
    """Return the system turn of every prompt without one of its own; read no file."""
    default = lessons.INSTRUCTION if config.data.task == "digits" else parts.SYSTEM_PROMPT
    return default if config.data.system_prompt is None else config.data.system_prompt


def _with_system_prompt(task: TaskData, text: str) -> TaskData:
    """Give every sample without a system turn of its own this one."""

    def with_text(samples: Iterable[Sample]) -> tuple[Sample, ...]:
        return tuple(sample.with_system_prompt(text) for sample in samples)

    return dataclasses.replace(
        task,
        sft=with_text(task.sft),
        align=with_text(task.align),
        rlvr=with_text(task.rlvr),
        heldout=with_text(task.heldout),
        probe=tuple(
            dataclasses.replace(pair, sample=pair.sample.with_system_prompt(text))
            for pair in task.probe
        ),
        warmup=with_text(task.warmup),
    )


def all_samples(task: TaskData) -> Iterator[Sample]:
    """Every sample of a task; one that several stages read comes several times."""
    yield from (*task.sft, *task.warmup, *task.align, *task.rlvr, *task.heldout)
    yield from (pair.sample for pair in task.probe)


def without_samples(task: TaskData, bad: Collection[str]) -> TaskData:
    """The task without the samples of these keys."""

    def is_good(sample: Sample) -> bool:
        return sample.key not in bad

    return dataclasses.replace(
        task,
        sft=tuple(filter(is_good, task.sft)),
        align=tuple(filter(is_good, task.align)),
        rlvr=tuple(filter(is_good, task.rlvr)),
        heldout=tuple(filter(is_good, task.heldout)),
        probe=tuple(pair for pair in task.probe if is_good(pair.sample)),
        warmup=tuple(filter(is_good, task.warmup)),
    )


def _digits(config: RunConfig) -> TaskData:
    data = config.data
    sft, align, rlvr = (
        tuple(digits.make_samples(data.digits, split="train", num=num, seed=name))
        for name, num in (
            ("sft", data.num_sft),
            ("align", data.num_align),
            ("rlvr", data.num_rlvr),
        )
    )
    rng = Random("probe")
    probe = []
    for sample in digits.make_samples(
        data.digits, split="heldout", num=config.warmup.num_probe, seed="probe"
    ):
        clean = digits.clean_teacher(sample, rng)
        probe.append(ProbePair(sample, clean, digits.corrupt(sample, clean, rng)))
    return TaskData(
        sft=sft,
        align=align,
        rlvr=rlvr,
        heldout=_digits_heldout(config),
        probe=tuple(probe),
        verify=_verify_digits,
    )


def _digits_heldout(config: RunConfig) -> tuple[Sample, ...]:
    data = config.data
    return tuple(
        digits.make_samples(data.digits, split="heldout", num=data.num_heldout, seed="evaluation")
    )


def _verify_digits(sample: Sample, found: Parts) -> Verdict:
    return wording.verify(sample.facts, found)


def _files(config: RunConfig, *, console: Console | None, stamps: Path | None) -> TaskData:
    """Rows from files or hub ids; a row that cannot be used is an error that names it."""
    data = config.data
    if data.train is None:
        raise ValueError("data.train is not set: name the file (or hub id) with the training rows.")
    rows = _Rows(data, console, stamps)
    sft = rows.of("train", "sft") if config.sft.steps else ()
    warmup = rows.of("warmup", "warmup")
    align = rows.of("align", "align")
    rlvr = rows.of("rlvr", "rlvr")
    heldout = rows.of("heldout", "eval")
    num_probe = min(config.warmup.num_probe, len(align) // 10)
    align, judged = align[: len(align) - num_probe], align[len(align) - num_probe :]
    return TaskData(
        sft=sft,
        align=align,
        rlvr=rlvr,
        heldout=heldout,
        probe=_mismatched_probe(judged),
        verify=None,
        warmup=warmup,
        skipped=rows.skipped(),
    )


class _Rows:
    """The rows of each setting of `data`; a file that several of them name is read once."""

    def __init__(
        self, data: DataConfig, console: Console | None = None, stamps: Path | None = None
    ) -> None:
        self._data, self._console, self._stamps = data, console, stamps
        self._stored: dict[str, StoredFile] = {}
        self._skipped: dict[SkippedRow, None] = {}

    def of(
        self, setting: Literal["train", "warmup", "align", "rlvr", "heldout"], stage: Stage
    ) -> tuple[Sample, ...]:
        """The rows for a stage of `data.<setting>`; of `data.train` where align or rlvr have none.

        Raises:
            ValueError: a row is bad, where that is an error; or the file holds none for the stage.
        """
        own = getattr(self._data, setting)
        path = own or (self._data.train if setting in ("align", "rlvr") else None)
        if path is None:
            return ()
        if path not in self._stored:
            self._stored[path] = read_file(
                self._data, path, console=self._console, stamps=self._stamps
            )
        samples, skipped = rows_for(self._data, self._stored[path], stage)
        fresh = [row for row in skipped if row not in self._skipped]
        self._skipped |= dict.fromkeys(fresh)
        if fresh and self._console:
            self._console.print(f"{path}: {describe_skipped(fresh)}", markup=False, highlight=False)
        if not samples and own is not None:
            raise ValueError(_no_rows(self._stored[path], stage, skipped))
        return samples

    def skipped(self) -> tuple[SkippedRow, ...]:
        """Rows left out so far, each once."""
        return tuple(self._skipped)


def _no_rows(stored: StoredFile, stage: Stage, skipped: Sequence[SkippedRow]) -> str:
    left_out = f" {len(skipped)} rows were skipped: {skipped[0].message}" if skipped else ""
    return (
        f"{stored.path}: no row has a {needed_by(stage)}, which stage {stage} needs.{left_out} "
        f"Detected format: {stored.convention}; name the columns with data.columns, or check the "
        "file with `prism-lite data check`."
    )


def _mismatched_probe(samples: Sequence[Sample]) -> tuple[ProbePair, ...]:
    """Teacher parts against those of the next row: content wrong for the picture, form the same."""
    found = [(sample, parts.parse(sample.teacher or "")) for sample in samples]
    good = [(sample, teacher) for sample, teacher in found if isinstance(teacher, Parts)]
    others = good[1:] + good[:1]
    return tuple(
        ProbePair(sample, clean, other)
        for (sample, clean), (_, other) in zip(good, others, strict=True)
        if other != clean
    )
