"""Standard output that may fail: a closed pipe or a full disk under a log file never ends a training."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class LastingStream:
    """A text stream whose text is dropped where it cannot be written.

    Attributes:
        is_lost: whether any text was dropped.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name
        self.is_lost = False

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._note(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if it can be written."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._note(error)

    def isatty(self) -> bool:
        """Return whether the stream is a terminal; a closed one is not."""
        try:
            return self._stream.isatty()
        except ValueError:
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _note(self, error: Exception) -> None:
        if not self.is_lost and self._name == "stdout":
            text = (
                f"prism-lite: stdout cannot be written ({error}); the work continues without it.\n"
            )
            with contextlib.suppress(OSError):
                os.write(2, text.encode())
        self.is_lost = True

    def close_if_lost(self) -> None:
        """Send what the stream still holds to nowhere, so that Python ends without an error."""
        if not self.is_lost:
            return
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Make sys.stdout and sys.stderr drop what they cannot write, inside."""
    before = sys.stdout, sys.stderr
    streams = [
        LastingStream(stream, name)
        for name, stream in zip(("stdout", "stderr"), before, strict=True)
        if stream is not None
    ]
    if len(streams) == 2:
        sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.flush()
            stream.close_if_lost()
