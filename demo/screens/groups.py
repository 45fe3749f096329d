"""What the tab Discriminator shows of a group: its candidates and teacher, and how each token was routed.

A group is a mapping as `routing.group_record` writes it; one as it was logged in training lacks the
teacher's score and all routing.
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
from demo.screens.pictures import picture_file

HEADERS = ["row", "who", "perception", "reasoning", "margin", "advantage", "answer", "caption"]
STRONGEST, BALANCE = "strongest expert", "perception minus reasoning share"
EXPERT_COLORS = (
    "#0072B2", "#56B4E9", "#009E73", "#8A8A8A", "#D55E00", "#E69F00", "#CC79A7", "#AA5593",
)  # fmt: skip
NUM_STEPS = 6  # of the alignment stage, beside the last one
MAX_CELL = 80
NO_GROUP = "No group yet: groups appear with the first step of the alignment stage."

Group = Mapping[str, Any]


def known_groups(path: Path) -> dict[str, Callable[[], Group]]:
    """Names of the groups in a run folder, and how to get each."""
    found: dict[str, Callable[[], Group]] = {}
    for i, record in enumerate(folder.read_lines(path / "demo" / "groups.jsonl"), 1):
        name = f"last discriminator · {i} · {record['question']}"
        found[name] = functools.partial(dict, record)
    steps = folder.rollout_steps(path, "align")
    for step in reversed(steps[-1:] + steps[:-1][:: max(1, len(steps) // NUM_STEPS)]):
        prompts = dict.fromkeys(r["prompt_id"] for r in folder.read_rollouts(path, "align", step))
        for i, prompt_id in enumerate(prompts, 1):
            name = f"as scored at step {step} · prompt {i}"
            found[name] = functools.partial(_logged_group, path, step, prompt_id)
    return found


def _logged_group(path: Path, step: int, prompt_id: str) -> Group:
    """A group of the alignment stage as it was logged: no teacher's score, no routing."""
    records = [r for r in folder.read_rollouts(path, "align", step) if r["prompt_id"] == prompt_id]
    students = [
        {
            "who": "student",
            "completion": record["completion"],
            "finish_reason": record["finish_reason"],
            "advantage": record["advantage"],
        }
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
        "step": step,
        "rows": [*teacher, *sorted(students, key=lambda row: -row["advantage"])],
    }


def empty_screen() -> tuple[Any, ...]:
    """The screen where there is no group."""
    return None, html.note(NO_GROUP), None, "", None, None, gr.Dropdown(choices=[]), 1, STRONGEST


def group_screen(path: Path, group: Group) -> tuple[Any, ...]:
    """The group itself, where it is from, picture, question, table, bars; row, layer and colours."""
    sample = samples.sample_by_id(path, group["prompt_id"])
    names = row_names(group["rows"])
    routed = [record for record in group["rows"] if "routing" in record]
    num_layers = len(routed[0]["routing"]["perception"]["weights"]) if routed else 1
    num_experts = len(routed[0]["routing"]["perception"]["weights"][0][0]) if routed else 0
    colours = [STRONGEST, *([BALANCE] if num_experts > 1 else [])]
    colours += [f"expert {e}" for e in range(num_experts)]
    gold = group.get("gold")
    return (
        group,
        html.note(_origin(group)),
        picture_file(sample.pictures[0].open()) if sample and sample.pictures else None,
        f"{group['question']}  (gold: {gold if gold is not None else 'unknown'})",
        [_cells(name, record) for name, record in zip(names, group["rows"], strict=True)],
        _advantages(names, group["rows"]),
        gr.Dropdown(choices=names, value=names[0]),
        gr.Slider(1, max(2, num_layers), value=num_layers, interactive=num_layers > 1),
        gr.Dropdown(choices=colours, value=STRONGEST),
    )


def _origin(group: Group) -> str:
    if "step" in group:
        return (
            f"Scores as the discriminator gave them at alignment step {group['step']}. The teacher's score "
            "and the routing are not logged in training: choose a group of the last discriminator, or "
            "sample this prompt anew."
        )
    return (
        f"Candidates of the {STAGE_TITLES[group['policy']]} policy, scored by the discriminator that "
        f"the {STAGE_TITLES[group['discriminator']]} stage ended with."
    )


def row_names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """T for the teacher, then 1, 2, ... by falling advantage."""
    number, names = 0, []
    for record in records:
        number += record["who"] == "student"
        names.append("T" if record["who"] == "teacher" else str(number))
    return names


def _cells(name: str, record: Mapping[str, Any]) -> list[str]:
    scores = ("perception", "reasoning", "margin", "advantage")
    caption, answer = html.caption_and_answer(record["completion"], record["finish_reason"])
    return [
        name,
        record["who"],
        *(html.number(record.get(key)) for key in scores),
        answer[:MAX_CELL],
        caption.replace("\n", " ")[:MAX_CELL],
    ]


def _advantages(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> pd.DataFrame | None:
    points = [
        (name, record["advantage"], "raised" if record["advantage"] > 0 else "lowered")
        for name, record in zip(names, records, strict=True)
        if "advantage" in record
    ]
    return pd.DataFrame(points, columns=["row", "advantage", "sign"]) if points else None


def row_screen(
    group: Group | None, chosen: str | None, layer: int, colour_by: str
) -> tuple[Any, ...]:
    """The completion of a row, both parts' tokens coloured by routing, and what the colours mean."""
    if not group or not chosen:
        return None, None, None, ""
    names = row_names(group["rows"])
    record = group["rows"][names.index(chosen)] if chosen in names else group["rows"][0]
    return html.part_spans(record["completion"]), *_heat(group, record, layer, colour_by)


def _heat(group: Group, record: Mapping[str, Any], layer: int, colour_by: str) -> tuple[Any, ...]:
    if "routing" not in record:
        why = "A malformed candidate is not scored, so nothing was routed."
        if "step" in group:
            why = "No routing is logged in training."
        return None, None, html.note(why)
    key = {STRONGEST: "strongest", BALANCE: "balance"}.get(colour_by)
    key = key or colour_by.removeprefix("expert ")
    layer = min(layer, len(record["routing"]["perception"]["weights"]))
    texts = [
        _heat_text(record["routing"][part], layer, key) for part in ("perception", "reasoning")
    ]
    meaning = {
        "strongest": "Each token shows the expert with the largest weight.",
        "balance": "Orange: more weight on the perception half of the experts; blue: on the "
        "reasoning half.",
    }.get(key, f"The stronger the colour, the more weight expert {key} has on this token.")
    if group.get("routing_mode") == "grouped":
        meaning += (
            " Routing is grouped: the first half of the experts sees captions only, the second half think "
            "and answer only."
        )
    number = group["first_layer"] + layer
    return (*texts, html.note(f"Decoder layer {number}. {meaning} Weights of a token add up to 1."))


def _heat_text(routing: Mapping[str, Any], layer: int, key: str) -> gr.HighlightedText:
    """Tokens of one part, coloured."""
    weights_TE = routing["weights"][layer - 1]
    is_strongest = key == "strongest"
    colors = {f"E{e}": EXPERT_COLORS[e % len(EXPERT_COLORS)] for e in range(len(weights_TE[0]))}
    return gr.HighlightedText(
        value=html.heat_spans(routing["tokens"], weights_TE, key),
        color_map=colors if is_strongest else html.HEAT_COLORS,
        show_legend=is_strongest,
    )
