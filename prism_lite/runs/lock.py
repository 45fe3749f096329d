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
from typing import Any

LOCK = ".lock"


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
                f"another process is training in {folder}{_holder(folder / LOCK)}: wait for it or stop it."
            ) from None
        lock.seek(0)
        lock.truncate()
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, lock)
        lock.flush()
        yield


def _holder(path: Path) -> str:
    """Return " (process 12 on HOST since TIME)", or "" where the lock does not say."""
    try:
        content: Any = json.loads(path.read_bytes())
        return f" (process {content['pid']} on {content['host']} since {content['since']})"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
