"""Tab Rewards: what each rollout of a step earned and why, with the alarms for gamed rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.events import Dependency

from demo.runs import folder, samples
from demo.screens import curves, html, widgets
from demo.screens.widgets import QUIET
from demo.site import Site, in_words
from prism_lite.stages import guards

REWARD_COLORS = {
    "accuracy": curves.GREEN,
    "format": curves.SKY,
    "ocr": curves.ORANGE,
    "boxes": curves.PURPLE,
    "judge": curves.BLUE,
    "overlong": curves.GREY,
}
MAX_CELL = 60
NO_REWARDS = "No rewards yet: they come with the first step of the RLVR stage."


def build(site: Site, opened: Dependency, run: gr.Dropdown) -> None:
    """Lay out the tab and wire it."""
    step = gr.Dropdown(label="RLVR step", elem_id="reward-step")
    numbers = widgets.figures("reward-figures")
    plot = widgets.bars(
        "Reward by group.rollout", x="rollout", y="reward", color="part", height=300,
        colors=REWARD_COLORS, sort=None, x_label_angle=-60,
        elem_id="reward-bars",
    )  # fmt: skip
    alarms = gr.HTML(elem_id="alarms")
    widgets.sideways()
    table = gr.Dataframe(
        interactive=False, show_label=False, elem_id="rewards", max_height=420, buttons=[],
    )  # fmt: skip
    row = gr.Dropdown(label="Rollout (or click it in the table)", elem_id="reward-row")
    text = widgets.completion("Its completion", elem_id="reward-text")

    def list_steps(run_id: str) -> gr.Dropdown:
        steps = folder.rollout_steps(site.path(run_id), "rlvr")
        return gr.Dropdown(choices=steps, value=steps[-1] if steps else None)

    def rollouts(run_id: str, chosen: int | None) -> tuple[Mapping[str, Any], ...]:
        path = site.path(run_id)
        return () if chosen is None else folder.read_rollouts(path, "rlvr", int(chosen))

    def show(run_id: str, chosen: int | None) -> tuple[Any, ...]:
        records = rollouts(run_id, chosen)
        if not records:
            return "", None, html.note(NO_REWARDS), None, gr.Dropdown(choices=[], value=None), None
        return _screen(site.path(run_id), int(chosen or 0), records)

    def show_row(run_id: str, chosen: int | None, place: int | None) -> Any:
        records = rollouts(run_id, chosen)
        if place is None or not 0 <= place < len(records):
            return None
        return html.part_spans(records[place]["completion"])

    def pick(event: gr.SelectData) -> int:
        return event.index[0]

    for event in (opened.then, run.change):
        event(in_words(list_steps), [run], [step], **QUIET)
    screen = [numbers, plot, alarms, table, row, text]
    step.change(in_words(show), [run, step], screen, **QUIET)
    table.select(pick, None, [row], **QUIET)
    row.change(in_words(show_row), [run, step, row], [text], **QUIET)


def weights(path: Path) -> dict[str, float]:
    """Weight of each reward in the sum that RLVR trains on; those without one are left out."""
    config = folder.read_config(path)["rlvr"]
    found = {name: float(config.get(f"{name}_weight", 0.0)) for name in REWARD_COLORS}
    return {name: weight for name, weight in found.items() if weight}


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
        earned = record["rewards"]
        parts = {name: weight[name] * earned[name] for name in weight if name in earned}
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
    names = list(records[0]["rewards"])
    headers = ["rollout", "reward", *names, "advantage", "answer given", "gold", "verdict"]
    table = [_cells(path, row, record) for row, record in zip(found, records, strict=True)]
    choices = [(row["rollout"], place) for place, row in enumerate(found)]
    return (
        _numbers(found, mean, logged),
        pd.DataFrame(points, columns=["rollout", "part", "reward"]),
        _alarms(found, records),
        gr.Dataframe(value=table, headers=headers),
        gr.Dropdown(choices=choices, value=0),
        html.part_spans(records[0]["completion"]),
    )


def _cells(path: Path, row: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    sample = samples.sample_by_id(path, record["prompt_id"])
    gold = sample.answer if sample else None
    _, answer = html.caption_and_answer(record["completion"], record["finish_reason"])
    earned = record["rewards"]
    return [
        row["rollout"],
        html.number(row["sum"]),
        *(html.number(value) for value in earned.values()),
        html.number(record["advantage"]),
        answer[:MAX_CELL],
        (gold or "unknown")[:MAX_CELL],
        "matches" if earned["accuracy"] > 0 else "does not match",
    ]


def _sums_by_group(found: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    groups: dict[int, list[float]] = {}
    for row in found:
        groups.setdefault(row["group"], []).append(row["sum"])
    return list(groups.values())


def _numbers(found: Sequence[Mapping[str, Any]], mean: float, logged: Mapping[str, Any]) -> str:
    groups = _sums_by_group(found)
    flat = sum(max(group) - min(group) < 1e-8 for group in groups)
    items = [
        (
            "mean of the bars",
            f"{mean:.4f}",
            "Mean over this step's rollouts of the weighted rewards.",
        )
    ]
    if "reward" in logged:
        items.append(
            (
                "logged reward",
                f"{logged['reward']:.4f}",
                "What the training wrote to metrics.jsonl for this step; the bars must add up to it.",
            )
        )
    items.append(
        (
            "groups without spread",
            f"{flat} of {len(groups)}",
            "All rollouts of such a group earned the same: it has no advantage and teaches nothing.",
        )
    )
    return html.figures(items)


def _alarms(found: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> str:
    """The guards of prism_lite.rewards on this step's rollouts."""
    texts = [record["completion"] for record in records]
    alarms = [guards.repeated_text(texts), guards.answers_inside_think(texts)]
    sizes = {len(group) for group in _sums_by_group(found)}
    if len(sizes) == 1:
        sums = [row["sum"] for row in found]
        alarms.append(guards.zero_spread_groups(sums, group_size=sizes.pop()))
    rung = [alarm for alarm in alarms if alarm is not None]
    if not rung:
        return html.note(
            "Guards: no alarm (repeated text, answers inside think, groups without spread).",
            kind="good",
        )
    return "".join(html.note(f"Alarm {a.name}: {a.message}", kind="warn") for a in rung)
