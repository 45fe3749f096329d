"""Whether a program trains a run now, by the lock file that `prism-lite run` leaves in its folder.

The lock is not tried: a training that starts at that moment would be refused.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

import psutil

from prism_lite.runs.lock import read_holder

_STALE_S = 60.0  # without a line in metrics.jsonl, on another machine
_SLACK_S = 2.0  # the lock's time is in whole seconds


def is_held(path: Path) -> bool:
    """Return whether the process that the lock file names is still alive.

    Of a process on another machine, whose disk this is, only what it writes is seen: it is taken to be
    alive while the last step is less than a minute old.
    """
    holder = read_holder(path)
    if holder is None:
        return False
    if holder.host != socket.gethostname():
        return _has_written_lately(path)
    try:
        process = psutil.Process(holder.pid)
        # process ids are used again
        is_older = process.create_time() < holder.since.timestamp() + _SLACK_S
        return is_older and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _has_written_lately(path: Path) -> bool:
    file = path / "metrics.jsonl"
    return file.is_file() and time.time() - file.stat().st_mtime < _STALE_S
