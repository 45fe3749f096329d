"""`teach(job)`: ask a teacher about every row of a file and report what came of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from prism_lite.console import say, tracked
from prism_lite.data.formats.files import iter_rows
from prism_lite.data.formats.load import SampleFile, plural_rows
from prism_lite.endpoint import read_key
from prism_lite.teach.ask import Outcome, Rows, Task, ask_in_parallel, ask_row, tasks_of
from prism_lite.teach.endpoint import EndpointTeacher, Pace
from prism_lite.teach.journal import Journal, journal_path, read_finished
from prism_lite.teach.report import (
    Price,
    estimate,
    estimate_lines,
    read_tally,
    report_lines,
)
from prism_lite.teach.settings import EndpointSettings, TeachSettings
from prism_lite.teach.write import write_outcomes

_LOCAL_ADDRESSES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Job:
    """What is asked of whom.

    Attributes:
        opened: the rows.
        out: .jsonl file of the rows with teacher text; its journal is beside it.
        teacher: an endpoint, or how many rows a local model is asked at the same time.
        price: of a million tokens of prompts and of replies, or None.
    """

    opened: SampleFile
    out: Path
    settings: TeachSettings
    teacher: EndpointSettings | int
    price: Price | None = None


def teach(job: Job, console: Console) -> int:
    """Ask about every row that is not finished, and print a report.

    Returns:
        0 where every row has ended; 1 where the endpoint failed some, 2 where some cannot be asked.

    Raises:
        ValueError: the file is not from these settings or in use; no row would get a reply.
        RuntimeError: the endpoint does not answer; the machine lacks what a local model needs.
        Stopped: a signal has come.
    """
    job = _with_instruction(job)
    with Journal(job.out, job.settings) as journal:
        rows = Rows(job.opened, job.settings, journal.finished)
        try:
            outcomes = _outcomes(job, tasks_of(rows, journal, job.settings), journal, console)
            total = sum(1 for _ in iter_rows(job.opened.source)) - len(journal.finished)
            shown = tracked(outcomes, "asking", console=console, total=max(0, total))
            write_outcomes(shown, journal, job.settings, job.out.absolute().parent)
        finally:
            tally = read_tally(journal_path(job.out))
            for line in report_lines(tally, job.price, job.out):
                say(console, line)
            _print_unusable(rows, console)
    if job.opened.notes.num_unread:
        say(console, f"columns not copied: {', '.join(job.opened.notes.num_unread)}")
    if tally.ends["failed"]:
        return 1
    return 2 if rows.unusable else 0


def dry_run(job: Job, card_gib: float | None, console: Console) -> int:
    """Print what the rows that are not finished will need; send nothing.

    Args:
        card_gib: of the card that a local model is planned for, or None.

    Returns:
        0, or 2 where rows cannot be asked.
    """
    job = _with_instruction(job)
    path = journal_path(job.out)
    rows = Rows(job.opened, job.settings, read_finished(path))
    need = estimate((sample for _, sample in rows), job.settings, read_tally(path))
    for line in estimate_lines(need, job.settings, job.price):
        say(console, line)
    if rows.num_finished:
        say(console, f"{plural_rows(rows.num_finished)} finished before")
    _print_unusable(rows, console)
    if isinstance(job.teacher, int):
        from prism_lite.teach.local import local_config, memory_plan

        config = local_config(job.settings, batch_rows=job.teacher)
        planned = memory_plan(config, card_gib)
        by_category = ", ".join(
            f"{k} {v:.2f}" for k, v in planned.by_category.items() if v >= 0.005
        )
        line = f"{job.settings.model} as teacher, {job.teacher} rows at the same time"
        if card_gib:
            fits = "fits" if planned.peak_gib <= 0.9 * card_gib else "does not fit"
            line += f", {fits} a card of {card_gib:g} GiB"
        say(console, f"{line}: peak {planned.peak_gib:.2f} GiB, predicted ({by_category})")
    return 2 if rows.unusable else 0


def _with_instruction(job: Job) -> Job:
    """Return the job with the instruction of the tiny model, where that is the teacher."""
    if isinstance(job.teacher, int) and job.settings.model == "tiny":
        from prism_lite.teach.local import local_instruction

        text = local_instruction(job.settings.instruction)
        return replace(job, settings=replace(job.settings, instruction=text))
    return job


def _outcomes(
    job: Job, tasks: Iterator[Task], journal: Journal, console: Console
) -> Iterator[Outcome]:
    """Return the outcomes of the rows, asked at the endpoint or of a local model."""
    settings, teacher = job.settings, job.teacher
    if isinstance(teacher, int):
        from prism_lite.teach.local import ask_local, load_teacher, local_config

        config = local_config(settings, batch_rows=teacher)
        backbone = load_teacher(config)
        say(console, f"{backbone.precision.reason}; {backbone.loader}")
        return ask_local(tasks, backbone, config, journal, settings)
    key = read_key(*teacher.key_variables)
    address = urlsplit(teacher.base_url)
    if key and address.scheme == "http" and address.hostname not in _LOCAL_ADDRESSES:
        say(console, f"warning: the key is sent to {teacher.base_url} unencrypted", "yellow")
    stop = threading.Event()
    pace = Pace(teacher.per_minute, stop)
    asked = EndpointTeacher(teacher.base_url, key, settings, teacher, pace)

    def work(task: Task) -> Outcome:
        return ask_row(task, asked.reply, journal, settings)

    return ask_in_parallel(tasks, work, num_threads=teacher.parallel, stop=stop)


def _print_unusable(rows: Rows, console: Console) -> None:
    if not rows.unusable:
        return
    counts = ", ".join(f"{num:,} {kind}" for kind, num in rows.unusable.most_common())
    say(console, f"{plural_rows(rows.unusable.total())} not asked: {counts}; the first:")
    for message in rows.first_messages:
        say(console, f"  {message}")
