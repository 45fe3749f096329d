"""Tab Rewards: what each rollout of a step earned and why, with the alarms for gamed rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from demo.runs import folder, samples
from demo.screens import curves, html, widgets
from demo.site import Header, Site, connect
from prism_lite.stages import guards

MAX_CELL = 60

Records = Sequence[Mapping[str, Any]]


def build(site: Site, header: Header) -> None:
    """Lay out the tab and connect its events."""
    step = gr.Dropdown(label="RLVR step", elem_id="reward-step")
    figures = widgets.figures("reward-figures")
    plot = widgets.bars(
        "Weighted rewards by group.rollout", "reward-bars", x="rollout", y="value", color="reward",
        height=300, x_label_angle=-60, y_title="reward",
    )  # fmt: skip
    alarms = gr.HTML(elem_id="alarms")
    table = widgets.table("rewards", max_height=420)
    row = gr.Dropdown(label="Rollout (or click it in the table)", elem_id="reward-row")
    completion = widgets.completion("Completion", "reward-text")

    def list_steps(run_id: str) -> gr.Dropdown:
        steps = folder.rollout_steps(site.path(run_id), "rlvr")
        return gr.Dropdown(choices=steps, value=steps[-1] if steps else None)

    def read(run_id: str, step: int | None) -> Records:
        path = site.path(run_id)
        return () if step is None else folder.read_rollouts(path, "rlvr", int(step))

    def show(run_id: str, step: int | None) -> tuple[Any, ...]:
        records = read(run_id, step)
        if not records:
            note = html.note("No rewards yet: they come with the first step of the RLVR stage.")
            return "", None, note, None, gr.Dropdown(choices=[], value=None), None
        return _screen(site.path(run_id), int(step or 0), records)

    def show_row(run_id: str, step: int | None, index: int | None) -> Any:
        records = read(run_id, step)
        is_listed = index is not None and 0 <= index < len(records)
        return html.part_spans(records[index]["completion"]) if is_listed else None

    def pick(event: gr.SelectData) -> int:
        return event.index[0]

    inputs = [header.run_choice, step]
    header.on_run(list_steps, [step])
    connect(step.change, show, inputs, [figures, plot, alarms, table, row, completion])
    connect(table.select, pick, None, [row])
    connect(row.change, show_row, [*inputs, row], [completion])


def reward_weights(path: Path) -> dict[str, float]:
    """Return the weight of each reward in the sum that RLVR trains on, without zeros."""
    config = folder.read_config(path)["rlvr"]
    # A function is given as file:name or module.name and recorded under its name. Older runs, such as the
    # recorded one, have settings named accuracy_weight, format_weight and so on.
    weights = {
        name.rpartition(":")[2].rpartition(".")[2]: w
        for name, w in config.get("rewards", {}).items()
    }
    weights = weights or {
        key.removesuffix("_weight"): value
        for key, value in config.items()
        if key.endswith("_weight")
    }
    return {name: float(weight) for name, weight in weights.items() if weight}


def reward_rows(records: Records, weights: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return per rollout: its number "group.rollout", the weighted rewards, and their sum."""
    rows: list[dict[str, Any]] = []
    groups: dict[str, int] = {}
    for record in records:
        group = groups.setdefault(record["prompt_id"], len(groups) + 1)
        number = 1 + sum(row["group"] == group for row in rows)
        weighted = {
            name: weights[name] * value
            for name, value in record["rewards"].items()
            if name in weights and value is not None
        }
        rows.append(
            {
                "group": group,
                "rollout": f"{group}.{number}",
                "weighted": weighted,
                "sum": sum(weighted.values()),
            }
        )
    return rows


def _screen(path: Path, step: int, records: Records) -> tuple[Any, ...]:
    rows = reward_rows(records, reward_weights(path))
    names = list(dict.fromkeys(name for record in records for name in record["rewards"]))
    points = [
        (row["rollout"], name, value) for row in rows for name, value in row["weighted"].items()
    ]
    frame = pd.DataFrame(points, columns=["rollout", "reward", "value"])
    headers = ["rollout", "sum", *names, "advantage", "answer", "gold answer", "accurate"]
    table = [_cells(path, row, record, names) for row, record in zip(rows, records, strict=True)]
    choices = [(row["rollout"], index) for index, row in enumerate(rows)]
    return (
        _figures(path, step, rows),
        gr.BarPlot(value=frame, color_map=curves.reward_colors(names)),
        _alarms(rows, records),
        gr.Dataframe(value=table, headers=headers),
        gr.Dropdown(choices=choices, value=0),
        html.part_spans(records[0]["completion"]),
    )


def _cells(
    path: Path, row: Mapping[str, Any], record: Mapping[str, Any], names: Sequence[str]
) -> list[str]:
    sample = samples.sample_by_id(path, record["prompt_id"])
    _, answer = html.caption_and_answer(record["completion"], record["finish_reason"])
    rewards = record["rewards"]
    accuracy = rewards.get("accuracy")
    return [
        row["rollout"],
        html.number(row["sum"]),
        *(html.number(rewards.get(name)) for name in names),
        html.number(record["advantage"]),
        answer[:MAX_CELL],
        ((sample and sample.answer) or "unknown")[:MAX_CELL],
        "-" if accuracy is None else "yes" if accuracy > 0 else "no",
    ]


def _sums_by_group(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    groups: dict[int, list[float]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row["sum"])
    return list(groups.values())


def _figures(path: Path, step: int, rows: Sequence[Mapping[str, Any]]) -> str:
    groups = _sums_by_group(rows)
    num_flat = sum(max(group) - min(group) < 1e-8 for group in groups)
    mean = sum(row["sum"] for row in rows) / len(rows)
    items = [
        (
            "mean of the bars",
            f"{mean:.4f}",
            "Mean of the weighted rewards of this step's rollouts.",
        ),
        (
            "groups without spread",
            f"{num_flat} of {len(groups)}",
            "All rollouts of such a group earned the same: it has no advantage and teaches nothing.",
        ),
    ]
    logged = [m["reward"] for m in folder.read_metrics(path, "rlvr") if m["step"] == step]
    if logged:
        text = "The reward in metrics.jsonl for this step; the mean of the bars must equal it."
        items.insert(1, ("logged reward", f"{logged[0]:.4f}", text))
    return html.figures(items)


def _alarms(rows: Sequence[Mapping[str, Any]], records: Records) -> str:
    """Return what the guards of the training say about this step's rollouts."""
    texts = [record["completion"] for record in records]
    alarms = [guards.repeated_text(texts), guards.answers_inside_think(texts)]
    sizes = {len(group) for group in _sums_by_group(rows)}
    if len(sizes) == 1:
        sums = [row["sum"] for row in rows]
        alarms.append(guards.zero_spread_groups(sums, group_size=sizes.pop()))
    notes = [html.note(f"Alarm {a.name}: {a.message}", tone="warn") for a in alarms if a]
    text = "No alarms (checked: repeated text, answers inside think, groups without spread)."
    return "".join(notes) or html.note(text, tone="good")
