"""SIGINT, SIGTERM and SIGHUP: one handler for all, which never loses a finished step.

While the program only reads and loads, a signal ends it at once. Where a run folder is open, the signal is
noted, and the run saves at the next step boundary (`RunFolder.steps`). Ctrl-C after a signal ends at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Literal

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
# What a first signal does: "exit" ends the process, "raise" raises KeyboardInterrupt, so that temporary
# folders are removed, and "note" leaves it to the run to stop.
Reaction = Literal["exit", "raise", "note"]

_reaction: Reaction = "raise"
_received: str | None = None
_process: int | None = None  # that has installed the handler; None where none is installed
_command = ""  # that is stopped, for the message of "exit"


@contextlib.contextmanager
def caught(command: str = "") -> Iterator[None]:
    """Handle the signals inside; an outer `caught`, or a thread that may not, leaves all as it is.

    Args:
        command: the command line that does the same again, quoted for the shell; "" from Python.
    """
    global _process, _received, _command
    if _process is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    if before.get(getattr(signal, "SIGHUP", None)) == signal.SIG_IGN:  # started with nohup
        del before[signal.SIGHUP]
    _process, _received, _command = os.getpid(), None, command
    for number in before:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _process, _received = None, None


@contextlib.contextmanager
def reacts(reaction: Reaction) -> Iterator[None]:
    """Choose what a signal does inside."""
    global _reaction
    before, _reaction = _reaction, reaction
    try:
        yield
    finally:
        _reaction = before


def received() -> str | None:
    """Return the name of the signal that asked the program to stop, or None."""
    return _received


def _handle(number: int, _frame: FrameType | None) -> None:
    global _received
    name, is_first = signal.Signals(number).name, _received is None
    if os.getpid() != _process:  # a forked worker has inherited the handler
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    if name == "SIGHUP":
        _leave_terminal()
    _received = _received or name
    if _reaction == "exit":
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            sys.stdout.flush()
        again = f"; resume with: {_command}" if _command else ""
        _write(f"stopped by {name} before anything had to be saved{again}\n")
        os._exit(3)
    if _reaction == "raise":
        raise KeyboardInterrupt(f"stopped by {name} before anything had to be saved")
    if is_first:
        _write(f"\n{name}: stopping after this step (Ctrl-C again: at once, without saving)\n")
    elif name == "SIGINT":  # a closed terminal sends SIGHUP twice, a supervisor repeats SIGTERM
        raise KeyboardInterrupt("interrupted at once: steps since the last checkpoint are repeated")


def _leave_terminal() -> None:
    """Write to nowhere from now on where the output is the terminal that was closed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _write(text: str) -> None:
    """Write to stderr past Python's buffers, which the interrupted code may be using."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
