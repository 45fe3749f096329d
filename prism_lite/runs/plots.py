"""Plots of a run: curves of each stage, smoothed with the raw ones faint, and results by stage.

Shares are drawn from 0 to 1, so that the plots of two runs compare at a glance. Without evaluations
inside a stage (`eval.every`) its held-out figures are those of the evaluations before and after it. The
drift meter measures the KL to the stage's start when a stage is evaluated (`eval.drift`): a point after
the last step. The curve `kl` beside it is that of training, where `rlvr.kl_weight` is above 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prism_lite.runs.report import INSIDE, RATE_COLUMNS, reward_name
from prism_lite.types import EVALUATED_STAGES

if TYPE_CHECKING:  # it imports torch
    from prism_lite.runs.folder import RunFolder

_MEMORY = 0.9  # share of its old value that a smoothed curve keeps at each step
_FEWEST_SMOOTHED = 20  # shorter curves are drawn as they are
_COLUMNS = 4
_DRIFT = "drift/kl_to_start"
# Metrics that are drawn from 0 to 1.
_SHARES = ("eval/", "rewards/", "frac_reward", "disc/pair", "disc/heldout", "disc/grounding")
# Metrics of each stage's plot; those in one tuple share axes.
_OPTIMIZER = [("grad_norm",), ("learning_rate",)]
_POLICY = [
    ("reward",),
    ("reward_std",),
    ("kl", "kl_to_start", _DRIFT),
    ("entropy",),
    ("completions/mean_length",),
    ("completions/clipped_ratio", "malformed_rate"),
    ("clip_ratio/region_mean",),
    *_OPTIMIZER,
]
_PAIRS = [
    ("disc/pair_accuracy_perception", "disc/pair_accuracy_reasoning"),
    ("disc/heldout_pair_accuracy_perception", "disc/heldout_pair_accuracy_reasoning"),
]
_PLOTS: dict[str, list[tuple[str, ...]]] = {
    "sft": [INSIDE, ("loss",), *_OPTIMIZER],
    "warmup": [("disc/loss",), *_PAIRS, ("disc/router_entropy",), ("learning_rate",)],
    "align": [
        INSIDE,
        *_PAIRS,
        ("disc/grounding_perception", "disc/grounding_reasoning"),
        ("disc/margin_perception", "disc/margin_reasoning"),
        ("loss",),
        *_POLICY,
    ],
    "rlvr": [INSIDE, *_POLICY, ("frac_reward_zero_std",)],
}


def write_plots(folder: RunFolder, stages: Collection[str] | None = None) -> None:
    """Write plots/*.png; no plot without measurements.

    Args:
        stages: whose curves are drawn; None: all, and the results by stage.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    (folder.path / "plots").mkdir(exist_ok=True)
    rewards = tuple(f"rewards/{reward_name(key)}/mean" for key in folder.config.rlvr.rewards)
    rlvr = [_PLOTS["rlvr"][0], rewards, *_PLOTS["rlvr"][1:]]
    results = folder.results()
    for stage, panels in (_PLOTS | {"control": rlvr, "rlvr": rlvr}).items():
        lines = folder.metrics(stage)
        if (stages is not None and stage not in stages) or not lines:
            continue
        lines += _points_of_evaluations(folder, stage, lines)
        figure = stage_figure(stage, lines, panels, plt)
        if figure is not None:
            _save(figure, folder, stage, plt)
    if stages is None:
        _plot_results(folder, results, plt)


def _points_of_evaluations(
    folder: RunFolder, stage: str, lines: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what the evaluations before and after a stage measured, as lines of its start and end."""
    results, start = folder.results(), -1  # one step before the first
    last = max(line["step"] for line in lines)
    points: list[dict[str, Any]] = []
    drift = results.get("drift", {}).get(stage, {})
    if "kl_to_start" in drift:
        points += [{"step": start, _DRIFT: 0.0}, {"step": last, _DRIFT: drift["kl_to_start"]}]
    before = {"sft": "base", "align": "sft", "control": "sft", "rlvr": folder.config.rlvr.start}
    figures = results.get("stages", {})
    if stage in figures and not any(name in line for line in lines for name in INSIDE):
        for step, source in ((start, before[stage]), (last, stage)):
            evaluated = figures.get(source, {})
            names = [name for name in INSIDE if name.removeprefix("eval/") in evaluated]
            points += [{"step": step, n: evaluated[n.removeprefix("eval/")]} for n in names]
    return points


def stage_figure(
    stage: str, lines: Sequence[Mapping[str, Any]], panels: Sequence[tuple[str, ...]], plt: Any
) -> Any:
    """Draw the curves of a stage; None if none of their metrics was measured."""
    measured = {name for line in lines for name in line}
    drawn = [names for panel in panels if (names := [name for name in panel if name in measured])]
    if not drawn:
        return None
    num_rows = -(-len(drawn) // _COLUMNS)
    num_columns = min(_COLUMNS, len(drawn))
    figure, axes = plt.subplots(
        num_rows, num_columns, figsize=(4 * num_columns, 3 * num_rows), squeeze=False
    )
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    for axis, names in zip(axes.flat, drawn, strict=False):
        for number, name in enumerate(names):
            points = [(line["step"] + 1, line[name]) for line in lines if name in line]
            _draw_curve(axis, points, name, f"C{number}")
        values = [line[name] for line in lines for name in names if name in line]
        is_share = names[0].startswith(_SHARES) or names[0] == "reward"
        if is_share and not any(value < 0 or value > 1 for value in values):
            axis.set_ylim(-0.02, 1.02)
        axis.set_xlabel("step")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.suptitle(stage)
    return figure


def _draw_curve(axis: Any, points: Sequence[tuple[int, float]], name: str, color: str) -> None:
    """Draw a metric: points of an evaluation with marks, steps smoothed where there are many."""
    steps, values = zip(*points, strict=True)
    if name.startswith("eval/") or len(steps) < _FEWEST_SMOOTHED:
        axis.plot(steps, values, marker="o", markersize=3, color=color, label=name)
        return
    axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    is_set = name == "learning_rate"  # not measured: nothing to smooth
    axis.plot(steps, values if is_set else smoothed(values), color=color, label=name)


def smoothed(values: Sequence[float], memory: float = _MEMORY) -> list[float]:
    """Return the exponential moving average, without the bias of its start; NaN is passed over."""
    averages, total, weight = [], 0.0, 0.0
    for value in values:
        if value == value:
            total = memory * total + (1 - memory) * value
            weight = memory * weight + (1 - memory)
        averages.append(total / weight if weight else value)
    return averages


def _plot_results(folder: RunFolder, results: Mapping[str, Any], plt: Any) -> None:
    figures = results.get("stages", {})
    stages = [stage for stage in EVALUATED_STAGES if stage in figures]
    if not stages:
        return
    figure, axis = plt.subplots(figsize=(7.5, 3.5))
    names = [name for name in RATE_COLUMNS if all(name in figures[stage] for stage in stages)]
    for i, name in enumerate(names):
        x = [position + 0.08 * (i - len(names) / 2) for position in range(len(stages))]
        values = [figures[stage][name] for stage in stages]
        low, high = zip(*(figures[stage]["ci95"][name] for stage in stages), strict=True)
        errors = [
            [max(0.0, value - end) for value, end in zip(values, low, strict=True)],
            [max(0.0, end - value) for value, end in zip(values, high, strict=True)],
        ]
        axis.errorbar(x, values, yerr=errors, fmt="o", capsize=2, label=RATE_COLUMNS[name])
    axis.set_xticks(range(len(stages)), stages)
    axis.set_ylim(0, 1.02)
    axis.set_title(f"{results['n']} held-out prompts, 95 % intervals", fontsize=9)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))  # never over a point
    _save(figure, folder, "results", plt)


def _save(figure: Any, folder: RunFolder, name: str, plt: Any) -> None:
    figure.tight_layout()
    figure.savefig(folder.path / "plots" / f"{name}.png", dpi=110)
    plt.close(figure)
