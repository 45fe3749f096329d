"""Tab Discriminator: a group and its teacher, scored; per token, which experts judged it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from demo import curves, folder, rows, view
from demo.folder import POLICY_STAGES, STAGE_TITLES
from demo.site import Site, in_words
from prism_lite.parts import Parts, parse

HEADERS = ["row", "who", "perception", "reasoning", "margin", "advantage", "answer", "caption"]
STRONGEST, BALANCE = "strongest expert", "perception minus reasoning share"
EXPERT_COLORS = (
    "#0072B2", "#56B4E9", "#009E73", "#8A8A8A", "#D55E00", "#E69F00", "#CC79A7", "#AA5593",
)  # fmt: skip
HELP = (
    (
        "perception",
        "-",
        "Logit of the caption given the picture: higher looks more like a teacher's.",
    ),
    ("reasoning", "-", "Logit of think and answer: higher looks more like a teacher's."),
    (
        "margin",
        "-",
        "Teacher's score minus this row's, mean of both channels; below 0 it is fooled.",
    ),
    (
        "advantage",
        "-",
        "What the policy learns from: the scores against their group, mean 0; malformed rows lose.",
    ),
)
MAX_CELL = 80


def build(site: Site, page: gr.Blocks, run: gr.Dropdown) -> None:
    """Lay out the tab and wire it."""
    held = gr.State(None)  # the group on this visitor's screen
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            choice = gr.Dropdown(label="Group", elem_id="group")
            source = gr.HTML(elem_id="group-note")
            with gr.Row():
                policy = gr.Dropdown(
                    [STAGE_TITLES[s] for s in POLICY_STAGES], value=STAGE_TITLES["align"],
                    label="Policy", min_width=110,
                )  # fmt: skip
                size = gr.Slider(2, 16, value=8, step=1, label="Candidates", min_width=110)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80)
            fresh = gr.Button("Sample and score this prompt anew", elem_id="new-group")
        with gr.Column(scale=2, min_width=240):
            picture = gr.Image(
                label="Picture", height=110, interactive=False, buttons=[], elem_id="group-picture"
            )
            asked = gr.Textbox(label="Question and gold answer", interactive=False)
    gr.HTML(view.figures(HELP).replace("<b>-</b>", ""), elem_classes="figures-host")
    table = gr.Dataframe(
        headers=HEADERS,
        interactive=False,
        show_label=False,
        elem_id="candidates",
        buttons=[],
        max_height=460,
    )
    plot = gr.BarPlot(
        None,
        x="row",
        y="advantage",
        color="sign",
        title="Advantage by row",
        color_title=" ",
        color_map={"raised": curves.BLUE, "lowered": curves.ORANGE},
        show_label=False,
        height=220,
        elem_id="advantage-bars",
        buttons=[],
    )
    with gr.Row():
        row = gr.Dropdown(label="Row (or click it in the table)", elem_id="row", min_width=140)
        layer = gr.Slider(1, 2, value=1, step=1, label="Decoder layer", elem_id="layer")
        shown = gr.Dropdown([STRONGEST], value=STRONGEST, label="Colour by", elem_id="colour-by")
    completion = gr.HighlightedText(
        label="Completion", color_map=view.PART_COLORS, elem_classes="completion",
        show_whitespaces=True, elem_id="row-text",
    )  # fmt: skip
    heats = []
    with gr.Row():
        for name in ("perception", "reasoning"):
            heats.append(
                gr.HighlightedText(
                    label=f"Routing of the {name} part, token by token",
                    elem_id=f"heat-{name}",
                    elem_classes="heat",
                    show_whitespaces=True,
                    min_width=280,
                    buttons=[],
                )
            )
    legend = gr.HTML(elem_id="heat-note")

    group_outputs = [held, source, picture, asked, table, plot, row, layer, shown]
    row_outputs = [completion, *heats, legend]
    hidden: dict[str, Any] = {
        "queue": False, "show_progress": "hidden", "api_visibility": "private",
    }  # fmt: skip

    def list_groups(run_id: str) -> gr.Dropdown:
        names = list(_groups(site.path(run_id)))
        return gr.Dropdown(choices=names, value=names[0] if names else None)

    def show_group(run_id: str, name: str | None) -> tuple[Any, ...]:
        path = site.path(run_id)
        known = _groups(path)
        if name not in known:
            text = "No group yet: groups appear with the first step of the alignment stage."
            return (
                None,
                view.note(text),
                None,
                "",
                None,
                None,
                gr.Dropdown(choices=[]),
                1,
                STRONGEST,
            )
        return _screen(path, known[name]())

    def sample_group(
        run_id: str, current: Mapping[str, Any] | None, stage: str, group_size: float, number: float
    ) -> tuple[Any, ...]:
        path = site.path(run_id)
        model = site.models.get(path)
        if model is None:
            raise ValueError(
                f"new groups need the run's model: {site.models.readiness(path).detail}."
            )
        chosen = next((s for s in POLICY_STAGES if STAGE_TITLES[s] == stage), "")
        if chosen not in model.stages:
            raise ValueError(f"stage {stage} is not trained yet in this run.")
        sample = rows.sample_by_id(path, current["prompt_id"]) if current else None
        if sample is None or not sample.teacher:
            raise ValueError("choose a group whose prompt has a teacher completion first.")
        site.demand_idle_gpu()
        with site.models.lock:
            record = model.group(sample, chosen, group_size=int(group_size), seed=int(number))
        return _screen(path, record)

    def show_row(
        group: Mapping[str, Any] | None, chosen: str | None, number: float, colour_by: str
    ) -> tuple[Any, ...]:
        if not group or not chosen:
            return None, None, None, ""
        names = _row_names(group["rows"])
        record = group["rows"][names.index(chosen)] if chosen in names else group["rows"][0]
        return (
            view.part_spans(record["completion"]),
            *_heat(group, record, int(number), colour_by),
        )

    def pick(event: gr.SelectData, group: Mapping[str, Any] | None) -> str | None:
        return _row_names(group["rows"])[event.index[0]] if group else None

    for event in (page.load, run.change):
        event(in_words(list_groups), [run], [choice], **hidden)
    choice.change(in_words(show_group), [run, choice], group_outputs, **hidden)
    fresh.click(
        in_words(sample_group),
        [run, held, policy, size, seed],
        group_outputs,
        concurrency_id="model",
        concurrency_limit=1,
        show_progress_on=[table],
        api_visibility="private",
    )
    table.select(in_words(pick), [held], [row], **hidden)
    gr.on(
        [held.change, row.change, layer.change, shown.change],
        in_words(show_row),
        [held, row, layer, shown],
        row_outputs,
        **hidden,
    )


def _groups(path: Path) -> dict[str, Any]:
    """Names of the groups in a run folder, and how to get each."""
    found: dict[str, Any] = {}
    for i, record in enumerate(folder.read_lines(path / "demo" / "groups.jsonl")):
        name = f"last discriminator · {i + 1} · {record['question']}"
        found[name] = lambda record=record: record
    steps = folder.rollout_steps(path, "align")
    for step in reversed(steps[-1:] + steps[:-1][:: max(1, len(steps) // 6)]):
        prompts = dict.fromkeys(r["prompt_id"] for r in folder.read_rollouts(path, "align", step))
        for i, prompt_id in enumerate(prompts):
            name = f"as scored at step {step} · prompt {i + 1}"
            found[name] = lambda step=step, prompt_id=prompt_id: _of_step(path, step, prompt_id)
    return found


def _of_step(path: Path, step: int, prompt_id: str) -> dict[str, Any]:
    """A group of the alignment stage as it was logged: no teacher's score, no routing."""
    records = [r for r in folder.read_rollouts(path, "align", step) if r["prompt_id"] == prompt_id]
    rows_ = [
        {
            "who": "student",
            "completion": record["completion"],
            "finish_reason": record["finish_reason"],
            "advantage": record["advantage"],
        }
        | {name.removesuffix("_score"): value for name, value in record.get("scores", {}).items()}
        for record in records
    ]
    sample = rows.sample_by_id(path, prompt_id)
    teacher = []
    if sample is not None and sample.teacher:
        teacher = [{"who": "teacher", "completion": sample.teacher, "finish_reason": "end"}]
    return {
        "prompt_id": prompt_id,
        "question": records[0]["question"],
        "gold": sample.answer if sample else None,
        "step": step,
        "rows": [*teacher, *sorted(rows_, key=lambda r: -r["advantage"])],
    }


def _screen(path: Path, group: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a group puts on the screen."""
    sample = rows.sample_by_id(path, group["prompt_id"])
    names = _row_names(group["rows"])
    routed = [record for record in group["rows"] if "routing" in record]
    if "step" in group:
        text = (
            f"Scores as the discriminator gave them at alignment step {group['step']}. The teacher's score "
            "and the routing are not logged in training: choose a group of the last discriminator, or "
            "sample this prompt anew."
        )
    else:
        text = (
            f"Candidates of the {STAGE_TITLES[group['policy']]} policy, scored by the discriminator that "
            f"the {STAGE_TITLES[group['discriminator']]} stage ended with."
        )
    num_layers = len(routed[0]["routing"]["perception"]["weights"]) if routed else 1
    experts = len(routed[0]["routing"]["perception"]["weights"][0][0]) if routed else 0
    choices = [STRONGEST, *([BALANCE] if experts > 1 else [])]
    choices += [f"expert {e}" for e in range(experts)]
    gold = group.get("gold")
    return (
        group,
        view.note(text),
        sample.pictures[0].open() if sample and sample.pictures else None,
        f"{group['question']}  (gold: {gold if gold is not None else 'unknown'})",
        [_cells(name, record) for name, record in zip(names, group["rows"], strict=True)],
        _bars(names, group["rows"]),
        gr.Dropdown(choices=names, value=names[0]),
        gr.Slider(1, max(2, num_layers), value=num_layers, interactive=num_layers > 1),
        gr.Dropdown(choices=choices, value=STRONGEST),
    )


def _row_names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """T for the teacher, then 1, 2, ... by falling advantage."""
    number, names = 0, []
    for record in records:
        number += record["who"] == "student"
        names.append("T" if record["who"] == "teacher" else str(number))
    return names


def _cells(name: str, record: Mapping[str, Any]) -> list[str]:
    parts = parse(record["completion"])
    is_whole = isinstance(parts, Parts) and record["finish_reason"] == "end"
    answer = parts.answer if isinstance(parts, Parts) else f"malformed: {parts.reason}"
    if isinstance(parts, Parts) and not is_whole:
        answer = "malformed: cut at the length limit"
    caption = parts.caption if isinstance(parts, Parts) else record["completion"]
    return [
        name,
        record["who"],
        *(
            view.number(record.get(key))
            for key in ("perception", "reasoning", "margin", "advantage")
        ),
        answer[:MAX_CELL],
        caption.replace("\n", " ")[:MAX_CELL],
    ]


def _bars(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> pd.DataFrame | None:
    points = [
        (name, record["advantage"], "raised" if record["advantage"] > 0 else "lowered")
        for name, record in zip(names, records, strict=True)
        if "advantage" in record
    ]
    return pd.DataFrame(points, columns=["row", "advantage", "sign"]) if points else None


def _heat(
    group: Mapping[str, Any], record: Mapping[str, Any], layer: int, colour_by: str
) -> tuple[Any, ...]:
    """Both parts' tokens coloured by routing, and what the colours mean."""
    if "routing" not in record:
        why = (
            "A malformed candidate is not scored, so nothing was routed."
            if "step" not in group
            else "No routing is logged in training."
        )
        return None, None, view.note(why)
    key = {STRONGEST: "strongest", BALANCE: "balance"}.get(colour_by)
    key = key or colour_by.removeprefix("expert ")
    texts, top = [], 0
    for part in ("perception", "reasoning"):
        routing = record["routing"][part]
        top = len(routing["weights"])
        weights_TE = routing["weights"][min(layer, top) - 1]
        spans = view.heat_spans(routing["tokens"], weights_TE, key)
        colors = {f"E{e}": EXPERT_COLORS[e % len(EXPERT_COLORS)] for e in range(len(weights_TE[0]))}
        texts.append(
            gr.HighlightedText(
                value=spans,
                color_map=colors if key == "strongest" else view.HEAT_COLORS,
                show_legend=key == "strongest",
            )
        )
    number = group["first_layer"] + min(layer, top)
    meaning = {
        "strongest": "Each token shows the expert with the largest weight.",
        "balance": "Red: more weight on the perception half of the experts; blue: on the reasoning half.",
    }.get(key, f"The stronger the colour, the more weight expert {key} has on this token.")
    if group.get("routing_mode") == "grouped":
        meaning += (
            " Routing is grouped: the first half of the experts sees captions only, the second half think "
            "and answer only."
        )
    return (*texts, view.note(f"Decoder layer {number}. {meaning} Weights of a token add up to 1."))
