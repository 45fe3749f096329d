"""Arms have the settings that they describe; means and paired differences against SciPy and by hand."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest
from rich.console import Console
from scipy import stats

from prism_lite.cli import study
from prism_lite.config import RunConfig
from prism_lite.recipe import load_recipe, to_dict
from prism_lite.study import report
from prism_lite.study.arms import ARMS, DEFAULT_ARMS, budget, commands_of, plan_study
from prism_lite.study.statistics import (
    Difference,
    over_seeds,
    paired_differences,
    t_interval95,
)

OUT = Path("runs/s")


def planned(*overrides: str, arms=tuple(ARMS), seeds=(0,)) -> dict[str, RunConfig]:
    """Settings of each run, by "SEED/NAME"."""
    runs = plan_study("tiny", overrides, arms=arms, seeds=seeds, out=OUT)
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


def test_the_interval_by_hand_and_by_scipy():
    low, high = t_interval95([0.5, 0.6, 0.7])  # deviation 0.1, t 4.302653 with two degrees
    assert (low, high) == pytest.approx((0.6 - 0.2484138, 0.6 + 0.2484138), abs=1e-6)
    values = [0.41, 0.44, 0.37, 0.52, 0.40]
    expected = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    assert t_interval95(values) == pytest.approx(expected)
    assert t_interval95([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert t_interval95([0.5]) is None


def test_means_over_seeds_have_intervals_over_seeds_and_not_over_prompts():
    runs = [
        {"accuracy": 0.5, "seconds": 10.0, "ci95": {"accuracy": [0.4, 0.6]}, "odd": 1.0},
        {"accuracy": 0.7, "seconds": 14.0, "ci95": {"accuracy": [0.6, 0.8]}},
    ]
    means = over_seeds(runs)
    assert means["accuracy"] == pytest.approx(0.6) and means["seconds"] == 12.0
    # deviation of 0.5 and 0.7 is 0.1414, over sqrt(2) it is 0.1; t with one degree is 12.7062
    assert means["ci95"]["accuracy"] == pytest.approx([0.6 - 1.27062, 0.6 + 1.27062], abs=1e-5)
    assert "odd" not in means, "not measured in every seed"
    assert over_seeds(runs[:1])["ci95"] == {}


def test_differences_are_paired_by_seed():
    ours, theirs = [0.50, 0.60, 0.40, 0.55], [0.45, 0.57, 0.36, 0.49]
    runs = {
        "none": [{"accuracy": value} for value in theirs],
        "adversarial": [{"accuracy": value, "caption_accuracy": 1.0} for value in ours],
    }
    (item,) = paired_differences(runs, "adversarial", ["accuracy", "caption_accuracy"])
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert item.other == "none" and item.mean == pytest.approx(0.045)
    assert item.ci95 == pytest.approx((expected.low, expected.high))
    assert item.conclusion == "higher"
    # Unpaired, the spread between seeds would hide it.
    unpaired = stats.ttest_ind(ours, theirs).confidence_interval(0.95)
    assert unpaired.low < 0 < unpaired.high


@pytest.mark.parametrize(
    ("ci95", "conclusion"),
    [
        ((0.01, 0.03), "higher"),
        ((-0.03, -0.01), "lower"),
        ((-0.01, 0.03), "no evidence of a difference"),
        ((0.0, 0.03), "no evidence of a difference"),
        (None, "one seed, no interval: no conclusion"),
    ],
)
def test_conclusions(ci95, conclusion):
    assert Difference("none", "accuracy", (0.01,), ci95).conclusion == conclusion


def test_arms_differ_in_their_own_settings_only():
    recipe = load_recipe("tiny")
    configs = planned()
    shared = {"sft.start_from": "runs/s/seed-0/start/policy", "sft.steps": 0}
    assert changed(recipe, configs["0/start"]) == {}
    assert changed(recipe, configs["0/adversarial"]) == shared
    assert changed(recipe, configs["0/one-expert"]) == shared | {"discriminator.routing": "dense"}
    assert changed(recipe, configs["0/none"]) == shared | {"rlvr.start": "sft", "rlvr.steps": 90}
    assert changed(recipe, configs["0/dpo"]) == shared | {
        "align.method": "dpo",
        "align.prompts_per_step": 32,  # pairs: 64 completions, as 8 prompts of 8 rollouts
    }
    more_sft = configs["0/sft"]
    assert more_sft.align.optim == recipe.sft.optim
    assert {k: v for k, v in changed(recipe, more_sft).items() if "optim" not in k} == shared | {
        "align.method": "sft",
        "align.prompts_per_step": 64,
    }


def test_every_arm_has_the_same_updates_and_completions():
    budgets = {name: budget(c) for name, c in planned().items() if name != "0/start"}
    assert set(map(str, budgets.values())) == {
        str({"policy_updates": 90, "completions": 90 * 8 * 8})
    }


def test_budgets_that_cannot_be_equal_are_printed():
    """RLVR batches of another size: no rollout is missing, and the numbers are named."""
    configs = planned("rlvr.group_size=16", "align.steps=5", arms=DEFAULT_ARMS)
    assert configs["0/none"].rlvr.steps == 60 + 3  # 5 * 64 rollouts in batches of 128
    budgets = {arm: budget(configs[f"0/{arm}"]) for arm in DEFAULT_ARMS}
    assert budgets["none"]["completions"] >= budgets["adversarial"]["completions"]
    text = report.about_budgets({"budgets": budgets})
    assert "none 63 updates, 8064 completions" in text
    assert "adversarial 65 updates, 8000 completions" in text
    assert budget(planned("align.num_minibatches=2")["0/adversarial"])["policy_updates"] == 120


def test_the_rivals_go_without_the_modes_of_the_game():
    configs = planned("align.mode=gated")
    assert configs["0/adversarial"].align.mode == "gated"
    assert configs["0/dpo"].align.mode == configs["0/sft"].align.mode == "align"


def test_seeds_have_their_own_start_and_the_commands_do_the_same():
    runs = plan_study("tiny", ["lora.rank=8"], arms=["none", "dpo"], seeds=[4, 7], out=OUT)
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


def test_a_path_that_yaml_would_read_otherwise(tmp_path):
    out = tmp_path / "a: b, #1"
    run = plan_study("tiny", [], arms=["none"], seeds=[0], out=out)[1]
    assert run.config.sft.start_from == str(out / "seed-0" / "start" / "policy")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"arms": ["none", "prism"]}, ("'prism'", "none, sft, dpo, adversarial, one-expert")),
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


def a_study(num_seeds: int) -> dict:
    """Content of a study.json made by hand: adversarial 0.1 above none in each seed but for noise."""
    noise = (0.0, 0.02, 0.01)[:num_seeds]
    others = {"greedy_accuracy": 0.7, "caption_accuracy": 0.8, "think_validity": 0.6}
    runs = {
        name: [
            others | {"accuracy": value, "mean_tokens": 30.0, "seconds": 90.0} for value in values
        ]
        for name, values in {
            "start": [0.4 for _ in noise],
            "none": [0.5 for _ in noise],
            "adversarial": [0.6 + x for x in noise],
        }.items()
    }
    arms = {name: figures for name, figures in runs.items() if name != "start"}
    differences = paired_differences(arms, "adversarial", ["accuracy", *others])
    return {
        "recipe": "tiny",
        "task": "digits",
        "n": 256,
        "num_samples": 4,
        "seeds": list(range(num_seeds)),
        "arms": list(arms),
        "budgets": {name: {"policy_updates": 90, "completions": 5760} for name in arms},
        "runs": {name: dict(enumerate(figures)) for name, figures in runs.items()},
        "means": {name: over_seeds(figures) for name, figures in runs.items()},
        "differences": [
            {
                "other": item.other,
                "figure": item.figure,
                "mean": item.mean,
                "ci95": item.ci95,
                "conclusion": item.conclusion,
            }
            for item in differences
        ],
    }


def test_tables_print_the_figures_and_mark_what_excludes_zero():
    text = report.markdown(a_study(3))
    # 0, 0.02, 0.01: deviation 0.01, half an interval 4.302653 * 0.01 / sqrt(3) = 0.0248
    assert (
        "| adversarial | 0.610±0.025 | 0.700±0.000 | 0.800±0.000 | 0.600±0.000 | - | 30.0±0.0 | 90 |"
        in text
    )
    assert "| none | +0.110±0.025 * | +0.000±0.000 |" in text
    assert "accuracy of adversarial minus none: +0.110 [+0.085, +0.135]: higher" in text
    assert "90 policy updates after SFT and learns from 5760 completions" in text


def test_eighty_columns_hold_the_tables():
    console = Console(file=io.StringIO(), width=80)
    report.print_study(a_study(3), console)
    text = console.file.getvalue()
    assert "…" not in text
    assert "adversarial 0.61±0.02" in text, text and "+0.11±0.02 *" in text


def test_one_seed_has_no_intervals():
    text = report.markdown(a_study(1))
    assert "| adversarial | 0.600 | 0.700 | 0.800 | 0.600 | - | 30.0 | 90 |" in text
    assert "one seed" in text and "±" not in text and "*" not in text
    assert "no conclusion" in text


def test_help_names_the_arms():
    parser = argparse.ArgumentParser()
    study.add_command(parser.add_subparsers())
    (command,) = parser._subparsers._group_actions[0].choices.values()
    text = " ".join(command.format_help().split())
    assert f"default: {' '.join(DEFAULT_ARMS)}; also: one-expert" in text
    assert set(DEFAULT_ARMS) | {"one-expert"} == set(ARMS)
