"""What a kill, a full disk or an early failure leaves in a run folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from prism_lite.runs.lock import LOCK


def remove_unfinished(path: Path) -> None:
    """Remove what a kill or a full disk has left half-written, so that there is room to resume."""
    for folder in path.glob("stages/*/.*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (*path.glob(".*.tmp"), *path.glob("*/.*.tmp")):
        if file.is_file():
            file.unlink(missing_ok=True)
        else:
            shutil.rmtree(file, ignore_errors=True)


def remove_empty_run(path: Path, created: Sequence[Path]) -> None:
    """Remove the files of a run that has computed nothing, and the folders that were created for it."""
    names = ("env.json", "inputs.json")
    hashes = (f".{name}.sha256" for name in names)
    for name in ("config.yaml", "control.json", "skipped.jsonl", *names, *hashes, LOCK):
        (path / name).unlink(missing_ok=True)
    for folder in (path / "rollouts", *created):
        with contextlib.suppress(OSError):  # it holds something of the user's
            folder.rmdir()
