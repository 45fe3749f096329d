"""`teach(job)`: ask a teacher about every row of a file and report what came of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from prism_lite.config import RunConfig
from prism_lite.console import say, tracked
from prism_lite.data.formats.base import FileError
from prism_lite.data.formats.files import find_source, iter_rows
from prism_lite.data.formats.load import SampleFile, load_samples, plural_rows
from prism_lite.data.formats.names import QUESTION_NAMES, plain_name
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
        teacher: an endpoint, or the settings of a local model (see `local_config`).
        price: of a million tokens of prompts and of replies, or None.
    """

    opened: SampleFile
    out: Path
    settings: TeachSettings
    teacher: EndpointSettings | RunConfig
    price: Price | None = None


def open_rows(path: str, columns: Mapping[str, str] | None, image_root: str | None) -> SampleFile:
    """Open a data file as `load_samples`; a question is enough, which no stage could train on.

    Raises:
        ValueError: as `load_samples`.
    """
    try:
        return load_samples(path, columns=columns, image_root=image_root)
    except FileError as error:
        first = next((row.value for row in iter_rows(find_source(path))), None)
        names = {plain_name(name): name for name in first} if isinstance(first, dict) else {}
        questions = [names[name] for name in QUESTION_NAMES if name in names]
        if error.kind != "unknown_format" or columns or len(questions) != 1:
            raise
        return load_samples(path, columns={"prompt": questions[0]}, image_root=image_root)


def teach(job: Job, console: Console) -> int:
    """Ask about every row that is not finished, and print a report.

    Returns:
        0 where every row has ended; 1 where the endpoint failed some, 2 where some cannot be asked.

    Raises:
        ValueError: the file is not from these settings or in use; no row would get a reply.
        RuntimeError: the endpoint does not answer; the machine lacks what a local model needs.
        Stopped: a signal has come.
    """
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
    path = journal_path(job.out)
    rows = Rows(job.opened, job.settings, read_finished(path))
    need = estimate((sample for _, sample in rows), job.settings, read_tally(path))
    for line in estimate_lines(need, job.settings, job.price):
        say(console, line)
    if rows.num_finished:
        say(console, f"{plural_rows(rows.num_finished)} finished before")
    _print_unusable(rows, console)
    if isinstance(job.teacher, RunConfig):
        from prism_lite.teach.local import memory_plan

        planned = memory_plan(job.teacher, card_gib)
        by_category = ", ".join(
            f"{k} {v:.2f}" for k, v in planned.by_category.items() if v >= 0.005
        )
        num_rows = job.teacher.align.prompts_per_step
        line = f"{job.settings.model} as teacher, {plural_rows(num_rows)} at the same time"
        if card_gib:
            fits = "fits" if planned.peak_gib <= 0.9 * card_gib else "does not fit"
            line += f", {fits} a card of {card_gib:g} GiB"
        say(console, f"{line}: peak {planned.peak_gib:.2f} GiB, predicted ({by_category})")
    return 2 if rows.unusable else 0


def _outcomes(
    job: Job, tasks: Iterator[Task], journal: Journal, console: Console
) -> Iterator[Outcome]:
    """Return the outcomes of the rows, asked at the endpoint or of a local model."""
    settings, teacher = job.settings, job.teacher
    if isinstance(teacher, RunConfig):
        from prism_lite.teach.local import ask_local, load_teacher

        backbone = load_teacher(teacher)
        say(console, f"{backbone.precision.reason}; {backbone.loader}")
        return ask_local(tasks, backbone, teacher, journal, settings)
    key = read_key(*teacher.key_variables)
    address = urlsplit(teacher.base_url)
    if key and address.scheme == "http" and address.hostname not in _LOCAL_ADDRESSES:
        say(console, f"warning: the key is sent to {teacher.base_url} unencrypted", "yellow")
    stop = threading.Event()
    pace = Pace(teacher.per_minute, stop)
    asked = EndpointTeacher(
        teacher.base_url, key, settings, teacher, pace, lambda text: say(console, text, "yellow")
    )

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
