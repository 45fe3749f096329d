"""A run that is terminated at random instants ends with the bytes of an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from prism_lite.files import read_jsonl
from prism_lite.recipe import to_dict
from prism_lite.types import STAGES
from tests.pipeline.test_resume import REPOSITORY, check_same_as

_MOST_STARTS = 12


def last_checkpoint(folder: Path, stage: str) -> int:
    steps = [int(p.name.split("-")[1]) for p in (folder / "stages" / stage).glob("checkpoint-*")]
    return max(steps, default=0)


def check_lost_at_most_one_step(folder: Path) -> None:
    """Every logged step is in a checkpoint, or in a finished stage."""
    for stage in STAGES:
        steps = {m["step"] for m in read_jsonl(folder / "metrics.jsonl") if m["stage"] == stage}
        if steps and not (folder / "stages" / stage / "final").is_dir():
            assert max(steps) + 1 <= last_checkpoint(folder, stage) + 1, stage


@pytest.mark.slow
def test_sigterm_at_random_instants_loses_at_most_the_step_in_progress(micro_run, tmp_path):
    config, reference, _, _ = micro_run
    recipe, folder = tmp_path / "micro.yaml", tmp_path / "r [a]"
    recipe.write_text(yaml.safe_dump(to_dict(config)))
    command = [
        sys.executable,
        "-m",
        "prism_lite",
        "run",
        "--recipe",
        str(recipe),
        "--out",
        str(folder),
    ]
    rng, codes = random.Random(14), []
    for _ in range(_MOST_STARTS):
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if len(codes) < _MOST_STARTS - 1:
            time.sleep(rng.uniform(0.3, 12.0))
            process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=120)
        codes.append(process.returncode)
        assert "Traceback" not in out + error, out + error
        assert process.returncode in (0, 3), (process.returncode, error)
        check_lost_at_most_one_step(folder)
        if process.returncode == 0:
            break
        if "resume with" in out:
            assert f"--out '{folder}'" in out, out
    assert codes[-1] == 0 and 3 in codes, codes
    check_same_as(reference, folder)
    assert json.loads((folder / "env.json").read_text())["command"].startswith("prism-lite run")
