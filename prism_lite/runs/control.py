"""What asks a run to stop or pause: control.json, signals, or a call."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from prism_lite import signals
from prism_lite.console import say
from prism_lite.processes import broadcast
from prism_lite.runs.small_files import read_command

_PAUSE_POLL_S = 0.5


class Control:
    """What asks the run of a folder to stop or pause. Of several processes the first one decides."""

    def __init__(self, folder: Path, console: Console) -> None:
        self._path, self._console = folder / "control.json", console
        self._is_stop_requested = False
        self._noted: set[str] = set()

    def request_stop(self) -> None:
        """Stop at the next `asked_to_stop`."""
        self._is_stop_requested = True

    def asked_to_stop(self) -> bool:
        """Wait while control.json says "pause"; return whether the run has to stop."""
        while (request := broadcast(self._request())) == "pause":
            time.sleep(_PAUSE_POLL_S)
        self._is_stop_requested = request == "stop"
        return self._is_stop_requested

    def _request(self) -> str | None:
        """Return what is asked for now: "stop", "pause" or None."""
        command, ignored = read_command(self._path)
        if ignored and ignored not in self._noted:
            self._noted.add(ignored)
            say(self._console, ignored, "yellow")
        return "stop" if self._is_stop_requested or signals.received() is not None else command
