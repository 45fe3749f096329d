"""The table that a run ends with, on a terminal of 80 columns."""

import io

from rich.console import Console

from prism_lite.runs.report import results_table

FIGURES = {
    "accuracy": 0.5586,
    "greedy_accuracy": 0.6094,
    "caption_accuracy": 0.6992,
    "think_validity": 0.5732,
    "format_rate": 0.9541,
}
INTERVALS = {name: (value - 0.0481, value + 0.0481) for name, value in FIGURES.items()}


def test_no_figure_is_cut_off_at_eighty_columns() -> None:
    stage = {**FIGURES, "ci95": INTERVALS, "mean_tokens": 1032.2, "seconds": 12345.0}
    stages = {name: stage for name in ("base", "sft", "align", "rlvr")}
    text = io.StringIO()
    console = Console(file=text, width=80)
    console.print(results_table({"n": 256, "stages": stages, "seconds": {"warmup": 20.0}}))
    for cell in ("0.56±0.05", "0.61±0.05", "0.70±0.05", "0.57±0.05", "0.95±0.05", "1032.2"):
        assert text.getvalue().count(cell) == 4, cell
    assert "…" not in text.getvalue()
    assert all(len(line) <= 80 for line in text.getvalue().splitlines())
