"""The handler of SIGINT, SIGTERM and SIGHUP, in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import prism_lite
from prism_lite import signals

_PROGRAM = """
import sys, time
from prism_lite import __main__, signals
from prism_lite.cli import doctor
from prism_lite.types import Stopped

def work():
    with signals.reacts({reaction!r}):
        print("ready", flush=True)
        for _ in range(1000):
            time.sleep(0.01)
            if signals.received():
                raise Stopped("stopped after step 3")

doctor.describe = work
sys.exit(__main__.main(["doctor"]))
"""


def start(reaction: str, *before: str) -> subprocess.Popen[str]:
    code = _PROGRAM.format(reaction=reaction)
    process = subprocess.Popen(
        [*before, sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(prism_lite.__file__).parents[1])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("reaction", ["exit", "raise", "note"])
def test_every_signal_ends_with_code_3_and_without_a_traceback(name, reaction):
    process = start(reaction)
    process.send_signal(getattr(signal, name))
    out, error = process.communicate(timeout=30)
    assert process.returncode == 3, error
    assert "Traceback" not in out + error
    assert (name in error) if reaction != "raise" else (name in out)
    said = error if reaction == "exit" else out
    assert said.strip().endswith("; resume with: prism-lite doctor")


def test_a_second_hangup_does_not_hurry_and_nohup_is_respected():
    process = start("note", "nohup")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 3 and "stopped after step 3" in out
    assert "SIGHUP" not in error


def test_the_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with signals.caught(), signals.caught():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert signals.received() is None
