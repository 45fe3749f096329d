"""Run folders, and the training process with a stand-in for the training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from demo.runs import folder, samples, trainer
from demo.runs.folder import SAMPLE_ID, Home
from demo.runs.trainer import Trainer
from prism_lite.digits.base_model import STORED_BASE
from prism_lite.recipe import load_recipe, to_dict
from prism_lite.stages.rlvr import control_config
from prism_lite.types import STAGES

# Behaves as `prism-lite run`: logs a line per step, obeys control.json, resumes.
STAND_IN = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1]); out.mkdir(exist_ok=True)
(out / "config.yaml").write_text(
    "sft: {steps: 20000}\\nwarmup: {steps: 0}\\nalign: {steps: 0}\\nrlvr: {steps: 0}\\n"
    "data: {task: digits}\\n")
(out / "control.json").unlink(missing_ok=True)
metrics = out / "metrics.jsonl"
step = len(metrics.read_text().splitlines()) if metrics.exists() else 0
print("from step", step, flush=True)
def command():
    try: return json.loads((out / "control.json").read_text()).get("command")
    except (OSError, ValueError): return None
while step < 20000:
    with metrics.open("a") as f: f.write(json.dumps({"stage": "sft", "step": step, "loss": 1}) + "\\n")
    step += 1
    time.sleep(0.02)
    while command() == "pause": time.sleep(0.02)
    if command() == "stop": sys.exit(3)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> tuple[str, ...]:
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    return (sys.executable, str(program))


@pytest.fixture
def training(tmp_path: Path, stand_in: tuple[str, ...]):
    trainer = Trainer(tmp_path / "runs", program=stand_in)
    yield trainer
    running = trainer.current()
    if running is not None:
        os.kill(running.pid, signal.SIGKILL)
        until_ended(trainer)


def steps_of(path: Path) -> int:
    file = path / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def until(condition, seconds: float = 10.0) -> None:
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.02)


def until_ended(trainer: Trainer) -> None:
    until(lambda: trainer.current() is None)


def test_pause_resume_and_stop(training: Trainer) -> None:
    run = training.root / "a"
    training.start("a", [])
    until(lambda: steps_of(run) > 3)
    training.pause("a")
    time.sleep(0.2)
    num_steps = steps_of(run)
    time.sleep(0.3)
    assert steps_of(run) == num_steps
    training.resume("a")
    until(lambda: steps_of(run) > num_steps)
    training.stop("a")
    until_ended(training)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(len(steps)))


def test_a_second_start_is_refused_also_by_another_web_process(
    training: Trainer, stand_in: tuple[str, ...]
) -> None:
    running = training.start("a", [])
    with pytest.raises(ValueError, match=rf"'a' is training already \(process {running.pid}\)"):
        training.start("b", [])
    with pytest.raises(ValueError, match="training already"):
        Trainer(training.root, program=stand_in).start("b", [])


def test_a_killed_web_process_loses_nothing(training: Trainer, stand_in: tuple[str, ...]) -> None:
    """Another process starts the training and is killed; this one finds it and stops it."""
    code = (
        "import sys, time; from pathlib import Path; from demo.runs.trainer import Trainer\n"
        f"Trainer(Path({str(training.root)!r}), program={stand_in!r}).start('a', [])\n"
        "print('started', flush=True); time.sleep(60)"
    )
    web = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert web.stdout is not None and web.stdout.readline() == "started\n"
    until(lambda: steps_of(training.root / "a") > 0)
    web.kill()
    web.wait()
    running = training.current()
    assert running is not None and running.run_id == "a"
    before = steps_of(training.root / "a")
    until(lambda: steps_of(training.root / "a") > before)
    training.stop("a")
    until_ended(training)


def test_a_killed_training_leaves_a_stale_lock_and_resumes(training: Trainer) -> None:
    run = training.root / "a"
    first = training.start("a", [])
    until(lambda: steps_of(run) > 3)
    os.kill(first.pid, signal.SIGKILL)
    until_ended(training)
    assert (training.root / trainer.RECORD).exists() and training.current() is None
    num_steps = steps_of(run)
    assert "last checkpoint" in training.resume("a")
    until(lambda: steps_of(run) > num_steps)
    assert f"from step {num_steps}" in training.log_tail("a")


def test_a_process_id_used_again_is_not_the_training(training: Trainer) -> None:
    training.root.mkdir()
    record = {"run_id": "a", "pid": os.getpid(), "created_s": 1.0}
    (training.root / trainer.RECORD).write_text(json.dumps(record))
    assert training.current() is None


@pytest.mark.parametrize("name", ["", "..", "../x", "/tmp/x", "A b", "a/b", "x" * 41, "-x"])
def test_invalid_names_are_refused(training: Trainer, name: str) -> None:
    with pytest.raises(ValueError, match="run name"):
        training.start(name, [])


def test_what_is_not_training_cannot_be_paused(training: Trainer) -> None:
    with pytest.raises(ValueError, match="not training"):
        training.pause("a")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    for name in ("old", "new"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("seed: 0\n")
    os.utime(tmp_path / "runs" / "old" / "config.yaml", (1, 1))
    return folder.open_home(None, root=tmp_path / "runs")


def test_the_newest_run_comes_first_and_the_sample_last(home: Home) -> None:
    assert home.first == "new"
    assert folder.run_ids(home) == ["new", "old", SAMPLE_ID]


def test_without_runs_the_sample_is_shown(tmp_path: Path) -> None:
    home = folder.open_home(None, root=tmp_path / "none")
    assert folder.run_ids(home) == [SAMPLE_ID] and home.first == SAMPLE_ID


@pytest.mark.parametrize("name", ["..", "../runs/new", "/etc", "new/../old", "", "."])
def test_no_path_is_a_run(home: Home, name: str) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        folder.run_path(home, name)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run folder"):
        folder.open_home(str(tmp_path))


def test_a_line_being_written_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"stage": "sft", "step": 0}\n{"stage": "sft", "st')
    assert folder.read_metrics(tmp_path) == [{"stage": "sft", "step": 0}]
    file.write_text('{"stage": "sft", "step": 0}\n{"stage": "sft", "step": 1}\n')
    assert len(folder.read_metrics(tmp_path, "sft")) == 2


def test_the_sample_run_is_small_and_complete() -> None:
    files = [path for path in folder.SAMPLE_RUN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    weights = [path for path in files if path.suffix in (".safetensors", ".pt", ".bin")]
    size = sum(path.stat().st_size for path in [*weights, STORED_BASE / "model.safetensors"])
    assert size <= 6 * 2**20  # with the base, which ships with the package
    assert {path.parent.parent.name for path in weights} == {
        stage.stage for stage in folder.progress(folder.SAMPLE_RUN)
    }
    for path in weights:
        dtypes = {tensor.dtype for tensor in load_file(path).values()}
        assert dtypes == {torch.float16}
    config = yaml.safe_load((folder.SAMPLE_RUN / "config.yaml").read_text())
    num_steps = {stage: config[stage]["steps"] for stage in STAGES}
    if config["rlvr"]["control"]:
        num_steps["control"] = control_config(load_recipe(folder.SAMPLE_RUN / "config.yaml")).steps
    progress = {stage.stage: stage for stage in folder.progress(folder.SAMPLE_RUN)}
    assert set(progress) == set(num_steps)
    for stage, num in num_steps.items():
        steps = {line["step"] for line in folder.read_metrics(folder.SAMPLE_RUN, stage)}
        # the warm-up may end early, and logs its last probe as one more step
        last = max(steps) if stage == "warmup" else num - 1
        assert steps == set(range(last + 1)) and last <= num
        assert progress[stage].num_steps == num
    assert folder.is_finished(folder.SAMPLE_RUN)


def test_rlvr_alone_is_a_stage_where_the_run_trains_it(tmp_path: Path) -> None:
    for changes, trained in (
        ([], ["sft", "warmup", "align", "rlvr"]),
        (["rlvr.control=true"], ["sft", "control", "warmup", "align", "rlvr"]),
        (["align.method=dpo"], ["sft", "align", "rlvr"]),
    ):
        settings = ["rlvr.control=false", "rlvr.game=off", "rlvr.group_size=6", *changes]
        config = load_recipe("tiny", settings)
        path = tmp_path / "-".join(trained)
        path.mkdir()
        (path / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
        stages = {stage.stage: stage.num_steps for stage in folder.progress(path)}
        assert list(stages) == trained
        assert ("control" in folder.shown_stages(path)) == config.rlvr.control
        assert stages.get("control", control_config(config).steps) == control_config(config).steps


def test_the_recording_carries_every_prompt_that_it_names() -> None:
    kept = [
        *folder.read_lines(folder.SAMPLE_RUN / "demo" / "compare.jsonl"),
        *folder.read_lines(folder.SAMPLE_RUN / "demo" / "groups.jsonl"),
        *(
            record
            for stage in ("align", "rlvr")
            for step in folder.rollout_steps(folder.SAMPLE_RUN, stage)
            for record in folder.read_rollouts(folder.SAMPLE_RUN, stage, step)
        ),
    ]
    lines = {
        line["id"]: line for line in folder.read_lines(folder.SAMPLE_RUN / "demo" / "samples.jsonl")
    }
    assert kept
    line: dict[str, Any] = {}
    for record in kept:
        line = lines[record["prompt_id"]]
        assert record.get("picture_ids", line["picture_ids"]) == line["picture_ids"]
    sample = samples.recorded_sample(line)
    assert samples.sample_line(sample) == line
    assert sample.pictures[0].open().size[1] == 32


def test_recorded_groups_are_in_order_of_advantage_and_shares_add_up() -> None:
    for group in folder.read_lines(folder.SAMPLE_RUN / "demo" / "groups.jsonl"):
        assert [row["who"] for row in group["rows"]].count("teacher") == 1
        assert group["rows"][0]["who"] == "teacher"
        advantages = [row["advantage"] for row in group["rows"][1:]]
        assert advantages == sorted(advantages, reverse=True)
        assert abs(sum(advantages)) < 1e-3
        for row in group["rows"]:
            for part in row.get("routing", {}).values():
                for weights_TE in part["weights"]:
                    assert len(weights_TE) == len(part["tokens"])
                    for weights_E in weights_TE:
                        assert abs(sum(weights_E) - 1) < 5e-3
