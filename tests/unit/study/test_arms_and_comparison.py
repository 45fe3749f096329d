"""Arms have the settings that they describe, equal budgets, shared stages; tuning seeds are separate."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from prism_lite.cli import study
from prism_lite.config import RunConfig
from prism_lite.recipe import load_recipe, to_dict
from prism_lite.study.arms import ARMS, DEFAULT_ARMS, START, budget, recipe_arm
from prism_lite.study.plan import cells_of, commands_of, plan_study, sources_of
from prism_lite.study.run import StudyOptions, plan_cells, reference_of
from prism_lite.study.tuning import check_tuning, parse_tries, plan_tuning, tuning_results

OUT = Path("runs/s")
SIZES = ("align.steps=30", "rlvr.steps=60", "rlvr.game=off")  # whatever the recipe ships with


def planned(*overrides: str, arms=tuple(ARMS), seeds=(0,)) -> dict[str, RunConfig]:
    """Settings of each run, by "SEED/NAME"."""
    runs = plan_study("tiny", [*SIZES, *overrides], arms=arms, seeds=seeds, out=OUT)
    return {f"{run.seed}/{run.arm}": run.config for run in runs}


def changed(before: RunConfig, after: RunConfig) -> dict[str, object]:
    """Settings that differ, by dotted key."""

    def flat(values, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    old = dict(flat(to_dict(before)))
    return {key: value for key, value in flat(to_dict(after)) if old[key] != value}


def test_arms_differ_in_their_own_settings_only():
    recipe, configs = load_recipe("tiny", SIZES), planned()
    alone = {"rlvr.start": "sft", "rlvr.steps": 90}
    on = {"rlvr.game": "on", "align.steps": 0, "rlvr.steps": 90}
    rows = {"align.prompts_per_step": 64}
    expected = {
        "none": alone,
        "base": alone | {"sft.steps": 0},
        "mixed": alone | {"rlvr.teacher_rollout": True},
        "dpo": {"align.method": "dpo", "align.prompts_per_step": 32},  # pairs: 64 completions
        "sft-10": {"align.method": "sft", "align.steps": 10, "rlvr.steps": 80} | rows,
        "sft-30": {"align.method": "sft"} | rows,
        "best-of-n": {"align.method": "best_of_n"} | rows,
        "adversarial": {},
        "game-both": {"rlvr.game": "on"},
        "game-on": on,
        "frozen": on | {"discriminator.scores": "frozen", "warmup.steps": 0},
        "oracle": on | {"discriminator.scores": "oracle", "warmup.steps": 0},
        "one-expert": on | {"discriminator.routing": "dense"},
        "free": on | {"discriminator.routing": "free"},
    }
    assert set(expected) == set(ARMS)
    for arm, settings in expected.items():
        own = changed(recipe, configs[f"0/{arm}"])
        assert own.pop("eval.stages") == ["rlvr"]
        dropped = ("align.optim", "align.gate", "eval")
        own = {key: value for key, value in own.items() if not key.startswith(dropped)}
        off = {"rlvr.control": False} if recipe.rlvr.control else {}
        assert own == settings | off, arm
    for arm in ("sft-10", "sft-30", "best-of-n"):
        assert configs[f"0/{arm}"].align.optim == recipe.sft.optim


def test_every_arm_has_the_same_updates_and_completions():
    for sizes in ((), ("align.steps=0",), ("rlvr.group_size=16",)):
        runs = planned(*sizes)
        counts = {
            name: (budget(config)["policy_updates"], budget(config)["completions"])
            for name, config in runs.items()
            if name != "0/start"
        }
        recipe = runs["0/start"]
        num = recipe.align.steps + recipe.rlvr.steps
        size = recipe.rlvr.prompts_per_step * recipe.rlvr.group_size
        if size != 64:  # alignment's rollouts are the recipe's own
            counts = {k: v for k, v in counts.items() if k not in ("0/adversarial", "0/game-both")}
        assert set(counts.values()) == {(num, num * size)}


def test_a_recipe_without_alignment_gives_it_half_of_the_updates():
    configs = planned("align.steps=0", "rlvr.game=on")
    assert budget(configs["0/adversarial"])["alignment_updates"] == 30
    assert budget(configs["0/dpo"])["alignment_updates"] == 30
    assert budget(configs["0/sft-10"])["alignment_updates"] == 10
    assert configs["0/none"].rlvr.game == configs["0/adversarial"].rlvr.game == "off"


def test_few_updates_are_all_of_a_teacher_arm():
    config = planned("align.steps=1", "rlvr.steps=2", arms=("sft-10",))["0/sft-10"]
    assert (config.align.steps, config.rlvr.steps) == (3, 0)


@pytest.mark.parametrize(
    ("overrides", "arm"),
    [
        ([], "adversarial"),
        (["rlvr.game=on"], "game-both"),
        (["rlvr.game=blind", "align.steps=0"], "game-on"),
        (["rlvr.start=sft"], "none"),
        (["align.method=dpo"], "dpo"),
    ],
)
def test_the_reference_is_the_recipe(overrides, arm):
    assert recipe_arm(load_recipe("tiny", [*SIZES, *overrides])) == arm


def test_a_missing_reference_is_the_last_arm():
    options = StudyOptions("tiny", SIZES, ("none", "adversarial", "frozen"), (0,), OUT)
    assert reference_of(options) == "adversarial"
    options = StudyOptions("tiny", SIZES, ("none", "frozen", "game-on"), (0,), OUT)
    assert reference_of(options) == "game-on"
    assert reference_of(StudyOptions("tiny", SIZES, ("none",), (0,), OUT, reference="x")) == "x"


def test_seeds_have_their_own_start_and_the_commands_do_the_same():
    runs = plan_study("tiny", ["lora.rank=8", *SIZES], arms=["none", "dpo"], seeds=[4, 7], out=OUT)
    assert [str(run.folder) for run in runs] == [
        f"runs/s/seed-{seed}/{name}" for seed in (4, 7) for name in ("start", "none", "dpo")
    ]
    assert [run.config.seed for run in runs] == [4, 4, 4, 7, 7, 7]
    for run in runs:
        assert run.config.lora.rank == 8
        names = [command.split()[1] for command in commands_of(run, "tiny")]
        assert names == {"start": ["sft"], "none": ["sft", "rlvr"], "dpo": ["run"]}[run.arm]
        for command in commands_of(run, "tiny"):
            assert f"--out {run.folder}" in command
        assert load_recipe("tiny", run.overrides) == run.config


def test_what_stages_are_shared():
    arms = ["none", "base", "adversarial", "game-on", "game-both", "frozen", "one-expert"]
    runs = plan_study("tiny", SIZES, arms=arms, seeds=[0, 1], out=OUT)
    shared = {
        (str(folder.relative_to(OUT)), stage): str(source.folder.relative_to(OUT))
        for (folder, stage), source in sources_of(runs).items()
    }
    for seed in (0, 1):
        for arm in arms:
            start = None if arm == "base" else f"seed-{seed}/start"
            assert shared.get((f"seed-{seed}/{arm}", "sft")) == start
        for arm in ("game-on", "game-both"):
            assert shared[f"seed-{seed}/{arm}", "warmup"] == f"seed-{seed}/adversarial"
        for arm in ("adversarial", "frozen", "one-expert"):
            assert (f"seed-{seed}/{arm}", "warmup") not in shared


def test_cells_share_the_sft_that_does_not_read_the_teacher():
    options = StudyOptions(
        "tiny", SIZES, ("none", "adversarial"), (0,), OUT, None, ("shared", "random"), (0.01, 0.25)
    )
    plan = plan_cells(options)
    assert [*plan] == [f"drift-{d}-teacher-{r}" for d in ("shared", "random") for r in (0.01, 0.25)]
    for name, runs in plan.items():
        start, *others = runs
        drift = name.split("-")[1]
        assert start.folder == OUT / f"drift-{drift}-teacher-0.01" / "seed-0" / START
        assert all(run.folder.parent.parent.name == name for run in others)
        for run in others:
            digits = run.config.data.digits
            assert digits.drift == drift and name.endswith(f"{digits.teacher_slip_rate:g}")
            assert digits.teacher_misread_rate == digits.teacher_slip_rate
    everything = [run for runs in plan.values() for run in runs]
    sources = sources_of(everything)
    erring = OUT / "drift-shared-teacher-0.25/seed-0/adversarial"
    assert sources[erring, "sft"].folder == OUT / "drift-shared-teacher-0.01/seed-0/start"
    assert (erring, "warmup") not in sources, "the warm-up reads the teacher"


def test_no_axes_are_one_cell_without_a_folder():
    (cell,) = cells_of([], [])
    assert (cell.name, cell.overrides) == ("", ())
    (cell,) = cells_of([], [0.25])
    assert cell.name == "teacher-0.25"


def test_base_seeds_train_a_base_per_seed():
    runs = plan_study("tiny", [], arms=["none"], seeds=[3, 4], out=OUT, base_per_seed=True)
    assert [run.config.tiny.seed for run in runs] == [3, 3, 4, 4]


def test_tries_are_equal_in_number():
    arms = ["none", "dpo"]
    assert parse_tries([], arms) == {}
    common = "rlvr.optim.learning_rate=3e-4,5e-4"
    tries = parse_tries([common, "dpo:align.dpo_beta=0.1,0.3"], arms)
    assert tries == {
        "none": [["rlvr.optim.learning_rate=3e-4"], ["rlvr.optim.learning_rate=5e-4"]],
        "dpo": [["align.dpo_beta=0.1"], ["align.dpo_beta=0.3"]],
    }
    assert parse_tries(["align.steps+rlvr.steps=1,2"], ["none"]) == {
        "none": [["align.steps=1", "rlvr.steps=1"], ["align.steps=2", "rlvr.steps=2"]]
    }
    for texts, word in (
        (["dpo:align.dpo_beta=0.1"], "none 0, dpo 1"),
        ([common, "dpo:align.dpo_beta=0.1"], "none 2, dpo 1"),
        (["free:align.dpo_beta=0.1"], "free"),
        (["align.dpo_beta"], "KEY=V1,V2"),
        (["align.dpo_beta=1,,2"], "KEY=V1,V2"),
        (["align.steps+=1,2"], "KEY=V1,V2"),
    ):
        with pytest.raises(ValueError, match=word):
            parse_tries(texts, arms)


def test_tuning_and_reported_seeds_do_not_overlap():
    tries = {"none": [["lora.rank=8"]]}
    check_tuning(tries, [10, 11], [1, 2])
    check_tuning({}, [], [1, 2])
    with pytest.raises(ValueError, match="share 2"):
        check_tuning(tries, [10, 2], [1, 2])
    with pytest.raises(ValueError, match="belong together"):
        check_tuning(tries, [], [1])
    with pytest.raises(ValueError, match="belong together"):
        check_tuning({}, [10], [1])


def test_the_best_try_is_chosen_by_the_named_figure():
    tries = {
        "none": [["lora.rank=4"], ["lora.rank=8", "lora.alpha=16"]],
        "dpo": [["align.dpo_beta=1"], ["align.dpo_beta=2"]],
    }
    plan = plan_tuning(tries, "tiny", SIZES, [10, 11], OUT / "tuning")
    assert str(plan["dpo", 1][1].folder) == "runs/s/tuning/try-1/seed-10/dpo"
    assert plan["dpo", 1][1].config.align.dpo_beta == 2
    assert plan["none", 1][1].config.lora.alpha == 16
    assert plan["none", 1][0].folder == plan["none", 0][0].folder, "one SFT run for all tries"

    def figures(run, _stage):
        rank, beta = run.config.lora.rank, run.config.align.dpo_beta
        return {
            "accuracy": 0.5,
            "caption_accuracy": rank / 10 if run.arm == "none" else 0.5,
            "transfer_accuracy": 1 - beta / 10,
            "format_rate": beta / 2,
        }

    listed, best = tuning_results(tries, plan, "mean", figures)
    assert best == {"none": ["lora.rank=8", "lora.alpha=16"], "dpo": ["align.dpo_beta=1"]}
    assert tuning_results(tries, plan, "format_rate", figures)[1]["dpo"] == ["align.dpo_beta=2"]
    assert [(item["seed"], item["overrides"]) for item in listed["none"]] == [
        (seed, overrides) for overrides in tries["none"] for seed in (10, 11)
    ]


def test_a_path_that_yaml_would_read_otherwise(tmp_path):
    run = plan_study("tiny", SIZES, arms=["game-both"], seeds=[0], out=tmp_path)[1]
    assert run.config.rlvr.game == "on", "on is text, not true"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"arms": ["none", "prism"]}, ("'prism'", "none, base, sft-10, sft-30")),
        ({"arms": ["none", "none"]}, ("--arms none none",)),
        ({"seeds": [1, 2, 1]}, ("--seeds 1 2 1",)),
        ({"arms": []}, ("--arms",)),
        ({"overrides": ["align.method=dpo"]}, ("align.method", "--arms")),
        ({"overrides": ["seed=3"]}, ("seed", "--seeds")),
        ({"overrides": ["align.stepps=3"]}, ("align.stepps", "align.steps")),
        ({"overrides": ["data.task=files", "data.train=rows.jsonl"]}, ("data.heldout",)),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError) as refused:
        plan_study("tiny", **{"overrides": [], "arms": ["none"], "seeds": [0]} | arguments, out=OUT)
    for word in words:
        assert word in str(refused.value)


def test_help_names_the_arms():
    parser = argparse.ArgumentParser()
    study.add_command(parser.add_subparsers())
    (command,) = parser._subparsers._group_actions[0].choices.values()
    text = " ".join(command.format_help().replace("-\n", "-").split())
    listed = text.split("default: none")[1].split("--reference")[0].replace("also:", "").split()
    assert {"none", *(word.strip(";") for word in listed)} >= set(ARMS)
    assert f"default: {' '.join(DEFAULT_ARMS)}; also:" in text
