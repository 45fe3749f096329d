"""The table that a run ends with, on a terminal of 80 columns."""

import io
import json

from rich.console import Console

from prism_lite.runs.changes import change_rows
from prism_lite.runs.report import markdown_table, results_table, stage_line

FIGURES = {
    "accuracy": 0.5586,
    "greedy_accuracy": 0.6094,
    "transfer_accuracy": 0.6592,
    "caption_accuracy": 0.6992,
    "think_validity": 0.5732,
    "format_rate": 0.9541,
}
INTERVALS = {name: (value - 0.0481, value + 0.0481) for name, value in FIGURES.items()}


def test_no_figure_is_cut_off_at_eighty_columns() -> None:
    stage = {**FIGURES, "ci95": INTERVALS, "mean_tokens": 1032.2, "seconds": 12345.0}
    stages = {name: stage for name in ("base", "sft", "control", "align", "rlvr")}
    text = io.StringIO()
    console = Console(file=text, width=80)
    console.print(results_table({"n": 256, "stages": stages, "seconds": {"warmup": 20.0}}))
    for cell in ("0.56±0.05", "0.66±0.05", "0.70±0.05", "0.57±0.05", "0.95±0.05", "12345"):
        assert text.getvalue().count(cell) == (5 if cell != "12345" else 4), cell
    assert "RLVR alone" in text.getvalue()
    assert "…" not in text.getvalue()
    assert all(len(line) <= 80 for line in text.getvalue().splitlines())


def test_changes_are_paired_by_prompt(tmp_path) -> None:
    """By hand: differences 1, 1, 0, 0 have mean 0.5 and a standard error of sqrt(1/3) / 2."""
    before = {"accuracy": [0.0, 0.0, 0.5, 1.0], "caption_accuracy": [0.2, 0.4, 0.6, 0.8]}
    after = {"accuracy": [1.0, 1.0, 0.5, 1.0], "caption_accuracy": [0.3, 0.5, 0.7, 0.9]}
    (tmp_path / "evaluations").mkdir()
    for stage, rates in {"sft": before, "control": before, "rlvr": after}.items():
        (tmp_path / "evaluations" / f"{stage}.json").write_text(json.dumps(rates))
    header, *rows = change_rows(tmp_path, rlvr_start="sft")
    assert header == ["change", "accuracy", "captions"]
    half = 1.96 * (1 / 3) ** 0.5 / 2
    assert rows == [
        ["RLVR alone - sft", "+0.00±0.00", "+0.00±0.00"],
        ["rlvr - sft", f"+0.50±{half:.2f}", "+0.10±0.00*"],
        ["rlvr - RLVR alone", f"+0.50±{half:.2f}", "+0.10±0.00*"],
    ]


def test_changes_need_two_evaluated_stages(tmp_path) -> None:
    assert change_rows(tmp_path, rlvr_start="align") == []


def test_a_skewed_interval_is_a_range_and_keeps_the_figure() -> None:
    """16 of 16: Wilson's interval is 0.81 to 1, and 1.00±0.10 would be wrong on both sides."""
    figures = {"accuracy": 1.0, "ci95": {"accuracy": (0.806, 1.0)}, "mean_tokens": 9.0}
    text = io.StringIO()
    results = {"n": 16, "stages": {"base": figures}}
    Console(file=text, width=80).print(results_table(results))
    assert "1.00" in text.getvalue() and "0.81-1.00" in text.getvalue()
    assert "±" not in text.getvalue() and "warm-up" not in text.getvalue()
    assert "| 1.000 (0.806 to 1.000) |" in markdown_table(results)
    assert stage_line("base", figures) == "base  accuracy 1.000 (0.806 to 1.000)"
