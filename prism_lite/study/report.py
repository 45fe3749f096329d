"""What a study shows: tables for console and Markdown, sentences, one plot. Reads study.json's content."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from prism_lite.runs.report import COLUMNS, figures_header, figures_row, markdown_rows, rows_table
from prism_lite.study.arms import REFERENCE_ARM, START

START_ROW = "(SFT)"
# Intervals that are left out: seconds tell how busy the machine was.
BARE = ("seconds",)
BARE_ON_CONSOLE = ("seconds", "mean_tokens")  # 80 columns hold no more


def mean_rows(
    study: Mapping[str, Any], digits: int = 3, *, bare: Collection[str] = BARE
) -> list[list[str]]:
    """Header, the shared SFT policy and one row per arm: means over seeds and half their interval,
    which the figures in `bare` go without."""
    rows = [figures_header("arm")]
    for name, arm in ((START_ROW, START), *((arm, arm) for arm in study["arms"])):
        means = study["means"][arm]
        ci95 = {figure: found for figure, found in means["ci95"].items() if figure not in bare}
        rows.append(figures_row(name, {**means, "ci95": ci95}, digits))
    return rows


def difference_rows(study: Mapping[str, Any], digits: int = 3) -> list[list[str]]:
    """Header and one row per rival; * where the interval excludes zero. Empty without differences."""
    found = {(item["other"], item["figure"]): item for item in study["differences"]}
    columns = [(name, title) for name, title in COLUMNS if any(key[1] == name for key in found)]
    if not columns:
        return []
    rows = [[f"{REFERENCE_ARM} minus", *(title for _, title in columns)]]
    for other in dict.fromkeys(key[0] for key in found):
        cells = [difference_text(found.get((other, name)), digits) for name, _ in columns]
        rows.append([other, *cells])
    return rows


def difference_text(item: Mapping[str, Any] | None, digits: int = 3) -> str:
    """As +0.030±0.112, with * where the interval excludes zero; "-" where it was not measured."""
    if item is None:
        return "-"
    text = f"{item['mean']:+.{digits}f}"
    if item["ci95"] is None:
        return text
    low, high = item["ci95"]
    return f"{text}±{(high - low) / 2:.{digits}f}{'' if low <= 0 <= high else ' *'}"


def what_is_shown(study: Mapping[str, Any]) -> str:
    """One sentence about prompts, seeds and intervals."""
    seeds = ", ".join(map(str, study["seeds"]))
    intervals = (
        "95 % intervals (Student's t) over the seeds"
        if len(study["seeds"]) > 1
        else "one seed, so no intervals"
    )
    return (
        f"Means over seeds {seeds} on the same {study['n']} held-out prompts; {intervals}. Accuracy is "
        f"sampled at temperature 1, {study['num_samples']} completions a prompt. Seconds are those of "
        "training after the SFT that the arms of a seed share."
    )


def about_budgets(study: Mapping[str, Any]) -> str:
    """Whether the arms had the same to learn from; names what differs."""
    budgets = study["budgets"]
    same = len({tuple(sorted(found.items())) for found in budgets.values()}) == 1
    if same:
        found = next(iter(budgets.values()))
        return (
            f"Every arm makes {found['policy_updates']} policy updates after SFT and learns from "
            f"{found['completions']} completions in them."
        )
    each = "; ".join(
        f"{arm} {found['policy_updates']} updates, {found['completions']} completions"
        for arm, found in budgets.items()
    )
    return f"The arms differ in policy updates or completions learned from: {each}."


def sentences(study: Mapping[str, Any]) -> list[str]:
    """What may be said about accuracy, rival by rival."""
    found = []
    for item in study["differences"]:
        if item["figure"] == "accuracy":
            interval = "" if item["ci95"] is None else " [{:+.3f}, {:+.3f}]".format(*item["ci95"])
            found.append(
                f"accuracy of {REFERENCE_ARM} minus {item['other']}: {item['mean']:+.3f}{interval}: "
                f"{item['verdict']}"
            )
    return found


def about_differences(study: Mapping[str, Any]) -> str:
    """How to read the table of differences."""
    num = len(study["differences"])
    return (
        "Paired by seed. * the interval excludes zero; without it there is no evidence of a difference. "
        f"Of {num} such intervals {num / 20:.1f} exclude zero by chance alone, on average."
    )


def markdown(study: Mapping[str, Any]) -> str:
    """study.md: both tables and how to read them."""
    blocks = [
        f"# Study: recipe {study['recipe']}, {study['task']}",
        markdown_rows(mean_rows(study)),
        f"{what_is_shown(study)} {about_budgets(study)}",
    ]
    differences = difference_rows(study)
    if differences:
        blocks.append(markdown_rows(differences))
        if len(study["seeds"]) > 1:
            blocks.append(about_differences(study))
        blocks.append("\n".join(f"- {sentence}" for sentence in sentences(study)))
    return "\n\n".join(blocks) + "\n"


def print_study(study: Mapping[str, Any], console: Console) -> None:
    """Both tables, and the sentences about accuracy."""
    shown = mean_rows(study, digits=2, bare=BARE_ON_CONSOLE)
    console.print(rows_table(shown, f"recipe {study['recipe']}", is_tight=True))
    console.print(f"{what_is_shown(study)} {about_budgets(study)}", highlight=False)
    differences = difference_rows(study, digits=2)
    if differences:
        console.print(rows_table(differences, "paired differences"))
        if len(study["seeds"]) > 1:
            console.print(about_differences(study), highlight=False)
    for sentence in sentences(study):
        console.print(sentence, highlight=False, markup=False)


def write_plot(study: Mapping[str, Any], path: Path) -> None:
    """study.png: per figure one point and interval for each arm, its seeds behind it, and the shared
    SFT policy as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms, means = study["arms"], study["means"]
    shown = [(name, title) for name, title in COLUMNS if name in means[arms[0]]]
    size = (2.6 * len(shown) + 1, 0.5 * len(arms) + 1.4)
    figure, axes = plt.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False)
    for axis, (name, title) in zip(axes[0], shown, strict=True):
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
