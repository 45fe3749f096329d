"""A run that was stopped, killed or damaged ends with the same bytes as an uninterrupted one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prism_lite import pipeline
from prism_lite.files import read_jsonl
from prism_lite.recipe import to_dict
from prism_lite.runs.checkpoint import Trained
from prism_lite.runs.folder import open_run
from prism_lite.types import STAGES, Stopped
from tests.micro import micro_recipe, quiet_console

REPOSITORY = Path(__file__).parents[2]


def policy_bytes(folder: Path) -> dict[str, bytes]:
    files = [p for p in (folder / "policy").rglob("*") if p.is_file()]
    assert any(p.suffix == ".safetensors" for p in files)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def final_bytes(folder: Path) -> dict[str, bytes]:
    files = folder.glob("stages/*/final/*.safetensors")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def check_same_as(reference: Path, folder: Path) -> None:
    """Weights byte for byte, results but for times, and each step logged once."""
    assert final_bytes(folder) == final_bytes(reference)
    assert policy_bytes(folder) == policy_bytes(reference)
    counts = Counter((m["stage"], m["step"]) for m in read_jsonl(folder / "metrics.jsonl"))
    expected = Counter((m["stage"], m["step"]) for m in read_jsonl(reference / "metrics.jsonl"))
    assert counts == expected
    first, second = (json.loads((f / "results.json").read_text()) for f in (reference, folder))
    for results in (first, second):
        results.pop("seconds", None)
        for figures in results["stages"].values():
            figures.pop("seconds", None)
    assert first == second


def cut_back(finished: Path, folder: Path, stage: str) -> Path:
    """Copy a finished run and cut the copy back to a kill at the end of `stage`: its checkpoints are
    there, but neither its final weights nor anything later. Return the stage's folder."""
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "stages" / stage / "final")
    shutil.rmtree(folder / "policy")
    shutil.rmtree(folder / "discriminator")
    results = json.loads((folder / "results.json").read_text())
    for later in STAGES[STAGES.index(stage) :]:
        results["stages"].pop(later, None)
        if later != stage:
            shutil.rmtree(folder / "stages" / later)
    write_results(folder, results)
    lines = read_jsonl(folder / "metrics.jsonl")
    kept = STAGES[: STAGES.index(stage) + 1]
    text = "".join(json.dumps(m) + "\n" for m in lines if m["stage"] in kept)
    (folder / "metrics.jsonl").write_text(text)
    return folder / "stages" / stage


def write_results(folder: Path, results: dict) -> None:
    """Write results.json as an edition without hashes did."""
    (folder / "results.json").write_text(json.dumps(results))
    (folder / ".results.json.sha256").unlink()


def test_the_last_two_checkpoints_are_kept(micro_run):
    _, folder, _, _ = micro_run
    for stage in STAGES:
        names = {p.name for p in (folder / "stages" / stage).glob("checkpoint-*")}
        assert names == {"checkpoint-2", "checkpoint-4"}
        assert (folder / "stages" / stage / "LATEST").read_text().strip() == "checkpoint-4"


@pytest.mark.parametrize("stage", STAGES)
def test_resuming_a_stage_from_its_checkpoint_gives_the_same_bytes(micro_run, tmp_path, stage):
    config, finished, _, _ = micro_run
    cut_back(finished, tmp_path / "r", stage)
    pipeline.run(config, tmp_path / "r", console=quiet_console())
    check_same_as(finished, tmp_path / "r")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_weights(checkpoint: Path) -> str:
    truncate(checkpoint / "policy.safetensors")
    return "torn"


def damage_optimizer(checkpoint: Path) -> str:
    (checkpoint / "policy.optimizer.safetensors").unlink()
    return "torn"


def damage_state(checkpoint: Path) -> str:
    truncate(checkpoint / "state.json")
    return "torn"


def flip_one_bit(checkpoint: Path) -> str:
    path = checkpoint / "policy.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    return "torn"


def make_foreign(checkpoint: Path) -> str:
    state = json.loads((checkpoint / "state.json").read_text())
    state["settings"]["seed"] += 1
    write_state(checkpoint, state)
    return "foreign"


def write_state(checkpoint: Path, state: dict) -> None:
    """Write state.json with a digest that fits: SHA-256 of its JSON with sorted keys."""
    state.pop("digest")
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (checkpoint / "state.json").write_text(json.dumps(state | {"digest": digest}))


@pytest.mark.parametrize(
    "damage", [damage_weights, damage_optimizer, damage_state, flip_one_bit, make_foreign]
)
def test_a_bad_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    micro_run, tmp_path, damage
):
    config, finished, _, _ = micro_run
    stage = cut_back(finished, tmp_path / "r", "rlvr")
    word = damage(stage / "checkpoint-4")
    console = quiet_console()
    pipeline.run(config, tmp_path / "r", console=console)
    printed = " ".join(console.file.getvalue().split())
    assert "checkpoint-4" in printed and "refused" in printed and word in printed
    assert "checkpoint-2 refused" not in printed
    check_same_as(finished, tmp_path / "r")


def test_without_any_good_checkpoint_the_stage_starts_again(micro_run, tmp_path):
    config, finished, _, _ = micro_run
    stage = cut_back(finished, tmp_path / "r", "align")
    damage_weights(stage / "checkpoint-4")
    make_foreign(stage / "checkpoint-2")
    (stage / ".checkpoint-5.tmp").mkdir()  # a kill in the middle of writing
    console = quiet_console()
    pipeline.run(config, tmp_path / "r", console=console)
    printed = " ".join(console.file.getvalue().split())
    assert printed.count("refused") == 2
    check_same_as(finished, tmp_path / "r")


def test_a_torn_final_is_refused_by_name(micro_run, tmp_path):
    config, finished, _, _ = micro_run
    stage = cut_back(finished, tmp_path / "r", "align")
    damage_weights(stage.parent / "sft" / "final")
    with pytest.raises(ValueError, match=r"sft/final.*policy\.safetensors"):
        pipeline.run(config, tmp_path / "r", console=quiet_console())


def wait_for_step(folder: Path, stage: str, step: int, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        lines = read_jsonl(folder / "metrics.jsonl")
        if any(m["stage"] == stage and m["step"] >= step for m in lines):
            return
        time.sleep(0.002)
    raise TimeoutError(f"{stage} did not reach step {step}")


@pytest.mark.parametrize("stage", ["warmup", "rlvr"])
def test_control_json_stops_a_run_at_the_next_step(micro_run, tmp_path, stage):
    config, finished, _, _ = micro_run
    folder = tmp_path / "r"

    def stop() -> None:
        wait_for_step(folder, stage, 0)
        (folder / "control.json").write_text('{"command": "stop"}')

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopped, match="step"):
        pipeline.run(config, folder, console=quiet_console())
    thread.join()
    assert not (folder / "stages" / "rlvr" / "final").exists()
    pipeline.run(config, folder, console=quiet_console())
    check_same_as(finished, folder)


def test_pause_holds_a_run_until_it_is_resumed(micro_run, tmp_path):
    config, finished, _, _ = micro_run
    folder = tmp_path / "r"
    waited = []

    def pause_then_resume() -> None:
        wait_for_step(folder, "sft", 0)
        (folder / "control.json").write_text('{"command": "pause"}')
        time.sleep(0.3)
        steps_before = len(read_jsonl(folder / "metrics.jsonl"))
        time.sleep(0.5)
        waited.append((steps_before, len(read_jsonl(folder / "metrics.jsonl"))))
        (folder / "control.json").write_text('{"command": "resume"}')

    thread = threading.Thread(target=pause_then_resume)
    thread.start()
    pipeline.run(config, folder, console=quiet_console())
    thread.join()
    assert waited[0][0] == waited[0][1]
    check_same_as(finished, folder)


def start_process(config, folder: Path, tmp_path: Path) -> subprocess.Popen:
    recipe = tmp_path / "micro.yaml"
    recipe.write_text(yaml.safe_dump(to_dict(config)))
    return subprocess.Popen(
        [sys.executable, "-m", "prism_lite", "run", "--recipe", recipe, "--out", folder],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("stage", "sent"),
    [("sft", signal.SIGINT), ("align", signal.SIGKILL)],
)
def test_a_process_stopped_or_killed_in_any_stage_is_resumed(micro_run, tmp_path, stage, sent):
    config, finished, _, _ = micro_run
    folder = tmp_path / "r"
    process = start_process(config, folder, tmp_path)
    wait_for_step(folder, stage, 2)
    process.send_signal(sent)
    out, error = process.communicate(timeout=60)
    if sent == signal.SIGINT:
        assert process.returncode == 3, error
        assert "Traceback" not in error
        said = " ".join(out.split())
        assert "resume" in said and "--out" in said and str(folder) in said.replace(" ", "")
    else:
        assert process.returncode == -signal.SIGKILL
    assert not (folder / "stages" / "rlvr" / "final").exists()
    pipeline.run(config, folder, console=quiet_console())
    check_same_as(finished, folder)


def test_a_second_process_on_the_same_folder_is_refused(micro_run, tmp_path):
    config, finished, _, _ = micro_run
    cut_back(finished, tmp_path / "r", "rlvr")
    with (
        open_run(tmp_path / "r", config, quiet_console()),
        pytest.raises(ValueError, match="another process"),
    ):
        pipeline.run(config, tmp_path / "r", console=quiet_console())


@pytest.mark.parametrize("stage", ["warmup", "align", "rlvr"])
def test_a_stage_alone_names_the_stage_that_is_missing(micro_cache, tmp_path, stage):
    before = {"warmup": "sft", "align": "sft", "rlvr": "align"}[stage]
    with pytest.raises(
        ValueError, match=f"stage {stage} continues from stage {before}, .* not fin"
    ):
        pipeline.run(micro_recipe(), tmp_path / "r", stages=(stage,), console=quiet_console())
    assert not (tmp_path / "r").exists()


def test_a_stage_without_rows_is_refused_before_anything_is_trained(micro_cache, tmp_path):
    row = {
        "query": "How high?",
        "response": "<caption>a</caption><think>b</think><answer>3</answer>",
    }
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row | {"query": f"How high {i}?"}) + "\n" for i in range(4)))
    config = micro_recipe(data__task="files", data__train=str(rows))
    with pytest.raises(
        ValueError, match=r"stage warmup has no rows.*teacher completion.*data\.align"
    ):
        pipeline.run(config, tmp_path / "r", console=quiet_console())
    assert not (tmp_path / "r").exists()


def test_rlvr_can_start_from_sft(micro_run, tmp_path):
    """Without alignment: the step from the SFT policy is small, so it did start there."""
    _, finished, _, _ = micro_run
    config = micro_recipe(rlvr__start="sft", rlvr__steps=1)
    folder = tmp_path / "r"
    with open_run(folder, config, quiet_console()):
        shutil.copytree(finished / "stages" / "sft" / "final", folder / "stages" / "sft" / "final")
    pipeline.run(config, folder, stages=("rlvr",), console=quiet_console())
    before, after = (
        load_file(folder / "stages" / stage / "final" / "policy.safetensors")
        for stage in ("sft", "rlvr")
    )
    moved = max(float((after[k] - before[k]).abs().max()) for k in before)
    assert moved <= 1.1 * config.rlvr.optim.learning_rate


def test_a_run_that_ran_out_of_memory_resumes_with_smaller_packs(micro_run, tmp_path):
    config, finished, _, _ = micro_run
    cut_back(finished, tmp_path / "r", "rlvr")
    smaller = micro_recipe(
        model__max_pack_tokens=config.model.max_pack_tokens // 8,
        model__gradient_checkpointing=True,
        sampling__max_rows=4,
        save_every=3,
    )
    console = quiet_console()
    pipeline.run(smaller, tmp_path / "r", console=console)
    assert "refused" not in console.file.getvalue()
    steps = [
        m["step"] for m in read_jsonl(tmp_path / "r" / "metrics.jsonl") if m["stage"] == "rlvr"
    ]
    assert steps == list(range(config.rlvr.steps))
    first, second = (
        load_file(path / "stages" / "rlvr" / "final" / "policy.safetensors")
        for path in (finished, tmp_path / "r")
    )
    for name in first:  # the same step but for the order of sums
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-5)


def test_stop_at_the_last_step_of_a_stage_saves_it(tmp_path):
    config = micro_recipe()
    saved = {"policy": {"weight": torch.arange(3.0)}}
    with open_run(tmp_path / "r", config, quiet_console()) as run:
        with pytest.raises(Stopped, match="after step 2 of 2"):
            for _ in run.steps("sft", 1, 2, lambda: Trained(saved)):
                run.request_stop()
        restored = run.restore("sft")
        assert restored is not None and restored.step == 2
        assert torch.equal(restored.tensors["policy"]["weight"], torch.arange(3.0))


def test_a_stop_is_obeyed_between_two_pieces_of_an_evaluation(tmp_path):
    with open_run(tmp_path / "r", micro_recipe(), quiet_console()) as run:
        done = []
        with pytest.raises(Stopped, match="while evaluating"):
            for piece in run.with_progress([1, 2, 3], "evaluating sft"):
                done.append(piece)
                run.request_stop()
        assert done == [1]


def test_a_line_cut_short_by_a_kill_does_not_spoil_the_next_one(tmp_path):
    with open_run(tmp_path / "r", micro_recipe(), quiet_console()) as run:
        run.log("sft", 0, {"loss": 1.0})
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "sft", "st')
        run.restore("warmup")
        run.log("warmup", 0, {"loss": 2.0})
        assert [(m["stage"], m["loss"]) for m in run.metrics()] == [("sft", 1.0), ("warmup", 2.0)]


def test_data_that_changed_is_refused_before_the_model_is_loaded(
    micro_cache, tmp_path, monkeypatch
):
    rows = tmp_path / "rows.jsonl"
    text = "<caption>a</caption><think>b</think><answer>3</answer>"
    lines = (json.dumps({"query": f"How high {i}?", "response": text}) + "\n" for i in range(4))
    rows.write_text("".join(lines))
    config = micro_recipe(data__task="files", data__train=str(rows), sft__steps=1)
    folder = tmp_path / "r"
    pipeline.run(config, folder, stages=("sft",), console=quiet_console())
    rows.write_text(rows.read_text().replace("How high 0", "How deep 0"))
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "load_backbone", None)  # calling it would fail
        with pytest.raises(ValueError, match=r"data\.train = .*rows\.jsonl has changed"):
            pipeline.run(config, folder, stages=("sft",), console=quiet_console())
    console = quiet_console()
    pipeline.run(config, folder, stages=("sft",), console=console, accept_changed_inputs=True)
    assert "accepted: data.train:" in console.file.getvalue()
    assert "rows.jsonl has changed |" in (folder / "README.md").read_text()
    environment = json.loads((folder / "env.json").read_text())
    [earlier] = environment["earlier_sessions"]
    assert earlier["data"] != environment["data"]


def test_seconds_of_several_sessions_add_up(micro_run, tmp_path):
    config, finished, _, _ = micro_run
    cut_back(finished, tmp_path / "r", "rlvr")
    path = tmp_path / "r" / "results.json"
    results = json.loads(path.read_text())
    results["seconds"] = {"rlvr": 1000.0}
    path.write_text(json.dumps(results))
    assert pipeline.run(config, tmp_path / "r", console=quiet_console())["seconds"]["rlvr"] > 1000


def test_a_folder_with_other_things_in_it_is_refused(micro_cache, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        pipeline.run(micro_recipe(), tmp_path, console=quiet_console())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
