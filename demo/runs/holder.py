"""Whether a program trains a run now, by the lock file that `prism-lite run` leaves in its folder.

The lock is not tried: a training that starts at that moment would be refused.
"""

from __future__ import annotations

import json
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from prism_lite.runs.lock import LOCK

_STALE_S = 60.0  # without a line in metrics.jsonl, on another machine
_SLACK_S = 2.0  # the lock's time is in whole seconds


def is_held(path: Path) -> bool:
    """Return whether the process that the lock file names is still alive.

    Of a process on another machine, whose disk this is, only what it writes is seen: it is taken to be
    alive while the last step is less than a minute old.
    """
    try:
        holder: Any = json.loads((path / LOCK).read_bytes())
        pid, host = int(holder["pid"]), str(holder["host"])
        since_s = datetime.fromisoformat(holder["since"]).timestamp()
    except (OSError, ValueError, LookupError, TypeError):
        return False
    if host != socket.gethostname():
        return _has_written_lately(path)
    try:
        process = psutil.Process(pid)
        is_older = process.create_time() < since_s + _SLACK_S  # process ids are used again
        return is_older and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _has_written_lately(path: Path) -> bool:
    file = path / "metrics.jsonl"
    return file.is_file() and time.time() - file.stat().st_mtime < _STALE_S
