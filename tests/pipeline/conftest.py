"""`play`: one stage on top of the finished stages of the micro run."""

from __future__ import annotations

import shutil

import pytest

from prism_lite.digits.base_model import base_folder
from prism_lite.files import read_jsonl
from prism_lite.models.backbone import load_backbone
from prism_lite.rewards.load import load_rewards
from prism_lite.runs.folder import open_run
from prism_lite.stages.context import Context
from tests.micro import micro_recipe, quiet_console


@pytest.fixture
def play(micro_run, task, tmp_path):
    """`play(stage_function, **overrides)` runs one stage after those of the micro run.

    `keep=True` resumes the stage that was played before. Returns the settings, the run folder and its
    metrics; `play.text` is what was printed.
    """
    _, finished, _, _ = micro_run

    def run(stage, *, keep=False, **overrides):
        config, console = micro_recipe(**overrides), quiet_console()
        folder = tmp_path / "game"
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        own = {"run_rlvr": "rlvr", "run_warmup": "warmup"}.get(stage.__name__, "align")
        with open_run(folder, config, console) as opened:
            for name in ("sft", "warmup", "align"):
                if name != own:
                    source = finished / "stages" / name / "final"
                    target = folder / "stages" / name / "final"
                    shutil.copytree(source, target, dirs_exist_ok=True)
            backbone = load_backbone(config.model, config.lora, base_folder(config), seed=0)
            stage(Context(config, opened, backbone, task, load_rewards(config)))
        run.text = " ".join(console.file.getvalue().split())  # lines are wrapped
        return config, folder, read_jsonl(folder / "metrics.jsonl")

    return run
