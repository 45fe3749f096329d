"""The Discriminator tab's content: the completions of a group and how each token was routed.

A group is a mapping as `routing.group_record` returns it. A group logged in training has no teacher score
and no routing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from demo.runs import folder, samples
from demo.runs.folder import STAGE_TITLES
from demo.screens import html
from demo.screens.curves import BLUE, GRAY, GREEN, ORANGE, PINK, PURPLE, SKY, YELLOW
from demo.screens.pictures import titled_picture

HEADERS = ["row", "who", "perception", "reasoning", "margin", "advantage", "answer", "caption"]
STRONGEST, BALANCE = "strongest expert", "perception minus reasoning share"
_EXPERT_COLORS = (BLUE, SKY, GREEN, GRAY, ORANGE, YELLOW, PINK, PURPLE)
NUM_STEPS = 6  # listed of each stage, besides the last one
_STEP_TITLES = {"align": "alignment", "rlvr": "RLVR"}
MAX_CELL = 80
_GROUPED = (
    " Routing is grouped: the first half of the experts serves the perception part, the second half the "
    "reasoning part."
)

Group = Mapping[str, Any]


def known_groups(path: Path) -> dict[str, Callable[[], Group]]:
    """Return the titles of the groups in a run folder, with a function that reads each one."""
    groups: dict[str, Callable[[], Group]] = {}
    for i, record in enumerate(folder.read_lines(path / "demo" / "groups.jsonl"), 1):
        title = f"last discriminator · {i} · {html.question(record['question'])}"
        groups[title] = functools.partial(dict, record)
    for stage in ("rlvr", "align") if folder.keeps_game(path) else ("align",):
        steps = folder.rollout_steps(path, stage)
        listed = steps[:-1][:: max(1, len(steps) // NUM_STEPS)] + steps[-1:]
        for step in reversed(listed):
            prompts = dict.fromkeys(r["prompt_id"] for r in folder.read_rollouts(path, stage, step))
            for i, prompt_id in enumerate(prompts, 1):
                title = f"as scored at {_STEP_TITLES[stage]} step {step + 1} · prompt {i}"
                groups[title] = functools.partial(_logged_group, path, stage, step, prompt_id)
    return groups


def _logged_group(path: Path, stage: str, step: int, prompt_id: str) -> Group:
    records = [r for r in folder.read_rollouts(path, stage, step) if r["prompt_id"] == prompt_id]
    students = [
        {"who": "student"}
        | {key: record[key] for key in ("completion", "finish_reason", "advantage")}
        | {name.removesuffix("_score"): value for name, value in record.get("scores", {}).items()}
        for record in records
    ]
    sample = samples.sample_by_id(path, prompt_id)
    teacher = []
    if sample is not None and sample.teacher:
        teacher = [{"who": "teacher", "completion": sample.teacher, "finish_reason": "end"}]
    return {
        "prompt_id": prompt_id,
        "question": records[0]["question"],
        "gold": sample.answer if sample else None,
        "stage": stage,
        "step": step,
        "rows": [*teacher, *sorted(students, key=lambda row: -row["advantage"])],
    }


def empty_screen() -> tuple[Any, ...]:
    """Return the screen without a group."""
    note = html.note("No group yet: groups appear with the first step of the alignment stage.")
    return None, note, "", "", None, None, gr.Dropdown(choices=[], value=None), 1, STRONGEST


def group_screen(path: Path, group: Group) -> tuple[Any, ...]:
    """Return the group, its origin, picture, question, table and bars; row, layer and color choices."""
    sample = samples.sample_by_id(path, group["prompt_id"])
    names, rows = row_names(group), group["rows"]
    weights_LTE = next(
        (row["routing"]["perception"]["weights"] for row in rows if "routing" in row), [[[]]]
    )
    num_layers, num_experts = len(weights_LTE), len(weights_LTE[0][0])
    color_choices = [STRONGEST, *([BALANCE] if num_experts > 1 else [])]
    color_choices += [f"expert {e}" for e in range(num_experts)]
    gold = group.get("gold")
    return (
        group,
        html.note(_origin(group)),
        titled_picture("Picture", sample.pictures[0].open()) if sample and sample.pictures else "",
        f"{html.question(group['question'])}  (gold: {gold if gold is not None else 'unknown'})",
        [_cells(name, row) for name, row in zip(names, rows, strict=True)],
        _advantages(names, rows),
        gr.Dropdown(choices=names, value=names[0]),
        gr.Slider(1, max(2, num_layers), value=num_layers, interactive=num_layers > 1),
        gr.Dropdown(choices=color_choices, value=STRONGEST),
    )


def _origin(group: Group) -> str:
    if "step" in group:
        shares = (
            " The advantage is the sum of the rewards' and the discriminator's."
            if group["stage"] == "rlvr"
            else ""
        )
        return (
            f"Scores of the discriminator at {_STEP_TITLES[group['stage']]} step {group['step'] + 1}."
            f"{shares} The teacher's score and the routing are not logged in training: choose a group of "
            "the last discriminator, or sample this prompt again."
        )
    return (
        f"Completions of the {STAGE_TITLES[group['policy']]} policy, scored by the discriminator at the "
        f"end of the {STAGE_TITLES[group['discriminator']]} stage."
    )


def row_names(group: Group) -> list[str]:
    """Return T for the teacher, and 1, 2, ... in order of decreasing advantage."""
    first = 0 if group["rows"][0]["who"] == "teacher" else 1
    return ["T" if i == 0 else str(i) for i in range(first, first + len(group["rows"]))]


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    numbers = ("perception", "reasoning", "margin", "advantage")
    caption, answer = html.caption_and_answer(row["completion"], row["finish_reason"])
    return [
        name,
        row["who"],
        *(html.number(row.get(key)) for key in numbers),
        answer[:MAX_CELL],
        caption.replace("\n", " ")[:MAX_CELL],
    ]


def _advantages(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame | None:
    points = [
        (name, row["advantage"], "raised" if row["advantage"] > 0 else "lowered")
        for name, row in zip(names, rows, strict=True)
        if "advantage" in row
    ]
    return pd.DataFrame(points, columns=["row", "advantage", "sign"]) if points else None


def row_screen(
    group: Group | None, chosen: str | None, layer: float, color_by: str
) -> tuple[Any, ...]:
    """Return a row's completion, the tokens of both parts colored by routing, and a legend."""
    if not group or not chosen:
        return html.NO_COMPLETION, html.NO_ROUTING, html.NO_ROUTING, ""
    names = row_names(group)
    row = group["rows"][names.index(chosen) if chosen in names else 0]
    return html.part_spans(row["completion"]), *_heat(group, row, int(layer), color_by)


def _heat(group: Group, row: Mapping[str, Any], layer: int, color_by: str) -> tuple[Any, ...]:
    if "routing" not in row:
        text = "A malformed completion is not scored, so nothing was routed."
        if "step" in group:
            text = "No routing is logged in training."
        return html.NO_ROUTING, html.NO_ROUTING, html.note(text)
    quantity = {STRONGEST: "strongest", BALANCE: "balance"}.get(color_by)
    quantity = quantity or color_by.removeprefix("expert ")
    channels = [row["routing"][name] for name in ("perception", "reasoning")]
    layer = min(layer, len(channels[0]["weights"]))
    meaning = {
        "strongest": "Each token shows the expert with the largest weight.",
        "balance": "Orange: more weight on the perception half of the experts; blue: on the reasoning "
        "half.",
    }.get(quantity, f"The stronger the color, the more weight expert {quantity} has on this token.")
    if group.get("routing_mode") == "grouped":
        meaning += _GROUPED
    text = (
        f"Decoder layer {group['first_layer'] + layer}. {meaning} The weights of a token sum to 1."
    )
    return *(_heat_text(channel, layer, quantity) for channel in channels), html.note(text)


def _heat_text(channel: Mapping[str, Any], layer: int, quantity: str) -> gr.HighlightedText:
    weights_TE = channel["weights"][layer - 1]
    is_strongest = quantity == "strongest"
    colors = {f"E{e}": _EXPERT_COLORS[e % len(_EXPERT_COLORS)] for e in range(len(weights_TE[0]))}
    return gr.HighlightedText(
        value=html.heat_spans(channel["tokens"], weights_TE, quantity),
        color_map=colors if is_strongest else html.HEAT_COLORS,
        show_legend=is_strongest,
    )
