"""Tab Rewards: what each rollout of a step earned and why, with the alarms for gamed rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from demo.runs import folder, samples
from demo.screens import curves, html, widgets
from demo.screens.errors import NOTHING_WRONG, reasons
from demo.screens.pictures import picture_html
from demo.screens.story import truth_html
from demo.site import Header, Site, connect
from prism_lite.stages.alarms import completions
from prism_lite.stages.alarms import rewards as reward_alarms
from prism_lite.types import Sample

MAX_CELL = 60
_MAX_LABELS = 24  # of bars: more overlap on a phone
_GAME_NOTE = (
    "The discriminator was kept on: the advantage is the sum of the rewards' share and the "
    "discriminator's, whose scores are in the Discriminator tab."
)

Records = Sequence[Mapping[str, Any]]


def build(site: Site, header: Header) -> None:
    """Lay out the tab and connect its events."""
    step = gr.Dropdown(label="RLVR step", elem_id="reward-step")
    figures = widgets.figures("reward-figures")
    plot = widgets.bars(
        "Weighted rewards of each rollout", "reward-bars", x="rollout", y="value", color="reward",
        height=300, x_label_angle=-60, y_title="reward",
    )  # fmt: skip
    alarms = gr.HTML(elem_id="alarms")
    groups = gr.HTML(elem_id="reward-groups")
    table = widgets.table("rewards", max_height=420, headers=_headers([]))
    row = gr.Dropdown(label="Rollout (or click it in the table)", elem_id="reward-row")
    why = gr.HTML(elem_id="reward-why")
    completion = widgets.completion("Completion", "reward-text")

    def list_steps(run_id: str) -> gr.Dropdown:
        steps = folder.rollout_steps(site.path(run_id), "rlvr")
        choices = [(str(step + 1), step) for step in steps]  # as the training counts them
        return gr.Dropdown(choices=choices, value=steps[-1] if steps else None)

    def read(run_id: str, step: int | None) -> Records:
        path = site.path(run_id)
        return () if step is None else folder.read_rollouts(path, "rlvr", int(step))

    def show(run_id: str, step: int | None) -> tuple[Any, ...]:
        records = read(run_id, step)
        if not records:
            note = html.note("No rewards yet: they come with the first step of the RLVR stage.")
            bars, rows = gr.BarPlot(value=None, visible=False), pd.DataFrame(columns=_headers([]))
            no_row = gr.Dropdown(choices=[], value=None)
            return "", bars, note, "", rows, no_row, "", html.NO_COMPLETION
        return _screen(site.path(run_id), int(step or 0), records)

    def show_row(run_id: str, step: int | None, index: int | None) -> tuple[Any, ...]:
        records = read(run_id, step)
        if index is None or not 0 <= index < len(records):
            return "", html.NO_COMPLETION
        return _row_screen(site.path(run_id), records, index)

    inputs = [header.run_choice, step]
    header.on_run(list_steps, [step])
    row_screen = [why, completion]
    connect(step.change, show, inputs, [figures, plot, alarms, groups, table, row, *row_screen])
    connect(table.select, widgets.picked_row, None, [row])
    connect(row.change, show_row, [*inputs, row], row_screen)


def reward_weights(path: Path) -> dict[str, float]:
    """Return the weight of each reward in the sum that RLVR trains on, without zeros."""
    weights = folder.read_config(path)["rlvr"]["rewards"]
    # a user's function is configured as file.py:name or module:name and recorded as name
    return {key.rpartition(":")[2]: float(weight) for key, weight in weights.items() if weight}


def weighted_rewards(records: Records, weights: Mapping[str, float]) -> pd.DataFrame:
    """Return a row of weighted rewards per rollout, with its group and its name "group.rollout"."""
    frame = pd.DataFrame([record["rewards"] for record in records], dtype=float)
    frame = frame[[name for name in frame if name in weights]] * pd.Series(weights)
    group = pd.Series(pd.factorize(pd.Series([record["prompt_id"] for record in records]))[0]) + 1
    number = group.groupby(group).cumcount() + 1
    names = group.astype(str) + "." + number.astype(str)
    return frame.set_index([pd.Index(group, name="group"), pd.Index(names, name="rollout")])


def _screen(path: Path, step: int, records: Records) -> tuple[Any, ...]:
    weighted = weighted_rewards(records, reward_weights(path))
    sums = weighted.sum(axis=1, min_count=1)  # NaN where no function returned a reward
    rollouts = list(weighted.index.get_level_values("rollout"))
    points = weighted.reset_index("group", drop=True).melt(ignore_index=False, var_name="reward")
    names = list(dict.fromkeys(name for record in records for name in record["rewards"]))
    rows = [
        [rollout, html.number(None if pd.isna(total) else total), *_cells(path, record, names)]
        for rollout, total, record in zip(rollouts, sums, records, strict=True)
    ]
    return (
        _figures(path, step, sums),
        gr.BarPlot(
            value=points.dropna().reset_index(),
            color_map=curves.reward_colors(names),
            visible=True,
            x_axis_labels_visible=len(rollouts) <= _MAX_LABELS,
            x_title=f"rollouts {rollouts[0]} to {rollouts[-1]}",
        ),
        _alarms(sums, records) + html.note(_GAME_NOTE if folder.keeps_game(path) else ""),
        _weights_note(reward_weights(path)) + group_cards(path, rollouts, records),
        gr.Dataframe(value=rows, headers=_headers(names)),
        gr.Dropdown(choices=[(name, index) for index, name in enumerate(rollouts)], value=0),
        *_row_screen(path, records, 0),
    )


def _headers(rewards: Sequence[str]) -> list[str]:
    return ["rollout", "sum", *rewards, "advantage", "answer", "gold answer", "accurate"]


def _row_screen(path: Path, records: Records, index: int) -> tuple[Any, ...]:
    """Return why a rollout earned what it did, and its completion."""
    weighted = weighted_rewards(records, reward_weights(path))
    name = weighted.index.get_level_values("rollout")[index]
    record = records[index]
    sample = samples.sample_by_id(path, record["prompt_id"])
    return why_html(name, record, sample), html.part_spans(record["completion"])


def why_html(name: str, record: Mapping[str, Any], sample: Sample | None) -> str:
    """Return the picture, the truth, the rewards and what is wrong in a rollout's completion."""
    picture = picture_html(sample.pictures[0].open()) if sample and sample.pictures else ""
    truth = truth_html(sample) if sample else ""
    question = escape(html.question(record["question"]))
    earned = ", ".join(
        f"{reward} {html.number(value)}" for reward, value in record["rewards"].items()
    )
    return (
        f'<article class="reward-card">{picture}<p><b>{question}</b> {truth}</p>'
        f"<p>Rollout {escape(name)}: {escape(earned)}; advantage {record['advantage']:+.2f}.</p>"
        f"<p>Why: <b>{escape('; '.join(_errors(record, sample)))}</b>.</p></article>"
    )


def _weights_note(weights: Mapping[str, float]) -> str:
    """Return how the sum of a rollout is computed from its rewards."""
    terms = " + ".join(f"{weight:g} x {name}" for name, weight in weights.items())
    return html.note(
        f"sum = {terms}. Below: the rollouts of each prompt by advantage, the number in color: above 0 "
        "training makes such a completion more likely. 1.2 is rollout 2 of prompt 1; choose one below the "
        "table to see why."
    )


def group_cards(path: Path, rollouts: Sequence[str], records: Records) -> str:
    """Return a card for each prompt: picture, question, gold answer, and its rollouts by advantage."""
    groups: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for name, record in zip(rollouts, records, strict=True):
        groups.setdefault(record["prompt_id"], []).append((name, record))
    cards = []
    for prompt_id, group in groups.items():
        sample = samples.sample_by_id(path, prompt_id)
        picture = picture_html(sample.pictures[0].open()) if sample and sample.pictures else ""
        gold = sample.answer if sample is not None and sample.answer is not None else "unknown"
        ordered = sorted(group, key=lambda item: -item[1]["advantage"])
        chips = "".join(_chip(name, record) for name, record in ordered)
        wrong = "".join(_why(name, record, sample) for name, record in ordered)
        question = escape(html.question(group[0][1]["question"]))
        cards.append(
            f'<article class="reward-card">{picture}<p><b>{question}</b> Gold answer: '
            f"{escape(gold)}.</p><div>{chips}</div>{wrong}</article>"
        )
    return f'<div class="reward-cards">{"".join(cards)}</div>'


def _why(name: str, record: Mapping[str, Any], sample: Sample | None) -> str:
    """Return what is wrong in a completion whose answer is wrong, "" for others."""
    if record["rewards"].get("accuracy") != 0:
        return ""
    return f'<p class="why">{escape(name)}: {escape("; ".join(_errors(record, sample)))}</p>'


def _errors(record: Mapping[str, Any], sample: Sample | None) -> list[str]:
    errors = reasons(sample, record["completion"], record["finish_reason"])
    if errors or record["rewards"].get("accuracy") != 0:
        return errors or [NOTHING_WRONG]
    return ["the answer is not the gold answer"]


def _chip(name: str, record: Mapping[str, Any]) -> str:
    accuracy = record["rewards"].get("accuracy")
    symbol = "?" if accuracy is None else "✓" if accuracy > 0 else "✗"
    caption, answer = html.caption_and_answer(record["completion"], record["finish_reason"])
    tone = "up" if record["advantage"] > 0 else "down"
    return (
        f'<span class="chip {tone}" tabindex="0" title="{escape(caption)}">{symbol} {escape(name)}: '
        f"{escape(answer[:MAX_CELL])} <b>{record['advantage']:+.2f}</b></span>"
    )


def _cells(path: Path, record: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    sample = samples.sample_by_id(path, record["prompt_id"])
    _, answer = html.caption_and_answer(record["completion"], record["finish_reason"])
    accuracy = record["rewards"].get("accuracy")
    return [
        *(html.number(record["rewards"].get(name)) for name in names),
        html.number(record["advantage"]),
        answer[:MAX_CELL],
        ((sample and sample.answer) or "unknown")[:MAX_CELL],
        "-" if accuracy is None else "yes" if accuracy > 0 else "no",
    ]


def _figures(path: Path, step: int, sums: pd.Series) -> str:
    spreads = [group.max() - group.min() for _, group in sums.groupby("group")]
    num_flat = sum(spread < 1e-8 for spread in spreads)
    items = [
        ("mean of the bars", f"{sums.mean():.4f}", "Mean weighted reward of this step's rollouts."),
        (
            "groups without spread",
            f"{num_flat} of {len(spreads)}",
            "All rollouts of such a group earned the same: it has no advantage and teaches nothing.",
        ),
    ]
    lines = (m for m in folder.read_metrics(path, "rlvr") if m["step"] == step)
    # an evaluation after the step is a line of its own
    logged = [line["reward"] for line in lines if "reward" in line]
    if logged:
        text = "The reward in metrics.jsonl for this step; the mean of the bars must equal it."
        items.insert(1, ("logged reward", f"{logged[0]:.4f}", text))
    return html.figures(items)


def _alarms(sums: pd.Series, records: Records) -> str:
    """Return what the alarms of the training say about this step's rollouts."""
    texts = [record["completion"] for record in records]
    alarms = [completions.repeated_text(texts), completions.answers_inside_think(texts)]
    sizes = set(sums.groupby("group").size())
    if len(sizes) == 1 and sums.notna().all():
        alarms.append(reward_alarms.zero_spread_groups(list(sums), group_size=sizes.pop()))
    notes = [html.note(f"Alarm {a.name}: {a.message}", tone="warn") for a in alarms if a]
    text = "No alarms (checked: repeated text, answers inside think, groups without spread)."
    return "".join(notes) or html.note(text, tone="good")
