"""The folder of uploads and drawings: private, removed when the process ends, however it ends."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

_PREFIX, _LOCK = "prism_lite_demo_", ".in-use"
_held: list[IO[str]] = []  # open as long as the process lives: the system then releases the lock


def make_uploads_private() -> None:
    """Store uploads in a folder that only this user can read, and remove those of killed processes."""
    remove_abandoned(Path(tempfile.gettempdir()))
    if "GRADIO_TEMP_DIR" not in os.environ:
        folder = make_upload_folder()
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def make_upload_folder() -> Path:
    """Create a folder that is in use until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = (folder / _LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    _held.append(lock)
    return folder


def remove_abandoned(parent: Path) -> None:
    """Remove this user's upload folders that no process uses."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, being removed by another process, or not one of ours
            continue
