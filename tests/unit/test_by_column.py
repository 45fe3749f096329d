"""Figures by a column of the held-out rows, against figures computed by hand."""

from __future__ import annotations

import json
import math

import pytest

from prism_lite.deploy.by_column import figures_by_column
from prism_lite.files import write_json
from prism_lite.recipe import load_recipe, to_dict
from tests.file_rows import make_rows, write_rows
from tests.pipeline.commands import in_process

KINDS = ("a", "b", "a", "a", "b")
ACCURACY = (1.0, 0.5, 0.0, 0.5, 1.0)


@pytest.fixture
def run(tmp_path):
    rows = [row | {"kind": k} for row, k in zip(make_rows(tmp_path, 5), KINDS, strict=True)]
    file = write_rows(tmp_path / "heldout.jsonl", rows)
    folder = tmp_path / "run"
    (folder / "evaluations").mkdir(parents=True)
    overrides = {"data.task": "files", "data.train": str(file), "data.heldout": str(file)}
    config = load_recipe("tiny", overrides)
    (folder / "config.yaml").write_text(json.dumps(to_dict(config)))
    rates = {"accuracy": ACCURACY, "format_rate": [1.0] * 5, "greedy_accuracy": ACCURACY}
    write_json(folder / "evaluations" / "sft.json", rates)
    return folder


def test_means_and_intervals_are_those_of_the_rows_of_each_value(run):
    a, b = figures_by_column(run, "kind")
    assert (a["stage"], a["value"], a["n"]) == ("sft", "a", 3)
    assert (b["stage"], b["value"], b["n"]) == ("sft", "b", 2)
    assert set(a) == {"stage", "value", "n", "accuracy", "format_rate"}
    # mean 0.5, deviation 0.5: 1.96 * 0.5 / sqrt(3) is more than 0.5
    assert a["accuracy"] == [0.5, 0.0, 1.0]
    # mean 0.75, deviation 0.25 * sqrt(2)
    half = 1.96 * 0.25 * math.sqrt(2) / math.sqrt(2)
    assert b["accuracy"] == pytest.approx([0.75, 0.75 - half, 1.0])


def test_the_command_prints_and_writes_them(run, tmp_path):
    done = in_process("figures", "--run", run, "--by", "kind", "--json", tmp_path / "f.json")
    assert done.returncode == 0, done.stderr
    assert "0.500 [0.000, 1.000]" in done.stdout
    assert json.loads((tmp_path / "f.json").read_text()) == figures_by_column(run, "kind")
    assert "no such column" in in_process("figures", "--run", run, "--by", "color").stderr


def test_an_unknown_column_and_a_changed_file_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"no such column; they have .*kind"):
        figures_by_column(run, "color")
    file = tmp_path / "heldout.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(ValueError, match="evaluated on 5 rows, now there are 4"):
        figures_by_column(run, "kind")
    (run / "evaluations" / "sft.json").unlink()
    with pytest.raises(ValueError, match="no stage was evaluated"):
        figures_by_column(run, "kind")
