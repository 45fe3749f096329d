"""The data of a run: samples for each stage, and what can be verified about completions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from prism_lite import parts
from prism_lite.config import RunConfig
from prism_lite.data import digits, digits_base, wording
from prism_lite.data.doctor import clean_samples
from prism_lite.data.doctor_rules import CheckRules, Stage
from prism_lite.data.formats import load_samples
from prism_lite.data.wording import Verdict
from prism_lite.parts import Parts
from prism_lite.types import Sample


@dataclass(frozen=True)
class ProbePair:
    """A prompt with clean parts and parts that differ from them in content only."""

    sample: Sample
    clean: Parts
    corrupted: Parts


@dataclass(frozen=True)
class TaskData:
    """What the stages read.

    Attributes:
        sft, align, rlvr: rows with a demonstration, a teacher completion, an answer.
        heldout: evaluation rows; empty where none were given.
        probe: held-out pairs for the grounding probe.
        system_prompt: in front of every prompt without one of its own.
        verify: judges caption, think and answer apart, where the task can; else None.
        warmup: rows with a recorded student beside the teacher; empty where none were given.
    """

    sft: tuple[Sample, ...]
    align: tuple[Sample, ...]
    rlvr: tuple[Sample, ...]
    heldout: tuple[Sample, ...]
    probe: tuple[ProbePair, ...]
    system_prompt: str
    verify: Callable[[Sample, Parts], Verdict] | None
    warmup: tuple[Sample, ...] = ()


def load_task(config: RunConfig) -> TaskData:
    """Draw or read the samples of a run.

    Raises:
        ValueError: a file is missing, empty or holds a broken row; names file and row.
    """
    return _digits(config) if config.data.task == "digits" else _files(config)


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
    heldout = digits.make_samples(
        data.digits, split="heldout", num=data.num_heldout, seed="evaluation"
    )
    rng = Random("probe")
    probe = []
    for sample in digits.make_samples(
        data.digits, split="heldout", num=config.warmup.num_probe, seed="probe"
    ):
        clean = digits.clean_teacher(sample, data.digits, rng)
        probe.append(ProbePair(sample, clean, digits.corrupt(sample, clean, rng)))
    return TaskData(
        sft=sft,
        align=align,
        rlvr=rlvr,
        heldout=tuple(heldout),
        probe=tuple(probe),
        system_prompt=_system_prompt(config, digits_base.INSTRUCTION),
        verify=lambda sample, found: wording.verify(sample.facts, found),
    )


def _files(config: RunConfig) -> TaskData:
    """Rows from files or hub ids; a row that cannot be used is an error that names it."""
    data = config.data
    if data.train is None:
        raise ValueError("data.train is not set: name the file (or hub id) with the training rows.")
    sft = read_rows(config, data.train, "sft") if config.sft.steps else ()
    warmup = read_rows(config, data.warmup, "warmup") if data.warmup else ()
    align = read_rows(config, data.align or data.train, "align")
    rlvr = read_rows(config, data.rlvr or data.train, "rlvr")
    heldout = read_rows(config, data.heldout, "eval") if data.heldout else ()
    num_probe = min(config.warmup.num_probe, len(align) // 10)
    align, judged = align[: len(align) - num_probe], align[len(align) - num_probe :]
    return TaskData(
        sft=sft,
        align=align,
        rlvr=rlvr,
        heldout=heldout,
        probe=_mismatched_probe(judged),
        system_prompt=_system_prompt(config),
        verify=None,
        warmup=warmup,
    )


def read_rows(config: RunConfig, path: str, stage: Stage) -> tuple[Sample, ...]:
    """The rows of a file that hold what a stage needs; rows meant for other stages are passed.

    A row that the stage would refuse (a malformed teacher, say) is an error or is skipped, now.
    """
    data = config.data
    opened = load_samples(
        path, columns=data.columns or None, image_root=data.image_root, on_bad_row=data.on_bad_row
    )
    needed = {"sft": "demonstration", "warmup": "student", "align": "teacher"}.get(stage, "answer")
    samples = tuple(
        sample
        for sample in clean_samples(opened, CheckRules(stage=stage, rows_of_other_stages=True))
        if getattr(sample, needed)
    )
    if opened.skipped:
        print(f"{path}: skipped {opened.skipped.total()} bad rows ({dict(opened.skipped)})")
    own = {
        "sft": data.train,
        "warmup": data.warmup,
        "align": data.align,
        "rlvr": data.rlvr,
        "eval": data.heldout,
    }[stage]
    if not samples and own is not None:
        raise ValueError(
            f"{path}: no row has a {needed}, which stage {stage} needs. Detected format: "
            f"{opened.convention}; name the columns with data.columns, or check the file with "
            "`prism-lite data check`."
        )
    return samples


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


def _system_prompt(config: RunConfig, default: str = parts.SYSTEM_PROMPT) -> str:
    return default if config.data.system_prompt is None else config.data.system_prompt
