"""A small study of two arms and two seeds: its files, and that no run is repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from prism_lite import pipeline
from prism_lite.files import read_jsonl
from prism_lite.recipe import to_dict
from prism_lite.types import Stopped
from tests.micro import micro_recipe
from tests.pipeline.commands import check_refused, in_process

ARMS, SEEDS = ("none", "adversarial"), (0, 3)
NAMES = ("start", *ARMS)
# Shorter than the micro recipe: six runs.
SHORT = {
    "sft__steps": 2,
    "warmup__steps": 2,
    "warmup__num_probe": 4,
    "align__steps": 1,
    "align__group_size": 4,
    "rlvr__steps": 1,
    "eval__num_samples": 2,
    "data__num_heldout": 4,
}


@pytest.fixture(scope="module")
def recipe(micro_cache, tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "micro.yaml"
    file.write_text(yaml.safe_dump(to_dict(micro_recipe(**SHORT))))
    return file


def arguments(recipe: Path, out: Path) -> tuple[object, ...]:
    return ("study", "--recipe", recipe, "--out", out, "--arms", *ARMS, "--seeds", *SEEDS)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """Folder of the finished study and what was printed. Read it, do not change it."""
    out = tmp_path_factory.mktemp("study") / "s"
    done = in_process(*arguments(recipe, out))
    assert done.returncode == 0, done.stderr
    return out, " ".join(done.stdout.split())


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_the_arms_of_a_seed_start_from_one_sft_policy(finished):
    out, _ = finished
    for seed in SEEDS:
        home = out / f"seed-{seed}"
        start = load_file(home / "start/policy/adapter_model.safetensors")
        for arm in ARMS:
            loaded = load_file(home / arm / "stages/sft/final/policy.safetensors")
            assert loaded.keys() == start.keys()
            assert all((loaded[name] == start[name]).all() for name in start)
            shared = results_of(home / "start")["stages"]["sft"]
            own = results_of(home / arm)["stages"]["sft"]
            assert {k: v for k, v in own.items() if k != "seconds"} == {
                k: v for k, v in shared.items() if k != "seconds"
            }, "the same prompts and random numbers"
            assert not [m for m in read_jsonl(home / arm / "metrics.jsonl") if m["stage"] == "sft"]


def test_arms_did_what_they_describe(finished):
    out, _ = finished
    for seed in SEEDS:
        none, adversarial = out / f"seed-{seed}/none", out / f"seed-{seed}/adversarial"
        assert not (none / "stages/align").exists() and not (none / "stages/warmup").exists()
        assert (adversarial / "discriminator/discriminator.safetensors").is_file()
        rollouts = {
            folder.name: sum(len(read_jsonl(p)) for p in (folder / "rollouts").iterdir())
            for folder in (none, adversarial)
        }
        assert rollouts == {"none": 2 * 2 * 4, "adversarial": 2 * 2 * 4}


def test_study_json_holds_the_figures_of_the_runs(finished):
    out, printed = finished
    study = json.loads((out / "study.json").read_text())
    assert study["seeds"] == list(SEEDS) and study["arms"] == list(ARMS)
    assert study["n"] == 4 and study["num_samples"] == 2
    for arm in ARMS:
        accuracies = []
        for seed in SEEDS:
            results = results_of(out / f"seed-{seed}/{arm}")
            figures = study["runs"][arm][str(seed)]
            expected = results["stages"]["rlvr"]
            assert figures["accuracy"] == expected["accuracy"]
            assert figures["caption_accuracy"] == expected["caption_accuracy"]
            trained = ("warmup", "align", "rlvr") if arm == "adversarial" else ("rlvr",)
            spent = sum(results["seconds"][stage] for stage in trained)
            assert figures["seconds"] == pytest.approx(spent)
            accuracies.append(figures["accuracy"])
        assert study["means"][arm]["accuracy"] == pytest.approx(sum(accuracies) / 2)
    accuracy = [item for item in study["differences"] if item["figure"] == "accuracy"]
    (item,) = accuracy
    by_seed = [
        study["runs"]["adversarial"][str(s)]["accuracy"] - study["runs"]["none"][str(s)]["accuracy"]
        for s in SEEDS
    ]
    assert item["other"] == "none" and item["by_seed"] == pytest.approx(by_seed)
    assert item["conclusion"] in printed
    assert "Every arm makes 2 policy updates after SFT and learns from 16 completions" in printed
    text = (out / "study.md").read_text()
    assert f"{study['means']['none']['accuracy']:.3f}" in text and item["conclusion"] in text
    with Image.open(out / "study.png") as picture:
        assert picture.width > 600 and len(set(picture.convert("L").tobytes())) > 20


def test_a_finished_study_is_read_and_not_repeated(finished, recipe, monkeypatch):
    out, _ = finished
    before = (out / "study.json").read_bytes()
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: pytest.fail("done again"))
    done = in_process(*arguments(recipe, out))
    assert done.returncode == 0 and done.stdout.count("already done") == 6
    assert (out / "study.json").read_bytes() == before


def write_finished(folder: Path, stages: tuple[str, ...]) -> None:
    """What the study reads of a run."""
    figures = {"accuracy": 0.5, "format_rate": 1.0, "mean_tokens": 9.0}
    results = {"task": "digits", "n": 4, "seed": 0, "seconds": dict.fromkeys(stages, 1.0)}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    (folder / "results.json").write_text(
        json.dumps(results | {"stages": {stages[-1]: figures | {"ci95": {}}}})
    )
    (folder / "README.md").write_text("card")


def test_a_stopped_study_exits_3_and_is_resumed(recipe, tmp_path, monkeypatch):
    out, asked = tmp_path / "s", []

    def run(config, folder, *, stages, console):
        asked.append(str(Path(folder).relative_to(out)))
        if len(asked) == 3:
            raise Stopped("stopped in stage align after step 1 of 2")
        write_finished(Path(folder), stages)
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))

    monkeypatch.setattr(pipeline, "run", run)
    command = [str(argument) for argument in arguments(recipe, out)]
    stopped = in_process(*command)
    assert stopped.returncode == 3
    line = "stopped in stage align after step 1 of 2; resume with: prism-lite " + " ".join(command)
    assert stopped.stdout.splitlines()[-1] == line
    assert not (out / "study.json").exists()
    assert asked == ["seed-0/start", "seed-0/none", "seed-0/adversarial"]
    done = in_process(*command)
    assert done.returncode == 0, done.stderr
    assert asked[3:] == ["seed-0/adversarial", *(f"seed-3/{name}" for name in NAMES)]
    assert done.stdout.count("already done") == 2


def test_other_settings_are_refused_before_anything_starts(finished, recipe, monkeypatch):
    out, _ = finished
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: pytest.fail("too late"))
    check_refused(in_process(*arguments(recipe, out), "rlvr.steps=9"), "rlvr.steps", "seed-0/none")
    inside = out / "seed-0" / "start"
    check_refused(in_process(*arguments(recipe, inside)), "holds a run")


def test_a_dry_run_lists_the_runs(recipe, tmp_path):
    out = tmp_path / "s"
    done = in_process(*arguments(recipe, out), "rlvr.steps=3", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("prism-lite")]
    assert [line.split()[1] for line in lines] == ["sft", "sft", "rlvr", "run"] * 2
    assert f"--out {out}/seed-3/adversarial rlvr.steps=3 seed=3" in lines[-1]
    assert "# seed 3, none: 4 policy updates after SFT, from 32 completions" in done.stdout
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--arms", "none", "ours"), ("'ours'", "one-expert")),
        (("--seeds", "0", "many"), ("--seeds many",)),
        (("--seeds", "0", "1", "align.stepps=2"), ("align.stepps", "align.steps")),
    ],
)
def test_wrong_options_exit_2(options, words):
    check_refused(in_process("study", "--dry-run", *options), *words)


def test_the_bar_over_runs_lives_beside_the_bars_of_a_run(recipe, tmp_path, monkeypatch):
    """On a terminal: two live displays at once."""
    from prism_lite.study import run as study
    from prism_lite.study.arms import plan_study

    console = Console(force_terminal=True, width=100, file=(tmp_path / "screen").open("w"))

    def run(config, folder, *, stages, console):
        write_finished(Path(folder), stages)
        from prism_lite.runs.folder import RunFolder

        assert list(
            RunFolder(Path(folder), config, console).with_progress([1, 2], "evaluating")
        ) == [1, 2]

    monkeypatch.setattr(pipeline, "run", run)
    planned = plan_study(str(recipe), [], arms=["none"], seeds=[0], out=tmp_path / "s")
    study.run_study(planned, tmp_path / "s", console=console)
    console.file.close()
    screen = (tmp_path / "screen").read_text()
    assert "seed 0, none" in screen and "evaluating" in screen and "2/2" in screen
