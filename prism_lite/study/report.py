"""Tables, sentences and a plot of a study, from the content of study.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from prism_lite.runs.report import (
    RATE_COLUMNS,
    figures_header,
    figures_row,
    markdown_rows,
    rows_table,
)
from prism_lite.study.arms import REFERENCE_ARM, START

# Figures without an interval: seconds depend on the load of the machine.
_NO_INTERVAL = ("seconds",)
_NO_INTERVAL_ON_CONSOLE = ("seconds", "mean_tokens")  # the table must fit into 80 columns


def _mean_rows(
    study: Mapping[str, Any], digits: int = 3, *, no_interval: Collection[str] = _NO_INTERVAL
) -> list[list[str]]:
    """Return a header, the shared SFT policy and one row per arm: means and half their intervals."""
    rows = [figures_header("arm")]
    for title, arm in (("(SFT)", START), *((arm, arm) for arm in study["arms"])):
        means = study["means"][arm]
        ci95 = {name: ends for name, ends in means["ci95"].items() if name not in no_interval}
        rows.append(figures_row(title, {**means, "ci95": ci95}, digits))
    return rows


def _difference_rows(study: Mapping[str, Any], digits: int = 3) -> list[list[str]]:
    """Return a header and one row per compared arm; no rows without differences."""
    items = {(item["other"], item["figure"]): item for item in study["differences"]}
    names = [name for name in RATE_COLUMNS if any(figure == name for _, figure in items)]
    if not names:
        return []
    rows = [[f"{REFERENCE_ARM} minus", *(RATE_COLUMNS[name] for name in names)]]
    for other in dict.fromkeys(other for other, _ in items):
        cells = [_difference_text(items.get((other, name)), digits) for name in names]
        rows.append([other, *cells])
    return rows


def _difference_text(item: Mapping[str, Any] | None, digits: int) -> str:
    """Write +0.030±0.112, with * where the interval excludes zero; "-" where it was not measured."""
    if item is None:
        return "-"
    text = f"{item['mean']:+.{digits}f}"
    if item["ci95"] is None:
        return text
    low, high = item["ci95"]
    return f"{text}±{(high - low) / 2:.{digits}f}{'' if low <= 0 <= high else ' *'}"


def _about_means(study: Mapping[str, Any]) -> str:
    """Write which prompts, seeds and intervals the means are of, and what each arm learned from."""
    seeds = ", ".join(map(str, study["seeds"]))
    intervals = (
        "95 % intervals (Student's t) over the seeds"
        if len(study["seeds"]) > 1
        else "one seed, so no intervals"
    )
    return (
        f"Means over seeds {seeds} on the same {study['n']} held-out prompts; {intervals}. Accuracy is "
        f"sampled at temperature 1, {study['num_samples']} completions a prompt. Seconds are those of "
        f"training after the SFT that the arms of a seed share. {about_budgets(study)}"
    )


def about_budgets(study: Mapping[str, Any]) -> str:
    """Write whether the arms had the same updates and completions; name the numbers that differ."""
    budgets = study["budgets"]
    first = next(iter(budgets.values()))
    if all(budget == first for budget in budgets.values()):
        return (
            f"Every arm makes {first['policy_updates']} policy updates after SFT and learns from "
            f"{first['completions']} completions in them."
        )
    texts = (
        f"{arm} {budget['policy_updates']} updates, {budget['completions']} completions"
        for arm, budget in budgets.items()
    )
    return f"The arms differ in policy updates or completions learned from: {'; '.join(texts)}."


def _about_differences(study: Mapping[str, Any]) -> str:
    """Write how to read the table of differences; "" without intervals."""
    num = len(study["differences"])
    if not num or len(study["seeds"]) == 1:
        return ""
    return (
        "Paired by seed. * the interval excludes zero; without it there is no evidence of a difference. "
        f"Of {num} such intervals {num / 20:.1f} exclude zero by chance alone, on average."
    )


def _conclusions(study: Mapping[str, Any]) -> list[str]:
    """Write one sentence about accuracy for each compared arm."""
    sentences = []
    for item in study["differences"]:
        if item["figure"] == "accuracy":
            interval = "" if item["ci95"] is None else " [{:+.3f}, {:+.3f}]".format(*item["ci95"])
            sentences.append(
                f"accuracy of {REFERENCE_ARM} minus {item['other']}: {item['mean']:+.3f}{interval}: "
                f"{item['conclusion']}"
            )
    return sentences


def markdown(study: Mapping[str, Any]) -> str:
    """Write study.md: both tables and how to read them."""
    blocks = [
        f"# Study: recipe {study['recipe']}, {study['task']}",
        markdown_rows(_mean_rows(study)),
        _about_means(study),
    ]
    if differences := _difference_rows(study):
        conclusions = "\n".join(f"- {sentence}" for sentence in _conclusions(study))
        blocks += [markdown_rows(differences), _about_differences(study), conclusions]
    return "\n\n".join(filter(None, blocks)) + "\n"


def print_study(study: Mapping[str, Any], console: Console) -> None:
    """Print both tables, and the sentences about accuracy."""
    rows = _mean_rows(study, digits=2, no_interval=_NO_INTERVAL_ON_CONSOLE)
    console.print(rows_table(rows, f"recipe {study['recipe']}", is_tight=True))
    console.print(_about_means(study), highlight=False)
    if differences := _difference_rows(study, digits=2):
        console.print(rows_table(differences, "paired differences"))
    for sentence in filter(None, (_about_differences(study), *_conclusions(study))):
        console.print(sentence, highlight=False, markup=False)


def write_plot(study: Mapping[str, Any], path: Path) -> None:
    """Plot each arm's mean, interval and seeds for each figure, and the shared SFT policy as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms, means = study["arms"], study["means"]
    columns = {name: title for name, title in RATE_COLUMNS.items() if name in means[arms[0]]}
    size = (2.6 * len(columns) + 1, 0.5 * len(arms) + 1.4)
    figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False)
    for axis, (name, title) in zip(axes[0], columns.items(), strict=True):
        for row, arm in enumerate(arms):
            values = [run[name] for run in study["runs"][arm].values()]
            axis.plot(values, [row] * len(values), "o", color="0.75", markersize=4, zorder=1)
            mean, ci95 = means[arm][name], means[arm]["ci95"].get(name)
            half = None if ci95 is None else (ci95[1] - ci95[0]) / 2
            colour = "C1" if arm == REFERENCE_ARM else "C0"
            axis.errorbar(mean, row, xerr=half, fmt="o", color=colour, capsize=3, zorder=2)
        axis.axvline(means[START][name], color="0.5", linestyle=":", zorder=0)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(arms)), arms)
    axes[0][0].set_ylim(len(arms) - 0.5, -0.5)
    seeds = ", ".join(map(str, study["seeds"]))
    intervals = "bars: 95 % intervals over seeds, " if len(study["seeds"]) > 1 else ""
    figure.supxlabel(
        f"seeds {seeds} (grey) and their mean; {intervals}dotted: the shared SFT policy", fontsize=8
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
