"""Plots of a study: means with intervals, and curves against completions and seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from prism_lite.study.curves import AXES
from prism_lite.study.results import FIGURES

_CURVES = ("accuracy", "caption_accuracy", "transfer_accuracy")


def plot_means(study: Mapping[str, Any], path: Path) -> None:
    """Plot each arm's mean, interval and seeds for each figure, and the SFT policy as a line."""
    plt = _pyplot()
    arms = study["arms"]
    first = next(iter(arms.values()))
    names = [name for name in FIGURES if name in first["means"]]
    size = (2.6 * len(names) + 1, 0.4 * len(arms) + 1.5)
    figure, axes = plt.subplots(1, len(names), figsize=size, sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for row, (arm, values) in enumerate(arms.items()):
            of_seeds = [run[name] for run in values["seeds"].values()]
            axis.plot(of_seeds, [row] * len(of_seeds), "o", color="0.75", markersize=4, zorder=1)
            item = values["means"][name]
            mean, ends = item["mean"], item["bootstrap95"]
            # a percentile interval of few seeds may miss the mean by a rounding error
            error = None if ends is None else [[max(0, mean - ends[0])], [max(0, ends[1] - mean)]]
            colour = "C1" if arm == study["reference"] else "C0"
            axis.errorbar(mean, row, xerr=error, fmt="o", color=colour, capsize=3, zorder=2)
        start = fmean(run[name] for run in study["start"]["sft"].values())
        axis.axvline(start, color="0.5", linestyle=":", zorder=0)
        axis.set_title(FIGURES[name], fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(arms)), arms)
    axes[0][0].set_ylim(len(arms) - 0.5, -0.5)
    seeds = ", ".join(map(str, study["seeds"]))
    intervals = "bars: 95 % bootstrap intervals; " if len(study["seeds"]) > 1 else ""
    figure.supxlabel(
        f"grey: seeds {seeds}; blue and orange (the reference): means; {intervals}dotted: SFT",
        fontsize=8,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_curves(study: Mapping[str, Any], folder: Path) -> list[Path]:
    """Plot the seeds' mean curves, one file per figure; return the files, none without curves."""
    curves = {
        arm: [curve for curve in values["curves"].values() if curve]
        for arm, values in study["arms"].items()
    }
    curves = {arm: of_arm for arm, of_arm in curves.items() if of_arm}
    if not curves:
        return []
    plt = _pyplot()
    paths = []
    for name in _CURVES:
        if name not in next(iter(curves.values()))[0][0]:
            continue
        figure, axes = plt.subplots(1, len(AXES), figsize=(11, 4), sharey=True)
        for axis, x_name in zip(axes, AXES, strict=True):
            for number, (arm, of_arm) in enumerate(curves.items()):
                # the runs of an arm are evaluated after the same steps
                points = [*zip(*of_arm, strict=True)]
                x = [fmean(point[x_name] for point in at_step) for at_step in points]
                y = [fmean(point[name] for point in at_step) for at_step in points]
                style = "-" if number < 10 else "--"
                width = 2.5 if arm == study["reference"] else 1.3
                axis.plot(
                    x, y, style, color=f"C{number % 10}", linewidth=width, marker=".", label=arm
                )
            axis.set_xlabel(f"{x_name} after SFT")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(FIGURES[name])
        axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.tight_layout()
        path = folder / f"curves-{name.removesuffix('_accuracy')}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        paths.append(path)
    return paths


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
