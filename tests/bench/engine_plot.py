"""The plot of the engine's benchmark: speedups on the left, growth of a step on the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OURS, THEIRS, TARGET = "#1a7f5a", "#9aa5b1", "#c0392b"


def plot(found: dict[str, Any], path: Path) -> Path:
    """Draw whatever parts there are.

    Returns:
        `path`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogFormatter

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    bars = [
        (f"{label} {case}", figures["ratio"])
        for part, label in (
            ("rollouts", "rollouts"),
            ("grpo", "GRPO step"),
            ("discriminator", "disc. step"),
        )
        for case, figures in found.get(part, {}).items()
    ]
    names, ratios = [name for name, _ in bars], [ratio for _, ratio in bars]
    drawn = left.barh(names, ratios, color=OURS)
    left.bar_label(drawn, [f"{ratio:.1f}x" for ratio in ratios], padding=3)
    left.axvline(1, color=THEIRS, linewidth=1)
    left.set(title="times faster than theirs", xlim=(0, 1.25 * max(ratios, default=1)))
    left.invert_yaxis()
    for axis, key, label in (
        (middle, "G", "rollouts per prompt (768-token prompt)"),
        (right, "P", "prompt tokens (16 rollouts)"),
    ):
        points = sorted(
            (int(case.split()[1]), figures["s"], figures["mib"])
            for case, figures in found.get("growth", {}).items()
            if case.startswith(key)
        )
        axis.set(title="one whole GRPO step of ours", xlabel=label)
        if not points:
            continue
        sizes, seconds, mib = zip(*points, strict=True)
        axis.plot(sizes, seconds, "o-", color=OURS, label="seconds (left)")
        axis.set(xscale="log", yscale="log", ylabel="seconds")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axis.set_xticks([], minor=True)
        twin = axis.twinx()
        twin.plot(sizes, mib, "s--", color="#34618e", label="MiB above the model (right)")
        twin.set(yscale="log", ylabel="MiB")
        linear = [seconds[-1] * size / sizes[-1] for size in sizes]
        axis.plot(sizes, linear, ":", color=THEIRS, label="linear growth")
        for scaled in (axis.yaxis, twin.yaxis):
            scaled.set_major_formatter("{x:g}")
            scaled.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        handles = [*axis.get_legend_handles_labels()[0], *twin.get_legend_handles_labels()[0]]
        labels = [*axis.get_legend_handles_labels()[1], *twin.get_legend_handles_labels()[1]]
        axis.legend(handles, labels, fontsize=8, loc="upper left")
    for axis in (left, middle, right):
        axis.spines[["top"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
