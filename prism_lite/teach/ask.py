"""Ask the teacher about every row of a file: several rows at the same time, each to its end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from prism_lite import signals
from prism_lite.data.checks.keys import conversation_key
from prism_lite.data.checks.rules import CheckRules, find_defects
from prism_lite.data.formats.base import Finding
from prism_lite.data.formats.load import SampleFile
from prism_lite.teach.journal import Journal
from prism_lite.teach.replies import (
    NoReplyError,
    Progress,
    Received,
    Reply,
    checked,
    first_prompt,
    next_prompt,
    progress_of,
)
from prism_lite.teach.settings import TeachSettings
from prism_lite.types import Sample, Stopped

_POLL_S = 0.5  # how soon a signal is noticed


@dataclass(frozen=True)
class Task:
    """A row that is not finished.

    Attributes:
        key: of its prompt and pictures; equal prompts are numbered.
        sample: as read.
        prompt: as asked.
        replies: those stored by an earlier run.
    """

    key: str
    sample: Sample
    prompt: Sample
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Outcome:
    """Where a row is after it was asked.

    Attributes:
        failure: why the endpoint has not answered, or "".
        num_failed_requests: requests without a reply.
    """

    task: Task
    progress: Progress
    failure: str = ""
    num_failed_requests: int = 0


class Rows:
    """The rows of a file that the journal does not have; counts those that cannot be asked.

    Attributes:
        num_read, num_finished: rows read so far, and those that an earlier run has finished.
        unusable: rows that are not asked, by kind of defect.
        first_messages: their first messages.
    """

    def __init__(self, opened: SampleFile, settings: TeachSettings, finished: set[str]) -> None:
        self._opened, self._settings, self._finished = opened, settings, finished
        self.num_read = self.num_finished = 0
        self.unusable: Counter[str] = Counter()
        self.first_messages: list[str] = []

    def __iter__(self) -> Iterator[tuple[str, Sample]]:
        """Yield key and sample of the rows to ask."""
        num_equal: Counter[str] = Counter()
        for _, sample in self._opened.rows():
            self.num_read += 1
            if isinstance(sample, Finding):
                self._refuse(sample.kind, sample.message)
                continue
            key = conversation_key(sample)
            num_equal[key] += 1
            key = key if num_equal[key] == 1 else f"{key}-{num_equal[key]}"
            if key in self._finished:
                self.num_finished += 1
                continue
            defect = self._defect(sample)
            if defect:
                self._refuse(defect[0], f"{sample.source}: {defect[1]}")
            else:
                yield key, sample

    def _defect(self, sample: Sample) -> tuple[str, str] | None:
        """Return what makes a row useless with any teacher text: no reply is paid for it."""
        if self._settings.keep_right and not (sample.answer or "").strip():
            return "missing_answer", "--keep-right verifies answers, and the row has none."
        bare = first_prompt(sample, "")
        kinds = find_defects(bare, CheckRules())
        return next((defect for defect in kinds if defect[0] != "missing_answer"), None)

    def _refuse(self, kind: str, message: str) -> None:
        self.unusable[kind] += 1
        if len(self.first_messages) < 5:
            self.first_messages.append(message)


def tasks_of(rows: Rows, journal: Journal, settings: TeachSettings) -> Iterator[Task]:
    """Yield the rows to ask, with the replies that the journal has of them."""
    for key, sample in rows:
        prompt = first_prompt(sample, settings.instruction)
        yield Task(key, sample, prompt, tuple(journal.replies(key)))


def ask_row(
    task: Task,
    ask: Callable[[Sample], Received],
    journal: Journal,
    settings: TeachSettings,
) -> Outcome:
    """Ask about one row until it has its completions, or they are given up.

    Raises:
        RefusedError, Stopped: see `EndpointTeacher.reply`.
    """
    replies = list(task.replies)
    while (progress := progress_of(replies, settings)).num_left:
        try:
            received = ask(next_prompt(task.prompt, progress.again))
        except NoReplyError as error:
            return Outcome(task, progress, str(error), error.num_requests)
        reply = checked(task.sample, received, keep_right=settings.keep_right)
        journal.add_reply(task.key, reply)
        replies.append(reply)
    return Outcome(task, progress)


def ask_in_parallel(
    tasks: Iterable[Task],
    work: Callable[[Task], Outcome],
    *,
    num_threads: int,
    stop: threading.Event,
) -> Iterator[Outcome]:
    """Yield the outcomes of tasks as they come; at most `num_threads` rows are in memory.

    After a signal no further row begins, and the replies on their way are stored.

    Raises:
        Stopped: a signal has come.
        RefusedError: see `EndpointTeacher.reply`.
    """
    pending: set[Future[Outcome]] = set()
    pool, waits = ThreadPoolExecutor(num_threads), True
    try:
        for task in tasks:
            if stop.is_set():
                break
            pending.add(pool.submit(work, task))
            while len(pending) >= num_threads:
                yield from _finished(pending, stop)
        while pending:
            yield from _finished(pending, stop)
    except KeyboardInterrupt:  # the second Ctrl-C
        waits = False
        raise
    finally:
        stop.set()  # after an error, threads that wait for their next request end
        pool.shutdown(wait=waits, cancel_futures=True)
    if signals.received():
        raise Stopped(f"stopped by {signals.received()}; every reply that has come is stored")


def _finished(pending: set[Future[Outcome]], stop: threading.Event) -> Iterator[Outcome]:
    """Wait a moment; yield the outcomes that are there and take them out of `pending`."""
    done, _ = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
    pending -= done
    if signals.received():
        stop.set()
    for future in done:
        try:
            yield future.result()
        except Stopped:
            continue  # its stored replies are read by the next run
