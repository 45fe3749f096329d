"""Sections of study.md beside the tables of means: discriminators, curves, tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from prism_lite.runs.report import markdown_rows
from prism_lite.study.curves import AXES
from prism_lite.study.results import FIGURES


def judge_blocks(study: Mapping[str, Any]) -> list[str]:
    """Write what each arm's discriminator knew, means over the seeds; no blocks without one."""
    columns = {
        "auc_perception_first": "captions, first steps",
        "auc_perception": "captions, all steps",
        "auc_reasoning_first": "thinks, first steps",
        "auc_reasoning": "thinks, all steps",
        "grounding_perception_untrained": "caption probe, untrained",
        "grounding_perception": "caption probe, trained",
        "grounding_reasoning_untrained": "think probe, untrained",
        "grounding_reasoning": "think probe, trained",
    }
    rows = []
    for name, arm in study["arms"].items():
        judges = [judge for judge in arm.get("judge", {}).values() if judge]
        if judges:
            values = [[j[column] for j in judges if column in j] for column in columns]
            rows.append([name, *(f"{fmean(v):.2f}" if v else "-" for v in values)])
    if not rows:
        return []
    return [
        "## What the discriminator knows",
        "AUC within groups: the probability that a part which the verifier finds right outscores a wrong "
        "one of the same group, over the first five steps and all of them; 0.5 is chance. The frozen arm "
        "is the untrained baseline. Probes: the share of held-out pairs whose clean part outscores its "
        "corrupted copy, before and after the warm-up.",
        markdown_rows([["arm", *columns.values()], *rows]),
    ]


def curve_blocks(study: Mapping[str, Any], plots: Sequence[Path]) -> Iterator[str]:
    with_areas = {name: arm["areas"] for name, arm in study["arms"].items() if arm.get("areas")}
    if not with_areas:
        return
    yield "## Curves"
    yield (
        "Areas under the curves of the evaluations inside the stages, divided by the length of the "
        "axis. Seconds include the discriminator's warm-up; a run that ends earlier than the slowest "
        "one keeps its last value. Curves begin at the SFT policy, that of arm base at its first "
        "evaluation."
    )
    names = [name for name in FIGURES if name in next(iter(with_areas.values()))[AXES[0]]]
    header = [f"{FIGURES[name]}, over {axis}" for name in names for axis in AXES]
    rows = [
        [arm, *(f"{areas[axis][name]:.3f}" for name in names for axis in AXES)]
        for arm, areas in with_areas.items()
    ]
    yield markdown_rows([["arm", *header], *rows])
    for path in plots:
        yield f"![{path.stem}]({path.name})"


def tuning_blocks(study: Mapping[str, Any]) -> Iterator[str]:
    tuned = {name: arm for name, arm in study["arms"].items() if "tuning" in arm}
    if not tuned:
        return
    seeds = ", ".join(map(str, study["tuning"]["seeds"]))
    yield "## Tuning"
    yield (
        f"Every arm had the same number of tries, on seeds {seeds}, which are not reported; the best by "
        f"{study['tuning']['best_by']} is used above."
    )
    names = figures_in(study)
    rows = [["arm", "seed", "setting", *(FIGURES[name] for name in names), "used"]]
    for arm, values in tuned.items():
        for item in values["tuning"]:
            figures = [f"{item['figures'][name]:.3f}" for name in names]
            used = "yes" if item["overrides"] == values["tuned"] else ""
            settings = ", ".join(f"`{text}`" for text in item["overrides"])
            rows.append([arm, str(item["seed"]), settings, *figures, used])
    yield markdown_rows(rows)


def figures_in(study: Mapping[str, Any]) -> list[str]:
    first = next(iter(study["arms"].values()))
    return [name for name in FIGURES if name in first["means"]]
