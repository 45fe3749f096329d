"""Twenty kills at random instants and file operations: the finished run has the same bytes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.pipeline.commands import REPOSITORY


@pytest.mark.slow
def test_twenty_kills_lose_nothing():
    """In a process of its own, as the harness forks."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--kills", "20", "--seed", "16"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert re.match(r"20 kills \(.* 0 bytes of difference", done.stdout), done.stdout
