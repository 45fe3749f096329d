"""Tab Rewards: what each rollout of a step earned and why, with the alarms for gamed rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from demo import curves, folder, rows, view
from demo.site import Site, in_words
from prism_lite.parts import Parts, parse
from prism_lite.rewards import guards

HEADERS = [
    "rollout",
    "reward",
    "accuracy",
    "format",
    "advantage",
    "answer given",
    "gold",
    "verdict",
]
MAX_CELL = 60


def build(site: Site, page: gr.Blocks, run: gr.Dropdown) -> None:
    """Lay out the tab and wire it."""
    step = gr.Dropdown(label="RLVR step", elem_id="reward-step")
    numbers = gr.HTML(elem_id="reward-figures", elem_classes="figures-host")
    plot = gr.BarPlot(
        None,
        x="rollout",
        y="reward",
        color="part",
        title="Reward by group.rollout",
        color_title=" ",
        color_map={"accuracy": curves.GREEN, "format": curves.SKY},
        show_label=False,
        sort=None,
        x_label_angle=-60,
        height=300,
        elem_id="reward-bars",
        buttons=[],
    )
    alarms = gr.HTML(elem_id="alarms")
    table = gr.Dataframe(
        headers=HEADERS, interactive=False, show_label=False, elem_id="rewards", max_height=420,
        buttons=[],
    )  # fmt: skip
    text = gr.HighlightedText(
        label="Completion of the row that was clicked (at first the first one)", color_map=view.PART_COLORS,
        elem_classes="completion", show_whitespaces=True, elem_id="reward-text",
    )  # fmt: skip
    hidden: dict[str, Any] = {
        "queue": False, "show_progress": "hidden", "api_visibility": "private",
    }  # fmt: skip

    def list_steps(run_id: str) -> gr.Dropdown:
        steps = folder.rollout_steps(site.path(run_id), "rlvr")
        return gr.Dropdown(choices=steps, value=steps[-1] if steps else None)

    def show(run_id: str, chosen: int | None) -> tuple[Any, ...]:
        path = site.path(run_id)
        records = folder.read_rollouts(path, "rlvr", int(chosen)) if chosen is not None else ()
        if not records:
            empty = view.note("No rewards yet: they come with the first step of the RLVR stage.")
            return "", None, empty, None, None
        return _screen(path, int(chosen or 0), records)

    def pick(event: gr.SelectData, run_id: str, chosen: int | None) -> Any:
        records = folder.read_rollouts(site.path(run_id), "rlvr", int(chosen or 0))
        return view.part_spans(records[event.index[0]]["completion"])

    for event in (page.load, run.change):
        event(in_words(list_steps), [run], [step], **hidden)
    step.change(in_words(show), [run, step], [numbers, plot, alarms, table, text], **hidden)
    table.select(in_words(pick), [run, step], [text], **hidden)


def weights(path: Path) -> dict[str, float]:
    """Weight of each reward in the sum that RLVR trains on."""
    config = folder.read_config(path)["rlvr"]
    return {name: float(config[f"{name}_weight"]) for name in ("accuracy", "format")}


def reward_rows(
    records: Sequence[Mapping[str, Any]], weight: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Per rollout: its number "group.rollout", the weighted parts, and their sum."""
    found: list[dict[str, Any]] = []
    groups: dict[str, int] = {}
    for record in records:
        prompt_id = record["prompt_id"]
        group = groups.setdefault(prompt_id, len(groups) + 1)
        place = 1 + sum(row["group"] == group for row in found)
        parts = {name: weight[name] * record["rewards"][name] for name in weight}
        found.append(
            {
                "group": group,
                "rollout": f"{group}.{place}",
                "parts": parts,
                "sum": sum(parts.values()),
            }
        )
    return found


def _screen(path: Path, step: int, records: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    found = reward_rows(records, weights(path))
    logged = next((m for m in folder.read_metrics(path, "rlvr") if m["step"] == step), {})
    mean = sum(row["sum"] for row in found) / len(found)
    points = [
        (row["rollout"], name, value) for row in found for name, value in row["parts"].items()
    ]
    table = []
    for row, record in zip(found, records, strict=True):
        parts = parse(record["completion"])
        sample = rows.sample_by_id(path, record["prompt_id"])
        answer = parts.answer if isinstance(parts, Parts) else f"malformed: {parts.reason}"
        gold = sample.answer if sample else None
        right = record["rewards"]["accuracy"] > 0
        table.append(
            [
                row["rollout"],
                view.number(row["sum"]),
                view.number(record["rewards"]["accuracy"]),
                view.number(record["rewards"]["format"]),
                view.number(record["advantage"]),
                answer[:MAX_CELL],
                (gold or "unknown")[:MAX_CELL],
                "matches" if right else "does not match",
            ]
        )
    return (
        _numbers(found, mean, logged),
        pd.DataFrame(points, columns=["rollout", "part", "reward"]),
        _alarms(found, records),
        table,
        view.part_spans(records[0]["completion"]),
    )


def _numbers(found: Sequence[Mapping[str, Any]], mean: float, logged: Mapping[str, Any]) -> str:
    groups: dict[int, list[float]] = {}
    for row in found:
        groups.setdefault(row["group"], []).append(row["sum"])
    flat = sum(max(g) - min(g) < 1e-8 for g in groups.values())
    items = [
        (
            "mean of the bars",
            f"{mean:.3f}",
            "Mean over this step's rollouts of the weighted rewards.",
        ),
        (
            "groups without spread",
            f"{flat} of {len(groups)}",
            "All rollouts of such a group earned the same: it has no advantage and teaches nothing.",
        ),
    ]
    if "reward" in logged:
        items.insert(
            1,
            (
                "logged reward",
                f"{logged['reward']:.3f}",
                "What the training wrote to metrics.jsonl for this step; the bars must add up to it.",
            ),
        )
    return view.figures(items)


def _alarms(found: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> str:
    """The guards of prism_lite.rewards on this step's rollouts."""
    sums_by_group: dict[int, list[float]] = {}
    for row in found:
        sums_by_group.setdefault(row["group"], []).append(row["sum"])
    sizes = {len(group) for group in sums_by_group.values()}
    texts = [record["completion"] for record in records]
    alarms = [guards.repeated_text(texts), guards.answers_inside_think(texts)]
    if len(sizes) == 1:
        rewards = [row["sum"] for row in found]
        alarms.append(guards.zero_spread_groups(rewards, group_size=sizes.pop()))
    rung = [alarm for alarm in alarms if alarm is not None]
    if not rung:
        return view.note(
            "Guards: no alarm (repeated text, answers inside think, groups without spread).",
            kind="good",
        )
    return "".join(view.note(f"Alarm {a.name}: {a.message}", kind="warn") for a in rung)
