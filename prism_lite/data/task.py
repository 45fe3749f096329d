"""The data of a run: samples for each stage, and what can be verified about completions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from rich.console import Console

from prism_lite import parts
from prism_lite.config import REWARDS_THAT_READ_ANSWERS, DataConfig, Kind, RunConfig
from prism_lite.data.checks.rules import DataStage
from prism_lite.data.formats.base import Finding
from prism_lite.data.missing_rows import no_rows_text
from prism_lite.data.probe_rows import keep_pairs_aside
from prism_lite.data.split import picture_ids
from prism_lite.data.stage_rows import StoredFile, describe_skipped, read_file, rows_for
from prism_lite.digits import lessons, wording
from prism_lite.digits import task as digits
from prism_lite.digits.wording import PartVerdicts
from prism_lite.easy_vqa import rows as easy_vqa
from prism_lite.parts import Parts
from prism_lite.types import ProbePair, Sample

# Of TaskData, beside the probe.
_SAMPLE_FIELDS = ("sft", "warmup", "align", "rlvr", "heldout", "transfer", "familiar")


@dataclass(frozen=True)
class TaskData:
    """The samples that the stages read.

    Attributes:
        sft, align, rlvr: rows with a demonstration, a teacher completion, an answer.
        heldout: evaluation rows; empty where none were given.
        probe: held-out pairs for the grounding probe.
        verify: judges caption, think and answer separately, where the task can; else None.
        warmup: rows with a recorded student beside the teacher; empty where none were given.
        skipped: rows that were left out.
        transfer: evaluation rows of questions that alignment and RLVR never ask.
        familiar: unseen pictures by the writers of the training pictures: perception's ceiling.
        corrupt: returns a clean teacher completion with a misread caption and a slipped think, else
            None; None where the task cannot.
    """

    sft: tuple[Sample, ...]
    align: tuple[Sample, ...]
    rlvr: tuple[Sample, ...]
    heldout: tuple[Sample, ...]
    probe: tuple[ProbePair, ...]
    verify: Callable[[Sample, Parts], PartVerdicts] | None
    warmup: tuple[Sample, ...] = ()
    skipped: tuple[Finding, ...] = ()
    transfer: tuple[Sample, ...] = ()
    familiar: tuple[Sample, ...] = ()
    corrupt: Callable[[Sample, Parts, Random], Parts | None] | None = None


def load_task(
    config: RunConfig, *, console: Console | None = None, stamps: Path | None = None
) -> TaskData:
    """Draw or read the samples of a run; a file that several stages need is read once.

    Args:
        config: the run's settings.
        console: shows the progress and the rows that were left out.
        stamps: see `stage_rows.read_file`.

    Raises:
        ValueError: a file is missing, empty or holds a broken row; names file and row.
    """
    if config.data.task == "digits":
        task = _digits(config)
    else:
        task = _files(config, console=console, stamps=stamps)
    return _with_system_prompt(task, system_prompt_of(config))


def load_heldout(config: RunConfig, *, console: Console | None = None) -> TaskData:
    """Load the task with its held-out rows alone: no other file is read.

    Raises:
        ValueError: as `load_task`.
    """
    if config.data.task == "digits":
        heldout, transfer, familiar = _digits_heldout(config)
        task = TaskData(
            (), (), (), heldout, (), _verify_digits, transfer=transfer, familiar=familiar
        )
    else:
        rows = _Rows(config.data, console)
        heldout = rows.of("heldout", "eval")
        task = TaskData((), (), (), heldout, (), _verifier_of(heldout), skipped=rows.skipped())
    return _with_system_prompt(task, system_prompt_of(config))


def system_prompt_of(config: RunConfig) -> str:
    """Return the system turn of every prompt without one of its own; read no file."""
    default = lessons.INSTRUCTION if config.data.task == "digits" else parts.SYSTEM_PROMPT
    return default if config.data.system_prompt is None else config.data.system_prompt


def _with_system_prompt(task: TaskData, text: str) -> TaskData:
    """Give every sample without a system turn of its own this one."""
    # By identity: a row that several stages read stays one object.
    prompted = {id(sample): sample.with_system_prompt(text) for sample in all_samples(task)}
    samples = {
        name: tuple(prompted[id(sample)] for sample in getattr(task, name))
        for name in _SAMPLE_FIELDS
    }
    probe = (dataclasses.replace(pair, sample=prompted[id(pair.sample)]) for pair in task.probe)
    return dataclasses.replace(task, **samples, probe=tuple(probe))


def all_samples(task: TaskData) -> Iterator[Sample]:
    """Yield every sample of a task; one that several stages read comes several times."""
    yield from (sample for name in _SAMPLE_FIELDS for sample in getattr(task, name))
    yield from (pair.sample for pair in task.probe)


def without_samples(task: TaskData, bad: Collection[str]) -> TaskData:
    """Return the task without the samples of these keys."""
    samples = {
        name: tuple(sample for sample in getattr(task, name) if sample.key not in bad)
        for name in _SAMPLE_FIELDS
    }
    probe = tuple(pair for pair in task.probe if pair.sample.key not in bad)
    return dataclasses.replace(task, **samples, probe=probe)


def _digits(config: RunConfig) -> TaskData:
    data = config.data

    def train(name: str, kinds: Sequence[Kind], num: int) -> tuple[Sample, ...]:
        seed = f"{name}-{config.seed}"
        return tuple(
            digits.make_samples(data.digits, split="train", kinds=kinds, num=num, seed=seed)
        )

    heldout, transfer, familiar = _digits_heldout(config)
    probe = digits.probe_pairs(data.digits, num=config.warmup.num_probe, rng=Random("probe"))
    return TaskData(
        sft=train("sft", data.digits.sft_kinds, data.num_sft),
        align=train("align", data.digits.kinds, data.num_align),
        rlvr=train("rlvr", data.digits.kinds, data.num_rlvr),
        heldout=heldout,
        transfer=transfer,
        familiar=familiar,
        probe=tuple(probe),
        verify=_verify_digits,
        corrupt=digits.corrupt,
    )


def _digits_heldout(config: RunConfig) -> tuple[tuple[Sample, ...], ...]:
    """Draw the held-out, transfer and familiar rows, which are the same for every seed."""
    data = config.data

    def rows(split: digits.Split, kinds: Sequence[Kind], num: int, seed: str) -> tuple[Sample, ...]:
        if not kinds:
            return ()
        return tuple(digits.make_samples(data.digits, split=split, kinds=kinds, num=num, seed=seed))

    return (
        rows("heldout", data.digits.kinds, data.num_heldout, "evaluation"),
        rows("heldout", data.digits.transfer_kinds, data.num_transfer, "transfer"),
        rows("train", data.digits.kinds, data.num_heldout // 2, "familiar"),
    )


def _verify_digits(sample: Sample, completion: Parts) -> PartVerdicts:
    return wording.verify(sample.facts, completion)


def _files(config: RunConfig, *, console: Console | None, stamps: Path | None) -> TaskData:
    """Read the samples of a run from files or hub ids."""
    data = config.data
    if data.train is None:
        raise ValueError("data.train is not set: name the file (or hub id) with the training rows.")
    rows = _Rows(data, console, stamps)
    sft = rows.of("train", "sft") if config.sft.steps else ()
    warmup = rows.of("warmup", "warmup")
    align = rows.of("align", "align")
    reads_answers = config.rlvr.rewards.keys() & set(REWARDS_THAT_READ_ANSWERS)
    reads_teacher = config.rlvr.game != "off" or config.rlvr.teacher_rollout
    rlvr = rows.of(
        "rlvr",
        "rlvr",
        needed="answer" if reads_answers else "turns",
        also_read=("teacher",) if reads_teacher else (),
    )
    if config.rlvr.game != "off":
        with_teacher = tuple(sample for sample in rlvr if sample.teacher)
        if not with_teacher:
            raise ValueError(
                f"{data.rlvr or data.train}: rlvr.game = {config.rlvr.game} compares rollouts with the "
                "teacher's text, and no row with an answer has one: set rlvr.game=off, or give such rows."
            )
        rlvr = with_teacher
    heldout = rows.of("heldout", "eval")
    align_rows, probe = keep_pairs_aside(align, config.warmup.num_probe)
    probed_ids = picture_ids([pair.sample for pair in probe])
    return TaskData(
        sft=sft,
        align=align_rows,
        rlvr=rlvr,
        heldout=heldout,
        probe=probe,
        verify=_verifier_of(heldout),
        corrupt=easy_vqa.corrupt_sample if easy_vqa.are_ours(align) else None,
        # the discriminator is not trained on the probe's pictures
        warmup=tuple(sample for sample in warmup if not picture_ids([sample]) & probed_ids),
        skipped=rows.skipped(),
    )


def _verifier_of(heldout: Sequence[Sample]) -> Callable[[Sample, Parts], PartVerdicts] | None:
    """Return the verifier of a data set that is known to the program, for rows that are all its own."""
    return easy_vqa.verify_sample if easy_vqa.are_ours(heldout) else None


class _Rows:
    """Rows of the settings of `data`; a file that several of them name is read once."""

    def __init__(
        self, data: DataConfig, console: Console | None = None, stamps: Path | None = None
    ) -> None:
        self._data, self._console, self._stamps = data, console, stamps
        self._stored: dict[str, StoredFile] = {}
        self._skipped: dict[Finding, None] = {}

    def of(
        self,
        setting: Literal["train", "warmup", "align", "rlvr", "heldout"],
        stage: DataStage,
        *,
        needed: str | None = None,
        also_read: tuple[str, ...] = (),
    ) -> tuple[Sample, ...]:
        """Return a stage's rows of `data.<setting>`; of `data.train` where align or rlvr is not set.

        Args:
            needed: the field that a row must have; default: what the stage needs.
            also_read: further fields that the stage reads.

        Raises:
            ValueError: a row is bad, where that is an error; or the file holds none for the stage.
        """
        data, console = self._data, self._console
        set_path = getattr(data, setting)
        path = set_path or (data.train if setting in ("align", "rlvr") else None)
        if path is None:
            return ()
        if path not in self._stored:
            self._stored[path] = read_file(data, path, console=console, stamps=self._stamps)
        samples, skipped = rows_for(
            data, self._stored[path], stage, needed=needed, also_read=also_read
        )
        new = [row for row in skipped if row not in self._skipped]
        self._skipped |= dict.fromkeys(new)
        if new and console:
            console.print(f"{path}: {describe_skipped(new)}", markup=False, highlight=False)
        if not samples and set_path is not None:
            raise ValueError(no_rows_text(self._stored[path], stage, skipped, data.columns))
        return samples

    def skipped(self) -> tuple[Finding, ...]:
        """Return the rows left out so far, each once."""
        return tuple(self._skipped)
