"""The parts of `make gpu-check` that need no card; the program itself, small, on the CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch

from prism_lite import load_recipe
from prism_lite.planner.cards import card_of
from prism_lite.planner.hours import calibration
from prism_lite.planner.workload import phases_of
from tests.gpu_check import __main__ as gpu_check
from tests.gpu_check import record
from tests.gpu_check.record import (
    MARKS,
    is_good,
    measured_table,
    parse_pytest,
    read_measured,
    slug,
    stages_of,
)

REPOSITORY = Path(__file__).parents[2]
NOT_NEEDED = ("gradio", "trl", "datasets")

RECORD = {
    "card": "Tesla T4",
    "gib": 14.74,
    "date": "2026-01-02",
    "gpu tests": {"passed": 9, "skipped": 1, "not_passed": []},
    "kernels": {"seconds": 12.0},
    "size t4-2b": {
        "decode": [
            {"dense_weights": "never", "rows": 16, "ms": 40.0, "tokens_per_s": 400},
            {"dense_weights": "always", "rows": 64, "ms": 50.0, "tokens_per_s": 1280},
        ],
        "phases": [
            {"stage": "sft", "work": "train", "step_s": 1.234, "reserved_gib": 5.06},
            {"stage": "align", "work": "sample", "step_s": 20.0, "reserved_gib": 7.0},
            {"stage": "align", "work": "judge", "step_s": 4.0, "reserved_gib": 9.5},
            {"stage": "warmup", "work": "judge", "error": "out of memory"},
        ],
    },
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_card_it_says_so_and_exits_2(capsys, tmp_path):
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "no NVIDIA card" in printed
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named_with_the_command_that_installs_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(record.NEEDED, "no_such_module", "no-such-wheel")
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    printed = capsys.readouterr().out
    assert "pip install no-such-wheel" in printed
    assert "gradio, trl and datasets are not needed" in printed


def test_the_needed_packages_are_those_of_the_project_without_datasets_and_triton():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {text.partition(";")[0].partition(">")[0].strip() for text in project["dependencies"]}
    tests = {"pytest", "hypothesis"}
    assert set(record.NEEDED.values()) - tests == names - {"torch", "datasets", "triton"}


def test_the_checks_of_a_part_end_within_six_minutes():
    for has_unsloth in (False, True):
        for part in ("one", "two"):
            checks = gpu_check.checks_of(
                part, gpu_check.RECIPES, has_bfloat16=True, has_unsloth=has_unsloth
            )
            assert sum(check.limit_s for check in checks) <= 360
            assert any("unsloth" in check.name for check in checks) == (
                has_unsloth and part == "one"
            )


def test_a_card_without_bfloat16_is_not_asked_for_it():
    checks = gpu_check.checks_of("one", (), has_bfloat16=False, has_unsloth=False)
    assert [check.name for check in checks] == ["gpu tests", "kernels", "micro float16"]


def test_sizes_that_a_card_is_too_small_for_are_left_out():
    fitting = [name for name in gpu_check.RECIPES if gpu_check.fits(name, 23.6)]
    assert fitting == ["rtx3060-2b", "rtx4090-4b"]
    assert all(gpu_check.fits(name, None) for name in gpu_check.RECIPES)


def test_the_table_of_no_card_says_so(capsys, tmp_path):
    assert gpu_check.main(["--table", "--out", str(tmp_path)]) == 0
    assert "No card has been measured yet" in capsys.readouterr().out


def test_the_table_shows_measured_failed_and_not_run(tmp_path):
    failed = RECORD | {"size t4-2b": RECORD["size t4-2b"] | {"error": "1 of 4 phases failed"}}
    (tmp_path / "tesla-t4.json").write_text(json.dumps(failed))
    head, _, row = measured_table(read_measured(tmp_path)).splitlines()
    assert row == (
        "| Tesla T4 (15 GiB) | t4-2b | 1.2 s, 5.1 GiB | failed | 24.0 s, 9.5 GiB | not run | 1280 "
        "| 2 of 3 passed | 2026-01-02 |"
    )
    assert head.count("|") == row.count("|")
    assert not is_good(failed)
    assert stages_of(failed) == {"t4-2b": {"sft": {"step_s": 1.234}, "align": {"step_s": 24.0}}}
    assert is_good(RECORD)
    assert not is_good({"card": "Tesla T4"}), "nothing was checked"


def test_a_plan_is_calibrated_by_the_seconds_measured_and_predicted():
    phases = [
        {"stage": "sft", "work": "train", "step_s": 3.0, "predicted_s": 2.0},
        {"stage": "align", "work": "sample", "step_s": 1.0, "predicted_s": 3.0},
        {"stage": "align", "work": "judge", "step_s": 1.0, "predicted_s": 1.0},
        {"stage": "rlvr", "work": "train", "step_s": 1.0},  # of a record that predicts nothing
    ]
    measured = RECORD | {"size t4-2b": {"phases": phases}}
    measured["stages"] = stages_of(measured)
    assert measured["stages"]["t4-2b"] == {
        "sft": {"step_s": 3.0, "predicted_s": 2.0},
        "align": {"step_s": 2.0, "predicted_s": 4.0},
        "rlvr": {"step_s": 1.0},
    }
    factors = calibration(card_of(15), measured)
    assert factors == {"sft": 1.5, "warmup": 1.0, "align": 0.5, "rlvr": 1.0}


def test_counts_and_failures_are_read_from_pytest():
    output = (
        "..F.E\n"
        "FAILED tests/gpu/test_on_card.py::test_a - assert 1 == 2\n"
        "ERROR tests/gpu/test_on_card.py::test_b - RuntimeError\n"
        "1 failed, 3 passed, 2 skipped, 1 error in 0.12s\n"
    )
    assert parse_pytest(output) == {
        "failed": 1, "passed": 3, "skipped": 2, "error": 1,
        "not_passed": ["tests/gpu/test_on_card.py::test_a", "tests/gpu/test_on_card.py::test_b"],
    }  # fmt: skip
    assert parse_pytest("") == {"not_passed": []}


def test_a_check_that_runs_too_long_is_ended_and_keeps_what_it_has_recorded(tmp_path, monkeypatch):
    program = tmp_path / "slow_check.py"
    program.write_text(
        "import sys, time\n"
        "open(sys.argv[sys.argv.index('--record') + 1], 'w').write('{\"known\": 1}')\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = gpu_check.argparse.Namespace(device="cpu", small=True, random=True)
    found = gpu_check.run_check(gpu_check.Check("kernels", ("slow_check",), 2), options)
    assert found["known"] == 1 and found["error"] == "not finished after 2 s"


def test_the_processes_of_a_check_end_with_it(tmp_path):
    """Also those that it started, which hold its output open; else they would keep the card."""
    program = tmp_path / "parent.py"
    program.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    started_s = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        gpu_check.run_group([sys.executable, str(program)], 3)
    assert time.monotonic() - started_s < 30
    child = Path("/proc") / (tmp_path / "child").read_text()
    state = re.search(r"State:\s+(\w)", (child / "status").read_text()) if child.exists() else None
    assert state is None or state[1] == "Z", "the child is still running"


def test_every_test_for_a_card_is_run():
    marked = {
        str(file.relative_to(REPOSITORY))
        for file in (REPOSITORY / "tests").rglob("*.py")
        if "mark.gpu" in file.read_text(encoding="utf-8") and file != Path(__file__)
    }
    assert len(marked) > 3
    left_out = [file for file in marked if not file.startswith(gpu_check.TESTS)]
    assert not left_out


@pytest.mark.slow
@pytest.mark.long
def test_it_runs_on_a_cpu_without_gradio_trl_and_datasets(tmp_path):
    """From end to end, small: kernels, both micro runs, every phase of a model with random weights."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(  # every Python process of this environment reads it
        f"import sys\nfor name in {NOT_NEEDED!r}:\n    sys.modules[name] = None\n"
    )
    command = [
        sys.executable, "-m", "tests.gpu_check", "--random", "--device", "cpu", "--small",
        "--recipe", "rtx4090-4b", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(blocked), str(REPOSITORY)]),
        "PRISM_LITE_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    (found,) = read_measured(tmp_path / "out")
    assert found["card"] == "CPU" and found["random"] and found["small"]
    assert all(facts["is_right"] for facts in found["kernels"]["token_logprobs"])
    for dtype in ("bfloat16", "float16"):
        micro = found[f"micro {dtype}"]
        assert micro["resumed_difference"] == 0 and dtype in micro["precision"]
        assert set(micro["format_rates"]) == {"base", "sft", "align", "rlvr"}
    size = found["size rtx4090-4b"]
    planned = phases_of(load_recipe("rtx4090-4b"))
    assert [(p["stage"], p["work"]) for p in size["phases"]] == [tuple(p) for p in planned]
    assert set(found["stages"]["rtx4090-4b"]) == {"sft", "warmup", "align", "rlvr"}
    assert all(p["step_s"] >= 0 and p["predicted_gib"] > 0 for p in size["phases"])
    assert {d["dense_weights"] for d in size["decode"]} == {"never", "always"}
    assert "rtx4090-4b" in measured_table([found])


def test_the_readme_shows_the_table_of_the_files():
    begin, end = MARKS
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    if begin in text:
        inside = text.partition(begin)[2].partition(end)[0]
        assert inside.strip() == measured_table(read_measured())


def test_file_names_of_cards():
    assert slug("NVIDIA GeForce RTX 4090") == "nvidia-geforce-rtx-4090"
