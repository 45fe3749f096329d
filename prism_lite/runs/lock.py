"""One process at a time trains in a run folder: a lock that names its holder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

LOCK = ".lock"


class Holder(NamedTuple):
    """A process that trains in a run folder, and since when."""

    pid: int
    host: str
    since: datetime


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the system releases it however the process ends.

    Raises:
        ValueError: another process holds it; names its id and machine.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {folder}{_holder_text(folder)}: wait for it or stop it."
            ) from None
        lock.seek(0)
        lock.truncate()
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, lock)
        lock.flush()
        yield


def read_holder(folder: Path) -> Holder | None:
    """Return the last process that held the lock of a run folder; None where the lock does not say."""
    try:
        content: Any = json.loads((folder / LOCK).read_bytes())
        since = datetime.fromisoformat(content["since"])
        return Holder(int(content["pid"]), str(content["host"]), since)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _holder_text(folder: Path) -> str:
    """Return " (process 12 on HOST since TIME)", or "" where the lock does not say."""
    holder = read_holder(folder)
    if holder is None:
        return ""
    return f" (process {holder.pid} on {holder.host} since {holder.since.isoformat()})"
