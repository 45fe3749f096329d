"""The file with teacher text and its journal: append-only, and a kill at any moment loses no reply.

`taught.jsonl` has the rows; `taught.journal.jsonl` has the settings, every reply and how each row ended.
A row's end is written to the journal first, with the row, and then the row to the file: a file that is one
row short gets it from the journal.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

from prism_lite.teach.replies import Reply
from prism_lite.teach.settings import TeachSettings

End = Literal["taught", "malformed", "wrong", "failed"]


def journal_path(out: Path) -> Path:
    """Return the journal beside a file."""
    return out.with_name(f"{out.stem}.journal.jsonl")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a journal, without a last line that a kill has truncated.

    Raises:
        ValueError: another line is not a record.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number} is not a record: the journal was edited. Give another --out."
                ) from error


def read_finished(path: Path) -> set[str]:
    """Return the keys of the rows that a journal says are finished."""
    return {r["key"] for r in read_records(path) if r.get("end", "failed") != "failed"}


class Journal:
    """Both files, opened for appending by one process at a time.

    Attributes:
        finished: keys of the rows that are not asked again. A row that the endpoint failed is.
    """

    def __init__(self, out: Path, settings: TeachSettings) -> None:
        """Open the files and continue them.

        Raises:
            ValueError: they are not from these settings, were edited, or are in use.
        """
        self.finished: set[str] = set()
        self._replies: defaultdict[str, list[Reply]] = defaultdict(list)
        self._lock = threading.Lock()
        path = journal_path(out)
        if out.exists() and not path.exists():
            raise ValueError(f"--out {out} exists and has no journal: give another file.")
        if not out.absolute().parent.is_dir():
            raise ValueError(f"--out {out}: {out.absolute().parent} does not exist; create it.")
        self._journal = path.open("ab")
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._journal.close()
            raise ValueError(f"--out {out}: another process is writing it.") from error
        self._out = out.open("ab")
        try:
            self._continue(path, out, settings)
        except ValueError:
            self._close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._journal.close()
        self._out.close()

    def replies(self, key: str) -> list[Reply]:
        """Return the stored replies of a row that is not finished."""
        return list(self._replies.get(key, ()))

    def add_reply(self, key: str, reply: Reply) -> None:
        """Store a reply; called by several threads."""
        self._append(self._journal, {"key": key, "reply": dataclasses.asdict(reply)})

    def finish(
        self,
        key: str,
        end: End,
        *,
        place: str,
        reason: str = "",
        num_requests: int = 0,
        row: dict[str, Any] | None = None,
    ) -> None:
        """Store how a row ended, and write the row of one that was taught.

        Args:
            reason: why the row has no teacher text, or less than was asked for.
            num_requests: requests without a reply.
        """
        record = {"key": key, "end": end, "place": place, "reason": reason, "row": row}
        self._append(self._journal, record | {"num_requests": num_requests})
        if row is not None:
            self._append(self._out, row)
        if end != "failed":
            self.finished.add(key)
            self._replies.pop(key, None)

    def _append(self, file: BinaryIO, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=True).encode() + b"\n"
        with self._lock:
            before = os.fstat(file.fileno()).st_size
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:  # a full disk: no part of a line may precede the next one
                os.truncate(file.name, before)
                raise

    def _continue(self, path: Path, out: Path, settings: TeachSettings) -> None:
        """Read what is stored, cut off truncated last lines and add a row that is missing."""
        for file, name in ((self._journal, path), (self._out, out)):
            file.truncate(_complete_bytes(name))
            file.seek(0, os.SEEK_END)
        num_taught, last_row = 0, None
        is_new = True
        for record in read_records(path):
            is_new = False
            if "settings" in record:
                _check_settings(record["settings"], settings, out)
            elif "reply" in record:
                self._replies[record["key"]].append(Reply(**record["reply"]))
            elif record["end"] != "failed":
                self.finished.add(record["key"])
                self._replies.pop(record["key"], None)
                if record["row"] is not None:
                    num_taught, last_row = num_taught + 1, record["row"]
        if is_new:
            self._append(self._journal, {"settings": dataclasses.asdict(settings)})
        num_rows = _num_lines(out)
        if num_rows == num_taught - 1:
            assert last_row is not None
            self._append(self._out, last_row)
        elif num_rows != num_taught:
            raise ValueError(
                f"--out {out} has {num_rows} rows, and its journal says {num_taught}: it was edited. Give "
                "another --out."
            )


def _check_settings(stored: dict[str, Any], settings: TeachSettings, out: Path) -> None:
    """Compare the settings that a file was begun with.

    Raises:
        ValueError: they differ; names the first.
    """
    for name, value in dataclasses.asdict(settings).items():
        if stored.get(name) != value:
            message = (
                f"--out {out} was begun with {name} = {stored.get(name)!r}, not {value!r}: give another "
                "--out, or the same settings to continue it."
            )
            if (name, stored.get(name), value) == ("field", "teacher", "both"):
                message += (
                    " Nothing has to be asked again for SFT, which reads the teacher's text with "
                    "data.columns='{prompt: prompt, teacher: teacher, demonstration: teacher}'."
                )
            raise ValueError(message)


def _complete_bytes(path: Path) -> int:
    """Return the size of a file up to the end of its last complete line."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for end in range(size, 0, -65536):
            start = max(0, end - 65536)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            if place >= 0:
                return start + place + 1
    return 0


def _num_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)
