"""Run commands in tests: in a process of their own, or quicker in this one."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

from prism_lite.__main__ import main

REPOSITORY = Path(__file__).parents[2]


def prism_lite(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prism_lite", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def in_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same without starting Python and importing torch again (five seconds each time)."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main([str(argument) for argument in arguments])
    return subprocess.CompletedProcess([], code, out.getvalue(), error.getvalue())


def check_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, one sentence on stderr with these words, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("prism-lite")]
    assert len(lines) == 1, done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr
    for word in words:
        assert word in lines[0], lines[0]
