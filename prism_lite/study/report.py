"""Tables, sentences and plots of a study, from the content of study.json alone.

`python -m prism_lite.study.report DIR` writes study.md and the plots of DIR/study.json again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from prism_lite.console import say
from prism_lite.files import read_json, write_text
from prism_lite.runs.report import markdown_rows, rows_table
from prism_lite.study.plots import plot_curves, plot_means
from prism_lite.study.report_sections import (
    curve_blocks,
    figures_in,
    judge_blocks,
    tuning_blocks,
)
from prism_lite.study.results import FIGURES

_START_TITLES = {"base": "(base)", "sft": "(SFT)"}


def write_report(study: Mapping[str, Any], folder: Path) -> None:
    """Write study.md and the plots of a study, or of one with cells, to its folder."""
    if "cells" in study:
        write_text(folder / "study.md", _cells_markdown(study))
        return
    plot_means(study, folder / "study.png")
    curves = plot_curves(study, folder)
    write_text(folder / "study.md", markdown(study, curves))


def rebuild_reports(folder: Path) -> None:
    """Write the reports of a folder's study.json again, and those of its cells.

    Raises:
        ValueError: the folder has no study.json.
    """
    file = folder / "study.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing: name the folder of a finished study.")
    study = read_json(file)
    write_report(study, folder)
    for name, cell in study.get("cells", {}).items():
        (folder / name).mkdir(exist_ok=True)
        write_report(cell, folder / name)


def markdown(study: Mapping[str, Any], curves: Sequence[Path] = ()) -> str:
    """Write study.md of a study without axes.

    Args:
        curves: plots of curves, in the report's folder.
    """
    blocks = [
        f"# Study: recipe {study['recipe']}, {study['task']}",
        _origin(study),
        "## Means",
        _about_means(study),
        markdown_rows(_mean_rows(study, "bootstrap95")),
        "![means](study.png)",
        *_student_block(_mean_rows(study, "student95"), study),
        "## What the arms learned from",
        about_budgets(study),
        markdown_rows(_budget_rows(study)),
        "Settings by which the arms differ from the command's:",
        _settings_list(study),
        *judge_blocks(study),
        *_difference_blocks(study),
        *curve_blocks(study, curves),
        *tuning_blocks(study),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def print_study(study: Mapping[str, Any], console: Console) -> None:
    """Print the tables of means and differences, and the conclusions, in 80 columns."""
    if "cells" in study:
        for figure, title in FIGURES.items():
            if rows := _cell_rows(study, figure, digits=2):
                console.print(rows_table(rows, title, is_tight=True))
        return
    rows = _mean_rows(study, None)
    console.print(rows_table(rows, f"recipe {study['recipe']}", is_tight=True))
    say(console, f"{_about_means(study)} {about_budgets(study)}")
    if rows := _difference_rows(study, None):
        console.print(rows_table(rows, "paired differences", is_tight=True))
        say(console, _about_differences(study))
    for sentence in _conclusions(study):
        say(console, sentence)


def about_budgets(study: Mapping[str, Any]) -> str:
    """Write whether the arms had the same updates and completions; name the numbers that differ."""
    counts = {
        name: (arm["policy_updates"], arm["completions"]) for name, arm in study["arms"].items()
    }
    if len(set(counts.values())) == 1:
        updates, completions = next(iter(counts.values()))
        return (
            f"Every arm makes {updates} policy updates after SFT and learns from {completions} "
            "completions in them."
        )
    texts = (f"{name} {u} updates, {c} completions" for name, (u, c) in counts.items())
    return f"The arms differ in policy updates or completions learned from: {'; '.join(texts)}."


def _origin(study: Mapping[str, Any]) -> str:
    """Write the command, the version, and what varies between seeds."""
    bases = study["base_seeds"]
    base = (
        f"one base for all seeds (tiny.seed = {bases[0]})"
        if len(bases) == 1
        else "a base of its own for each seed"
    )
    return (
        f"`{study['command']}`, prism_lite {study['version']}, commit {study['commit']}.\n\n"
        f"Seeds vary the drawn rows, their order and all sampling, with {base}; the held-out prompts "
        "are the same."
    )


def _about_means(study: Mapping[str, Any]) -> str:
    """Write which prompts, seeds and intervals the means are of."""
    seeds = ", ".join(map(str, study["seeds"]))
    intervals = (
        "95 % intervals of a crossed bootstrap over seeds and prompts"
        if len(study["seeds"]) > 1
        else "one seed, so no intervals"
    )
    counts = study["num_prompts"]
    prompts = f"{counts['accuracy']} held-out prompts"
    if "transfer_accuracy" in counts:
        prompts += f" ({counts['transfer_accuracy']} of the transfer set)"
    return (
        f"Means over n = {len(study['seeds'])} seeds ({seeds}) on the same {prompts}, "
        f"{study['num_samples']} completions each at temperature 1; {intervals}."
    )


def _mean_rows(study: Mapping[str, Any], interval: str | None) -> list[list[str]]:
    """Return a header, base, SFT and one row per arm; without `interval` the console's short form."""
    names = figures_in(study)
    rows = [["arm", *(FIGURES[name] for name in names)]]
    for stage, title in _START_TITLES.items():
        runs = [*study["start"][stage].values()]
        digits = 3 if interval else 2
        rows.append([title, *(f"{fmean(r[name] for r in runs):.{digits}f}" for name in names)])
    for name, arm in study["arms"].items():
        rows.append([name, *(_cell(arm["means"][figure], interval) for figure in names)])
    return rows


def _cell(item: Mapping[str, Any], interval: str | None, sign: str = "") -> str:
    """Write 0.61±0.02, or with `interval` 0.610 [0.588, 0.632]."""
    if interval is None:
        ends = item["bootstrap95"]
        text = f"{item['mean']:{sign}.2f}"
        return text if ends is None else f"{text}±{(ends[1] - ends[0]) / 2:.2f}"
    text, ends = f"{item['mean']:{sign}.3f}", item[interval]
    return text if ends is None else f"{text} [{ends[0]:{sign}.3f}, {ends[1]:{sign}.3f}]"


def _student_block(rows: list[list[str]], study: Mapping[str, Any]) -> Iterator[str]:
    if len(study["seeds"]) > 1:
        yield "The same with Student's intervals over the seeds:"
        yield markdown_rows(rows)


def _budget_rows(study: Mapping[str, Any]) -> list[list[str]]:
    rows = [["arm", "alignment updates", "updates", "completions", "seconds after SFT"]]
    for name, arm in study["arms"].items():
        seconds = fmean(run["seconds"] for run in arm["seeds"].values())
        counts = (arm[key] for key in ("alignment_updates", "policy_updates", "completions"))
        rows.append([name, *map(str, counts), f"{seconds:.0f}"])
    return rows


def _settings_list(study: Mapping[str, Any]) -> str:
    """List by which settings each arm differs from the recipe."""
    return "\n".join(
        f"- {name}: {' '.join(f'`{text}`' for text in arm['overrides']) or 'the recipe itself'}"
        for name, arm in study["arms"].items()
    )


def _difference_rows(study: Mapping[str, Any], interval: str | None) -> list[list[str]]:
    """Return a header and one row per compared arm; no rows without differences."""
    items = {(item["other"], item["figure"]): item for item in study["differences"]}
    if not items:
        return []
    names = [name for name in FIGURES if any(figure == name for _, figure in items)]
    rows = [[f"{study['reference']} minus", *(FIGURES[name] for name in names)]]
    for other in dict.fromkeys(other for other, _ in items):
        cells = []
        for name in names:
            item = items.get((other, name))
            mark = " *" if item and item["conclusion"] in ("higher", "lower") else ""
            cells.append("-" if item is None else _cell(item, interval, sign="+") + mark)
        rows.append([other, *cells])
    return rows


def _difference_blocks(study: Mapping[str, Any]) -> Iterator[str]:
    if rows := _difference_rows(study, "bootstrap95"):
        yield "## Paired differences"
        yield _about_differences(study)
        yield markdown_rows(rows)
        yield from _student_block(_difference_rows(study, "student95"), study)
        yield "\n".join(f"- {sentence}" for sentence in _conclusions(study))


def _about_differences(study: Mapping[str, Any]) -> str:
    """Write how to read the table of differences, and how many there are."""
    num = len(study["differences"])
    if len(study["seeds"]) == 1:
        return "One seed, so no intervals and no conclusions."
    return (
        "Paired by seed and prompt. * both intervals, the bootstrap's and Student's, exclude zero; "
        f"without it there is no evidence of a difference. These are {num} comparisons: of as many "
        f"95 % intervals {num / 20:.1f} exclude zero by chance alone, on average."
    )


def _conclusions(study: Mapping[str, Any]) -> list[str]:
    """Write one sentence for each difference whose intervals exclude zero."""
    return [
        f"{FIGURES[item['figure']]} of {study['reference']} is {item['conclusion']} than that of "
        f"{item['other']}: {item['mean']:+.3f} [{item['bootstrap95'][0]:+.3f}, "
        f"{item['bootstrap95'][1]:+.3f}]"
        for item in study["differences"]
        if item["conclusion"] in ("higher", "lower")
    ]


def _cell_rows(study: Mapping[str, Any], figure: str, digits: int = 3) -> list[list[str]]:
    """Return one row per arm and one column per cell with the means of a figure."""
    cells = study["cells"]
    arms = next(iter(cells.values()))["arms"]
    if figure not in next(iter(arms.values()))["means"]:
        return []
    interval = "bootstrap95" if digits == 3 else None
    return [
        ["arm", *cells],
        *(
            [arm, *(_cell(cell["arms"][arm]["means"][figure], interval) for cell in cells.values())]
            for arm in arms
        ),
    ]


def _cells_markdown(study: Mapping[str, Any]) -> str:
    """Write study.md of a study with axes: a table of all cells for each figure."""
    cells = study["cells"]
    first = next(iter(cells.values()))
    links = ", ".join(f"[{name}]({name}/study.md)" for name in cells)
    blocks = [
        f"# Study: recipe {first['recipe']}, {len(cells)} cells",
        _origin(first),
        f"{_about_means(first)} Differences and curves of each cell: {links}.",
    ]
    for figure, title in FIGURES.items():
        if rows := _cell_rows(study, figure):
            blocks += [f"## {title.capitalize()}", markdown_rows(rows)]
    blocks.append("## Differences that exclude zero")
    blocks += [
        "\n".join(
            f"- {name}: {sentence}" for name in cells for sentence in _conclusions(cells[name])
        )
        or "None."
    ]
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    rebuild_reports(Path(sys.argv[1]))
