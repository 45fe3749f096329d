"""Two runs side by side: differences of settings, figures and curves, on the page and in the file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from demo.screens.line_chart import Curve, line_chart
from demo.screens.two_runs import comparison_html, page_file, setting_differences

NAMES = ("first", "<second>")


def write_run(path: Path, *, steps: int, losses: list[float], accuracy: float | None) -> Path:
    path.mkdir()
    settings = {"sft": {"steps": steps}, "seed": 0, "align": {}, "rlvr": {}, "warmup": {}}
    (path / "config.yaml").write_text(json.dumps(settings))
    lines = [{"stage": "sft", "step": i, "loss": loss} for i, loss in enumerate(losses)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if accuracy is not None:
        rates = {"accuracy": accuracy, "ci95": {"accuracy": [accuracy - 0.1, accuracy + 0.1]}}
        (path / "results.json").write_text(json.dumps({"n": 8, "stages": {"sft": rates}}))
    return path


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    one = write_run(tmp_path / "a", steps=5, losses=[4.0, 2.0, 1.0], accuracy=0.5)
    return one, write_run(tmp_path / "b", steps=9, losses=[4.0, 3.0], accuracy=0.75)


def test_only_settings_that_differ_are_listed() -> None:
    one = {"seed": 0, "sft": {"steps": 5, "lr": 0.1}, "rlvr": {"rewards": {"accuracy": 1}}}
    other = {
        "seed": 0,
        "sft": {"steps": 9, "lr": 0.1},
        "rlvr": {"rewards": {"accuracy": 1, "ocr": 2}},
    }
    assert setting_differences(one, other) == [
        ["sft.steps", "5", "9"],
        ["rlvr.rewards.ocr", "-", "2"],
    ]
    assert setting_differences(one, one) == []


def test_the_page_has_differences_figures_and_both_curves(two: tuple[Path, Path]) -> None:
    shown = comparison_html(*two, NAMES)
    assert "<td>sft.steps</td><td>5</td><td>9</td>" in shown
    assert "<td>SFT</td><td>first</td><td>0.50 ± 0.10</td>" in shown
    assert "<td>SFT</td><td>&lt;second&gt;</td><td>0.75 ± 0.10</td>" in shown
    assert "<second>" not in shown
    assert "Solid: first; dashed: &lt;second&gt;." in shown
    solid, dashed = re.findall(
        r'<polyline points="([^"]+)"[^>]*?( stroke-dasharray)?[^>]*/>', shown
    )
    heights = [float(point.split(",")[1]) for point in solid[0].split()]
    assert len(heights) == 3
    # 4, 2 and 1: the second point is a third of the way up from the lowest
    assert (heights[2] - heights[1]) / (heights[2] - heights[0]) == pytest.approx(1 / 3, abs=0.01)
    assert len(dashed[0].split()) == 2
    assert "stroke-dasharray" in shown


def test_runs_without_results_or_steps_say_so(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, steps=5, losses=[], accuracy=None) for name in "ab"]
    shown = comparison_html(runs[0], runs[1], NAMES)
    assert "None: the settings are equal." in shown
    assert "No stage of either run is evaluated yet." in shown
    assert "Neither run has logged a step yet." in shown


def test_the_file_needs_nothing_else(two: tuple[Path, Path]) -> None:
    text = page_file(comparison_html(*two, NAMES), NAMES)
    assert text.startswith("<!doctype html>")
    assert "<h1>first and &lt;second&gt;</h1>" in text
    assert not re.search(r"(src|href)=", text)
    # on a phone: its width, and a table that scrolls in its own box
    assert 'name="viewport"' in text and ".table-box{overflow-x:auto}" in text
    assert text.count("<table>") == text.count('<div class="table-box"><table>') == 2


def test_a_setting_that_one_run_does_not_have_is_explained(two: tuple[Path, Path]) -> None:
    assert "not known to the version" not in comparison_html(*two, NAMES)
    (two[0] / "config.yaml").write_text(json.dumps({"sft": {}, "save_minutes": 10}))
    shown = comparison_html(*two, NAMES)
    assert "<td>save_minutes</td><td>10</td><td>-</td>" in shown
    assert "-: not set, or not known to the version that trained this run." in shown


def test_a_constant_curve_is_drawn_in_the_middle() -> None:
    chart = line_chart("t", {"a": Curve([(0, 2.0), (4, 2.0)], "#000")})
    ((_, points),) = re.findall(r'<polyline (points)="([^"]+)"', chart)
    first, last = (tuple(map(float, point.split(","))) for point in points.split())
    assert first[1] == last[1] == (220 - 10 - 26) / 2 + 10
    assert (first[0], last[0]) == (52, 508)
    assert line_chart("t", {"a": Curve([], "#000")}) == ""
