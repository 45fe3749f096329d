"""Tables, curves and plots of a study.json made by hand."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from prism_lite.study import report
from prism_lite.study.curves import add_areas
from prism_lite.study.statistics import mean_of_seeds, paired_differences

FIGURES = ("transfer_accuracy", "caption_accuracy", "accuracy", "think_validity", "format_rate")


def a_study(num_seeds: int) -> dict:
    """Arm game-on is 0.1 above none in accuracy in each seed, but for noise; other figures are equal."""
    noise = [0.0, 0.02, 0.01][:num_seeds]
    seeds = [*range(num_seeds)]
    rates = {
        arm: {
            name: np.array([[0.5 + (gain + x if name == "accuracy" else 0.2)] * 8 for x in noise])
            for name in FIGURES
        }
        for arm, gain in (("none", 0.0), ("game-on", 0.1))
    }
    rates["none"]["accuracy"][:] = 0.5
    arms = {}
    for arm, of_arm in rates.items():
        heights = (0.3, 0.5) if arm == "none" else (0.3, 0.6)
        arms[arm] = {
            "overrides": ["rlvr.game='on'"] if arm == "game-on" else [],
            "alignment_updates": 0,
            "policy_updates": 90,
            "completions": 5760,
            "seeds": {
                str(s): {name: float(of_arm[name][s].mean()) for name in FIGURES}
                | {"seconds": 90.0}
                for s in seeds
            },
            "means": {name: mean_of_seeds(rate_SP) for name, rate_SP in of_arm.items()},
            "curves": {
                str(s): [
                    {"completions": 0, "seconds": 0.0, "accuracy": heights[0]},
                    {
                        "completions": 100,
                        "seconds": 10.0 + 10 * (arm != "none"),
                        "accuracy": heights[1],
                    },
                ]
                for s in seeds
            },
        }
    add_areas(arms)
    start = dict.fromkeys(FIGURES, 0.4)
    return {
        "recipe": "tiny",
        "task": "digits",
        "command": "prism-lite study --seeds 0 1 2",
        "version": "0.1.0",
        "commit": "abc",
        "num_prompts": {name: 8 for name in FIGURES},
        "num_samples": 4,
        "seeds": seeds,
        "base_seeds": [0],
        "reference": "game-on",
        "start": {stage: {str(s): start for s in seeds} for stage in ("base", "sft")},
        "arms": arms,
        "differences": paired_differences(rates, "game-on", FIGURES),
        "tuning": {"seeds": [], "best_by": "mean"},
    }


def test_tables_have_the_figures_and_mark_what_excludes_zero():
    text = report.markdown(a_study(3))
    # 0, 0.02, 0.01: deviation 0.01, half of Student's interval 4.302653 * 0.01 / sqrt(3) = 0.0248
    assert "0.610 [0.585, 0.635]" in text, "Student"
    assert "| none | +0.000 [+0.000, +0.000] | +0.000 [+0.000, +0.000] | +0.110 [+0.1" in text
    assert "accuracy of game-on is higher than that of none: +0.110 [+0." in text
    assert text.count("is higher than") == 1 and "is lower than" not in text
    assert "These are 5 comparisons" in text and "0.2 exclude zero by chance" in text
    assert "90 policy updates after SFT and learns from 5760 completions" in text
    assert "one base for all seeds (tiny.seed = 0)" in text
    assert "`prism-lite study --seeds 0 1 2`, prism_lite 0.1.0, commit abc" in text


def test_budgets_that_differ_are_named():
    study = a_study(2)
    study["arms"]["none"]["policy_updates"] = 63
    text = report.about_budgets(study)
    assert "none 63 updates, 5760 completions; game-on 90 updates" in text


def test_areas_by_hand():
    """Trapezoids: none (0.3 + 0.5) / 2; over seconds it keeps 0.5 from 10 to 20 s."""
    areas = {name: arm["areas"] for name, arm in a_study(2)["arms"].items()}
    assert areas["none"]["completions"]["accuracy"] == pytest.approx(0.4)
    assert areas["none"]["seconds"]["accuracy"] == pytest.approx((0.4 * 10 + 0.5 * 10) / 20)
    assert areas["game-on"]["seconds"]["accuracy"] == pytest.approx(0.45)


def test_eighty_columns_hold_the_tables():
    console = Console(file=io.StringIO(), width=80)
    report.print_study(a_study(3), console)
    text = console.file.getvalue()
    assert "…" not in text
    assert "0.61±0.01" in text and "+0.11±0.01 *" in text


def test_one_seed_has_no_intervals():
    text = report.markdown(a_study(1))
    assert "| game-on | 0.700 | 0.700 | 0.600 | 0.700 | 0.700 |" in text
    assert "One seed" in text and "[0." not in text and " *" not in text
    assert "Student" not in text


def test_the_report_is_rebuilt_from_study_json_alone(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(a_study(2)))
    report.rebuild_reports(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"study.json", "study.md", "study.png", "curves-accuracy.png"}
    text = (tmp_path / "study.md").read_text()
    assert "curves-accuracy.png" in text and "| none | 0.400 | 0.450 |" in text
    with pytest.raises(ValueError, match=r"study\.json is missing"):
        report.rebuild_reports(tmp_path / "elsewhere")


def test_cells_have_one_summary(tmp_path):
    study = {
        "command": "prism-lite study",
        "cells": {"drift-shared": a_study(2), "drift-random": a_study(2)},
    }
    (tmp_path / "study.json").write_text(json.dumps(study))
    report.rebuild_reports(tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert "| arm | drift-shared | drift-random |" in text
    assert "- drift-random: " not in text, "two seeds: Student's interval includes zero"
    assert (tmp_path / "drift-random" / "study.md").is_file()
    console = Console(file=io.StringIO(), width=80)
    report.print_study(study, console)
    assert "drift-random" in console.file.getvalue()


def test_tuning_is_listed():
    study = a_study(2)
    figures = dict.fromkeys(FIGURES, 0.25)
    for arm in study["arms"].values():
        arm["tuning"] = [
            {"overrides": [f"lora.rank={rank}"], "seed": 10, "figures": figures} for rank in (4, 8)
        ]
        arm["tuned"] = ["lora.rank=8"]
    study["tuning"] = {"seeds": [10], "best_by": "mean"}
    text = report.markdown(study)
    assert "on seeds 10, which are not reported" in text
    assert "| none | 10 | `lora.rank=8` | 0.250 | 0.250 | 0.250 | 0.250 | 0.250 | yes |" in text
    assert "| none | 10 | `lora.rank=4` | 0.250 | 0.250 | 0.250 | 0.250 | 0.250 |  |" in text
