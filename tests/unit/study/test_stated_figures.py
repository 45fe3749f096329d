"""The figures of the study in the README, RESULTS.md and METHOD.md are those of the stored studies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import prism_lite
from prism_lite.files import read_json
from prism_lite.study.measured import MEASURED
from tests.bench import game_options

ROOT = Path(prism_lite.__file__).parents[1]
# Each with the fewest rows and differences that it states.
TEXTS = {
    ROOT / "README.md": (5, 4),
    ROOT / "prism_lite" / "study" / "RESULTS.md": (10, 8),
    ROOT / "prism_lite" / "METHOD.md": (10, 8),
}
COLUMNS = ("accuracy", "transfer_accuracy", "caption_accuracy", "think_validity")
ARMS = {
    "RLVR alone": "none",
    "RLVR alone, without SFT": "base",
    "the game kept on for 60, discriminator untrained and frozen": "frozen",
    "**alignment 30, then RLVR 30 with the game kept on** (the recipe)": "game-both",
    "alignment 30, then RLVR 30 without the game": "adversarial",
    "RLVR 60 with the game kept on": "game-on",
    "game kept on, one dense expert": "one-expert",
    "game kept on, free routing": "free",
    "game kept on, exact verdicts as scores": "oracle",
    "SFT on the teacher's text 30, then RLVR 30": "sft-30",
    "SFT on the teacher's text 10, then RLVR 50": "sft-10",
    "SFT on the best of 8 own answers 30, then RLVR 30": "best-of-n",
    "RLVR with the teacher's text as a rollout": "mixed",
    "DPO (teacher over a static sample) 30, then RLVR 30": "dpo",
}


def studies() -> Iterator[dict[str, Any]]:
    """Yield the stored studies, each cell of one with axes by itself."""
    for file in sorted(MEASURED.parent.glob("*.json")):
        study = read_json(file)
        yield from study.get("cells", {"": study}).values()


def stated_rows(text: str) -> list[tuple[str, str]]:
    """Return title and cells of the table rows with intervals."""
    lines = re.findall(r"^ *\| (.+?) \| (\d \| \d\.\d{3} \[.+) \|$", text, re.MULTILINE)
    return [(title, cells) for title, cells in lines]


def measured_rows() -> set[tuple[str, str]]:
    """Write the row of every arm of every stored study, without and with its seconds."""
    rows = set()
    for study in studies():
        for name, arm in study["arms"].items():
            cells = [str(len(arm["seeds"]))]
            for column in COLUMNS:
                low, high = arm["means"][column]["bootstrap95"]
                cells.append(f"{arm['means'][column]['mean']:.3f} [{low:.3f}, {high:.3f}]")
            seconds = f"{fmean(seed['seconds'] for seed in arm['seeds'].values()):.0f}"
            rows |= {(name, " | ".join(cells)), (name, " | ".join([*cells, seconds]))}
    return rows


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_the_rows_of_its_tables_are_arms_of_the_studies(file):
    measured = measured_rows()
    rows = stated_rows(file.read_text(encoding="utf-8"))
    assert len(rows) >= TEXTS[file][0]
    wrong = [row for row in rows if (ARMS[row[0]], row[1]) not in measured]
    assert not wrong


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_its_differences_are_those_of_the_studies(file):
    """A mean with its bootstrap interval, in either direction."""
    measured = set()
    for study in studies():
        for item in study["differences"]:
            mean, ends = item["mean"], item["bootstrap95"]
            for sign, (low, high) in ((1, ends), (-1, ends[::-1])):
                measured.add(f"{sign * mean:+.3f} [{sign * low:.3f}, {sign * high:.3f}]")
    number = r"-?\d\.\d{3}"
    text = " ".join(file.read_text(encoding="utf-8").split())
    stated = re.findall(rf"[+-]\d\.\d{{3}} \[{number}, {number}\]", text)
    assert len(stated) >= TEXTS[file][1]
    assert not [difference for difference in stated if difference not in measured]


def test_the_table_of_the_games_forms_is_the_benchs():
    text = (
        (ROOT / "tests" / "bench" / "RESULTS.md")
        .read_text(encoding="utf-8")
        .partition("# Forms of the game")[2]
    )
    stated = {
        name: ([*map(int, seeds.split(", "))], [float(c.split()[0]) for c in cells.split(" | ")])
        for name, seeds, cells in re.findall(
            r"^\| ([a-z][\w-]+) \| ([\d, ]+) \| (0\..+) \|$", text, re.MULTILINE
        )
    }
    variants = read_json(game_options.RESULTS)["variants"]
    assert stated.keys() == variants.keys()
    for name, seeds in variants.items():
        means = [
            fmean(figures[column] for figures in seeds.values()) for column in game_options.COLUMNS
        ]
        assert stated[name][0] == [*map(int, seeds)]
        assert stated[name][1] == pytest.approx(means, abs=5.1e-4)
