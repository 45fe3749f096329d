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

ARMS, SEEDS = ("none", "frozen", "game-on"), (1, 2)
FIGURES = ("transfer_accuracy", "caption_accuracy", "accuracy", "think_validity", "format_rate")
NAMES = ("start", *ARMS)
# Shorter than the micro recipe: eight runs.
SHORT = {
    "sft__steps": 2,
    "warmup__steps": 2,
    "warmup__num_probe": 4,
    "align__steps": 1,
    "align__group_size": 4,
    "rlvr__steps": 1,
    "eval__num_samples": 2,
    "data__num_heldout": 4,
    "data__num_transfer": 4,
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
        trained = load_file(home / "start/stages/sft/final/policy.safetensors")
        assert trained.keys() == start.keys()
        for arm in ARMS:
            loaded = load_file(home / arm / "stages/sft/final/policy.safetensors")
            assert all((loaded[name] == start[name]).all() for name in start)
            assert "sft" not in results_of(home / arm)["seconds"], "not trained again"
            assert set(results_of(home / arm)["stages"]) == {"rlvr"}, "evaluated once"
        assert set(results_of(home / "start")["stages"]) == {"base", "sft"}


def test_arms_did_what_they_describe(finished):
    out, _ = finished
    for seed in SEEDS:
        none, game_on = out / f"seed-{seed}/none", out / f"seed-{seed}/game-on"
        assert not (none / "stages/align").exists() and not (none / "stages/warmup").exists()
        assert (game_on / "discriminator/discriminator.safetensors").is_file()
        rollouts = {
            folder.name: sum(len(read_jsonl(p)) for p in (folder / "rollouts").iterdir())
            for folder in (none, game_on)
        }
        assert rollouts == {"none": 2 * 2 * 4, "game-on": 2 * 2 * 4}
        lines = read_jsonl(out / f"seed-{seed}/frozen/metrics.jsonl")
        assert not [line for line in lines if line["stage"] == "warmup" and "disc/loss" in line]


def test_study_json_has_the_contract(finished):
    out, printed = finished
    study = json.loads((out / "study.json").read_text())
    assert study["seeds"] == list(SEEDS) and [*study["arms"]] == list(ARMS)
    assert study["reference"] == "game-on"
    assert study["command"].startswith("prism-lite study --recipe")
    assert set(study["num_prompts"].values()) == {4} and study["num_samples"] == 2
    for arm in ARMS:
        for name in FIGURES:
            rates = []
            for seed in SEEDS:
                run = out / f"seed-{seed}/{arm}"
                value = study["arms"][arm]["seeds"][str(seed)][name]
                assert value == pytest.approx(results_of(run)["stages"]["rlvr"][name], abs=1e-6)
                of_prompts = json.loads((run / "evaluations/rlvr.json").read_text())[name]
                assert sum(of_prompts) / len(of_prompts) == pytest.approx(value, abs=1e-4)
                rates.append(value)
            mean = study["arms"][arm]["means"][name]
            assert mean["mean"] == pytest.approx(sum(rates) / 2, abs=1e-4)
            assert len(mean["bootstrap95"]) == len(mean["student95"]) == 2
    for item in study["differences"]:
        by_seed = [
            study["arms"]["game-on"]["seeds"][str(s)][item["figure"]]
            - study["arms"][item["other"]]["seeds"][str(s)][item["figure"]]
            for s in SEEDS
        ]
        assert item["by_seed"] == pytest.approx(by_seed, abs=1e-4)
    assert "Every arm makes 2 policy updates after SFT and learns from 16 completions" in printed
    text = (out / "study.md").read_text()
    assert f"{study['arms']['none']['means']['accuracy']['mean']:.3f}" in text
    with Image.open(out / "study.png") as picture:
        assert picture.width > 600 and len(set(picture.convert("L").tobytes())) > 20
    before = (out / "study.md").read_bytes()
    (out / "study.md").unlink()
    assert in_process("study", "--report", out).returncode == 0
    assert (out / "study.md").read_bytes() == before


def test_a_copied_warm_up_is_the_one_the_arm_would_have_trained(recipe, tmp_path):
    """The warm-up reads nothing of alignment's settings, so that arms may share it."""
    options = ("--recipe", recipe, "--seeds", 5, "align.steps=1", "rlvr.steps=1")
    both = ("--arms", "adversarial", "game-both")
    assert in_process("study", *both, "--out", tmp_path / "a", *options).returncode == 0
    alone = ("--arms", "game-both")
    assert in_process("study", *alone, "--out", tmp_path / "b", *options).returncode == 0
    first = json.loads((tmp_path / "a/study.json").read_text())["arms"]["game-both"]["seeds"]["5"]
    # The same folder, without the arm that trained the warm-up.
    assert in_process("study", *alone, "--out", tmp_path / "a", *options).returncode == 0
    again = json.loads((tmp_path / "a/study.json").read_text())["arms"]["game-both"]["seeds"]["5"]
    assert again == first
    seconds = [
        results_of(tmp_path / "a/seed-5" / arm)["seconds"] for arm in ("adversarial", "game-both")
    ]
    assert seconds[0]["warmup"] == seconds[1]["warmup"] > 0
    assert first["seconds"] > seconds[1]["warmup"]
    ends = [tmp_path / name / "seed-5/game-both/stages" for name in "ab"]
    for stage, name in (("warmup", "discriminator"), ("align", "policy"), ("rlvr", "policy")):
        one, other = (load_file(end / stage / "final" / f"{name}.safetensors") for end in ends)
        assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)
    seconds = [
        json.loads((tmp_path / name / "study.json").read_text())["arms"]["game-both"]["seeds"]["5"]
        for name in "ab"
    ]
    assert all(figures["seconds"] > 0 for figures in seconds)


def test_a_study_tunes_on_other_seeds_and_has_cells(recipe, tmp_path):
    out = tmp_path / "s"
    arguments = (
        "study", "--recipe", recipe, "--out", out, "--arms", "none", "dpo", "--seeds", 3,
        "--tuning-seeds", 8, "--tune", "rlvr.optim.learning_rate=1e-4,1e-3",
        "--teacher-errors", 0.01, 0.5, "align.steps=1", "rlvr.steps=1",
    )  # fmt: skip
    done = in_process(*arguments)
    assert done.returncode == 0, done.stderr
    study = json.loads((out / "study.json").read_text())
    assert [*study["cells"]] == ["teacher-0.01", "teacher-0.5"]
    for name, cell in study["cells"].items():
        assert json.loads((out / name / "study.json").read_text()) == cell
        for arm in cell["arms"].values():
            assert [item["seed"] for item in arm["tuning"]] == [8, 8]
            assert arm["tuned"][0] in arm["overrides"]
        assert (out / name / "seed-3/dpo").is_dir()
    assert (out / "teacher-0.01/seed-3/start").is_dir()
    assert not (out / "teacher-0.5/seed-3/start").exists()
    check_refused(in_process(*arguments[:9], 8, *arguments[10:]), "--tuning-seeds", "share 8")


def test_a_finished_study_is_read_and_not_repeated(finished, recipe, monkeypatch):
    out, _ = finished
    before = (out / "study.json").read_bytes()
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: pytest.fail("done again"))
    done = in_process(*arguments(recipe, out))
    assert done.returncode == 0 and done.stdout.count("already done") == 8
    assert (out / "study.json").read_bytes() == before


def write_finished(folder: Path, stages: tuple[str, ...]) -> None:
    """What the study reads of a run."""
    figures = {"accuracy": 0.5, "format_rate": 1.0, "mean_tokens": 9.0, "ci95": {}}
    results = {"task": "digits", "n": 4, "seed": 0, "seconds": dict.fromkeys(stages, 1.0)}
    for stage in stages:
        (folder / "stages" / stage / "final").mkdir(parents=True, exist_ok=True)
    evaluated = ("base", "sft") if stages == ("sft",) else ("rlvr",)
    results["stages"] = dict.fromkeys(evaluated, figures)
    (folder / "evaluations").mkdir()
    rates = {"accuracy": [0.5] * 4, "format_rate": [1.0] * 4}
    (folder / "evaluations" / f"{evaluated[-1]}.json").write_text(json.dumps(rates))
    (folder / "config.yaml").write_text("")
    (folder / "results.json").write_text(json.dumps(results))
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
    assert asked == ["seed-1/start", "seed-1/none", "seed-1/frozen"]
    done = in_process(*command)
    assert done.returncode == 0, done.stderr
    assert asked[3:] == ["seed-1/frozen", "seed-1/game-on", *(f"seed-2/{n}" for n in NAMES)]
    assert done.stdout.count("already done") == 2


def test_other_settings_are_refused_before_anything_starts(finished, recipe, monkeypatch):
    out, _ = finished
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: pytest.fail("too late"))
    check_refused(in_process(*arguments(recipe, out), "rlvr.steps=9"), "rlvr.steps", "seed-1/none")
    inside = out / "seed-1" / "start"
    check_refused(in_process(*arguments(recipe, inside)), "holds a run")


def test_a_dry_run_lists_the_runs(recipe, tmp_path):
    out = tmp_path / "s"
    done = in_process(*arguments(recipe, out), "rlvr.steps=3", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("prism-lite")]
    assert [line.split()[1] for line in lines] == ["sft", "sft", "rlvr", "run", "run"] * 2
    assert f"--out {out}/seed-2/game-on rlvr.steps=3 seed=2" in lines[-1]
    assert "# seed 2, none: 4 policy updates after SFT, from 32 completions" in done.stdout
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--arms", "none", "ours"), ("'ours'", "one-expert")),
        (("--seeds", "0", "many"), ("--seeds many",)),
        (("--seeds", "0", "1", "align.stepps=2"), ("align.stepps", "align.steps")),
        (("--reference", "free"), ("--reference free", "--arms none")),
        (("--tune-by", "luck"), ("--tune-by luck", "transfer_accuracy")),
        (("--teacher-errors", "many"), ("--teacher-errors many",)),
        (("--seeds", "1", "--tuning-seeds", "1"), ("share 1",)),
    ],
)
def test_wrong_options_exit_2(options, words):
    check_refused(in_process("study", "--dry-run", *options), *words)


def test_the_bar_over_runs_lives_beside_the_bars_of_a_run(recipe, tmp_path, monkeypatch):
    """On a terminal: two live displays at once."""
    from prism_lite.runs.folder import RunFolder
    from prism_lite.study.run import StudyOptions, run_study

    console = Console(force_terminal=True, width=100, file=(tmp_path / "screen").open("w"))

    def run(config, folder, *, stages, console):
        write_finished(Path(folder), stages)
        opened = RunFolder(Path(folder), config, console)
        assert list(opened.with_progress([1, 2], "evaluating")) == [1, 2]

    monkeypatch.setattr(pipeline, "run", run)
    run_study(StudyOptions(str(recipe), (), ("none",), (0,), tmp_path / "s"), console=console)
    console.file.close()
    screen = (tmp_path / "screen").read_text()
    assert "seed 0, none" in screen and "evaluating" in screen and "2/2" in screen
