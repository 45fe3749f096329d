"""A real training, started from the page, found again after a reload, paused, stopped and resumed.

The recipe is the tiny one, shrunk as in tests/micro.py; its base is in the session's cache.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.runs import folder
from demo.runs.trainer import FORM_SETTINGS, Trainer
from tests.micro import MICRO

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SFT_STEPS = 400
# Entered in the form; the other settings of MICRO are arguments of the program.
SETTINGS = {"sft.steps": SFT_STEPS, "warmup.steps": 2, "align.steps": 2, "align.group_size": 3}
SETTINGS |= {"rlvr.steps": 2}
LIMIT_S = 120


@pytest.fixture
def trainer(micro_run: Any, tmp_path: Path) -> Iterator[Trainer]:
    """Trainings of micro size; `micro_run` has made their base."""
    known = {key for key, _, _ in FORM_SETTINGS}
    shrunk = [f"{key}={json.dumps(value)}" for key, value in MICRO.items() if key not in known]
    trainer = Trainer(
        tmp_path / "runs", program=(sys.executable, "-m", "prism_lite", "run", *shrunk)
    )
    yield trainer
    running = trainer.current()
    if running is not None:
        os.kill(running.pid, signal.SIGKILL)


@pytest.fixture
def url(trainer: Trainer) -> Iterator[str]:
    from demo.app import launch

    home = folder.open_home(None, root=trainer.root)
    page, address, _ = launch(home, is_open=False, trainer=trainer)
    yield address
    page.close(verbose=False)


def until(condition: Callable[[], bool], trainer: Trainer) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end_s, trainer.log_tail("real")
        time.sleep(0.1)


def test_a_real_training_is_started_paused_stopped_and_resumed(
    visit: Callable[..., Any], url: str, trainer: Trainer
) -> None:
    run = trainer.root / "real"

    def steps() -> list[int]:
        return [line["step"] for line in folder.read_metrics(run, "sft")]

    page = visit(url)
    page.get_by_role("tab", name="Train", exact=True).click()
    page.locator("#new-run button").first.click()
    page.locator("#run-name input, #run-name textarea").first.fill("real")
    for key, value in SETTINGS.items():
        page.locator(f"#setting-{key.replace('.', '-')} input").fill(str(value))
    page.wait_for_function(
        "document.querySelector('#command textarea').value.includes('sft.steps')"
    )
    page.locator("#start").click()

    until(lambda: len(steps()) > 3, trainer)
    page.wait_for_selector(
        "#badge .badge-training", timeout=LIMIT_S * 1000
    )  # it follows the new run
    page.wait_for_selector("#stepper .step.active", timeout=LIMIT_S * 1000)
    page.reload()
    page.wait_for_selector("#badge .badge-training")
    page.get_by_role("tab", name="Train", exact=True).click()
    page.wait_for_function("document.querySelector('#stepper').innerText.includes('training')")

    page.locator("#pause").click()
    page.wait_for_function("document.querySelector('#train-status').innerText.includes('Paused')")
    time.sleep(0.5)  # the step it was in
    paused = steps()
    time.sleep(1)
    assert steps() == paused and len(paused) < SFT_STEPS
    page.locator("#resume").click()
    until(lambda: len(steps()) > len(paused), trainer)

    page.locator("#stop").click()
    until(lambda: trainer.current() is None, trainer)
    saved = steps()
    assert len(saved) < SFT_STEPS, "too quick to be stopped: raise SFT_STEPS"
    assert (run / "stages" / "sft" / "LATEST").is_file()
    page.wait_for_function("!document.querySelector('#badge').innerText.includes('TRAINING')")

    page.locator("#resume").click()
    until(lambda: folder.is_finished(run), trainer)
    until(lambda: trainer.current() is None, trainer)
    assert steps() == list(range(SFT_STEPS))  # no step lost or done twice
    page.wait_for_function("document.querySelector('#train-status').innerText.includes('Finished')")
    assert page.locator("#stepper .step.done").count() == 4
