"""The data of a run: samples for each stage, and what can be verified about completions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from prism_lite import parts
from prism_lite.config import RunConfig
from prism_lite.data import digits, digits_base, wording
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
    """

    sft: tuple[Sample, ...]
    align: tuple[Sample, ...]
    rlvr: tuple[Sample, ...]
    heldout: tuple[Sample, ...]
    probe: tuple[ProbePair, ...]
    system_prompt: str
    verify: Callable[[Sample, Parts], Verdict] | None


def load_task(config: RunConfig) -> TaskData:
    """Draw or read the samples of a run.

    Raises:
        ValueError: a file is missing, empty or holds a broken row; names file and row.
    """
    return _digits(config) if config.data.task == "digits" else _files(config)


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
    raise ValueError("data.task: files is not wired yet")


def _system_prompt(config: RunConfig, default: str = parts.SYSTEM_PROMPT) -> str:
    return default if config.data.system_prompt is None else config.data.system_prompt
