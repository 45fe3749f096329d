"""The parts of `make gpu-check` that need no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests import gpu_check

README = Path(__file__).parents[2] / "README.md"

RECORD = {
    "card": "Tesla T4",
    "gib": 14.74,
    "date": "2026-01-02",
    "tests": {"passed": 9, "skipped": 1, "not_passed": []},
    "benchmarks": {"seconds": 3.0, "text": "..."},
    "stages": {
        "t4-2b": {
            "sft": {"step_s": 1.234, "peak_gib": 5.06, "num_steps": 20},
            "warmup": {"error": "out of memory"},
        }
    },
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_card_it_says_so_and_exits_2(capsys, tmp_path):
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "no NVIDIA card" in printed
    assert not list(tmp_path.iterdir())


def test_the_table_of_no_card_says_so(capsys, tmp_path):
    assert gpu_check.main(["--table", "--out", str(tmp_path)]) == 0
    assert "No card has been measured yet" in capsys.readouterr().out


def test_the_table_shows_measured_failed_and_not_run(tmp_path):
    (tmp_path / "tesla-t4.json").write_text(json.dumps(RECORD))
    head, _, row = gpu_check.measured_table(gpu_check.read_measured(tmp_path)).splitlines()
    assert row == (
        "| Tesla T4 (15 GiB) | t4-2b | 1.23 s, 5.1 GiB | failed | not run | not run | 9 passed "
        "| 2026-01-02 |"
    )
    assert head.count("|") == row.count("|")
    assert not gpu_check.is_good(RECORD)
    good = RECORD | {"stages": {"t4-2b": {"sft": RECORD["stages"]["t4-2b"]["sft"]}}}
    assert gpu_check.is_good(good)
    assert not gpu_check.is_good(good | {"tests": {"passed": 1, "not_passed": ["a::b"]}})
    assert not gpu_check.is_good(good | {"benchmarks": {"error": "no"}})


def test_counts_and_failures_are_read_from_pytest():
    output = (
        "..F.E\n"
        "FAILED tests/gpu/test_on_card.py::test_a - assert 1 == 2\n"
        "ERROR tests/gpu/test_on_card.py::test_b - RuntimeError\n"
        "1 failed, 3 passed, 2 skipped, 1 error in 0.12s\n"
    )
    assert gpu_check.parse_pytest(output) == {
        "failed": 1, "passed": 3, "skipped": 2, "error": 1,
        "not_passed": ["tests/gpu/test_on_card.py::test_a", "tests/gpu/test_on_card.py::test_b"],
    }  # fmt: skip
    assert gpu_check.parse_pytest("") == {"not_passed": []}


def test_figures_leave_the_first_step_out_of_the_time_but_not_of_the_peak(micro_run):
    lines = [
        {"stage": "sft", "step": i, "step_time": t, "mem/peak_gib": p, "train_tokens_per_s": 10 * t}
        for i, (t, p) in enumerate([(9.0, 4.0), (1.0, 2.0), (3.0, 2.0), (2.0, 2.0)])
    ]
    other = {"stage": "warmup", "step": 0, "step_time": 50.0, "mem/peak_gib": 9.0}
    assert gpu_check.stage_figures([*lines, other], "sft") == {
        "step_s": 2.0, "peak_gib": 4.0, "num_steps": 4, "train_tokens_per_s": 20.0,
    }  # fmt: skip
    _, folder, _, _ = micro_run  # the names that real runs log
    real = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for stage in gpu_check.STAGES:
        figures = gpu_check.stage_figures(real, stage)
        assert figures["num_steps"] == 5 and figures["step_s"] > 0 and figures["peak_gib"] > 0


def test_the_short_steps_are_settings_that_exist():
    from prism_lite import load_recipe

    config = load_recipe("t4-2b", gpu_check.STEPS)
    assert config.data.task == "digits" and config.rlvr.steps == 5


def test_the_readme_shows_the_table_of_the_files():
    begin, end = gpu_check.MARKS
    text = README.read_text(encoding="utf-8")
    if begin in text:
        inside = text.partition(begin)[2].partition(end)[0]
        assert inside.strip() == gpu_check.measured_table(gpu_check.read_measured())


def test_file_names_of_cards():
    assert gpu_check.slug("NVIDIA GeForce RTX 4090") == "nvidia-geforce-rtx-4090"
