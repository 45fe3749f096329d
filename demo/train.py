"""Tab Train: start a run, watch it, hold it, go on. The page only reads and writes the run folder."""

from __future__ import annotations

import functools
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from demo import curves, folder, rows, view
from demo.folder import SAMPLE_ID, STAGE_TITLES
from demo.site import Site, in_words

TICK_S = 2.0
# The few settings that a first experiment turns; all others by the command line.
KNOBS = (
    ("seed", "Seed", "names every random choice of the run"),
    ("sft.steps", "SFT steps", "updates on the demonstrations"),
    ("warmup.steps", "Warm-up steps", "updates of the discriminator before the game"),
    ("align.steps", "Alignment steps", "updates of policy and discriminator"),
    ("align.group_size", "Group size", "completions sampled of each prompt in alignment"),
    ("rlvr.steps", "RLVR steps", "updates on verifiable rewards"),
)
MAX_KNOB = 100_000
STALE_S = 60.0
NUM_ROLLOUTS = 6
FIGURES = (
    ("step time", "step_time", "{:.1f} s", "Seconds of the last optimizer step, sampling included."),
    ("loss", "loss", "{:.3f}", "Loss of the last step; in alignment and RLVR its size says little."),
    (
        "pair accuracy, perception", "disc/pair_accuracy_perception", "{:.2f}",
        "Share of pairs where the teacher's caption scores higher; 0.5: the discriminator is fooled.",
    ),
    (
        "pair accuracy, reasoning", "disc/pair_accuracy_reasoning", "{:.2f}",
        "Share of pairs where the teacher's reasoning scores higher; 0.5: fooled.",
    ),
    ("reward", "reward", "{:.3f}", "Mean weighted reward of the last step's rollouts."),
    (
        "ratio clipped", "clip_ratio/region_mean", "{:.3f}",
        "Share of tokens whose probability ratio was clipped in the last update.",
    ),
    ("malformed", "malformed_rate", "{:.1%}", "Share of rollouts without the three parts in order."),
    ("generated", "gen_tokens_per_s", "{:.0f} tokens/s", "Sampling speed over all rollouts."),
    ("trained", "train_tokens_per_s", "{:.0f} tokens/s", "Tokens through forward and backward."),
    ("peak memory", "mem/peak_gib", "{:.2f} GiB", "Most memory held so far in this process."),
)  # fmt: skip


def build(site: Site, page: gr.Blocks, run: gr.Dropdown, tick: gr.Timer) -> None:
    """Lay out the tab and wire it."""
    steps = gr.HTML(elem_id="stepper")
    status = gr.HTML(elem_id="train-status")
    with gr.Row():
        pause = gr.Button("Pause", elem_id="pause", min_width=100)
        resume = gr.Button("Resume", elem_id="resume", min_width=100)
        stop = gr.Button("Stop and save", elem_id="stop", min_width=130)
    with gr.Accordion("Start a new run", open=False, elem_id="new-run"):
        with gr.Row():
            name = gr.Textbox(
                label="Run name", placeholder="first-try", max_length=40, elem_id="run-name"
            )
            recipe = gr.Dropdown(_recipes(), value="tiny", label="Preset", elem_id="recipe")
        with gr.Row():
            knobs = [
                gr.Number(
                    None,
                    label=title,
                    info=text,
                    precision=0,
                    minimum=0,
                    min_width=130,
                    placeholder="preset",
                    elem_id=f"knob-{key.replace('.', '-')}",
                )
                for key, title, text in KNOBS
            ]
        command = gr.Textbox(
            label="The same on a command line",
            interactive=False,
            buttons=["copy"],
            elem_id="command",
        )
        start = gr.Button("Start training", variant="primary", elem_id="start")
    numbers = gr.HTML(elem_id="train-figures", elem_classes="figures-host")
    plots = []
    for pair in (curves.PANELS[i : i + 2] for i in range(0, len(curves.PANELS), 2)):
        with gr.Row():
            for panel in pair:
                with gr.Column(min_width=300):
                    plots.append(
                        gr.LinePlot(
                            None,  # an empty frame would break the plot for good
                            x="step",
                            y="value",
                            color="curve",
                            title=panel.title,
                            x_title="step",
                            y_title=" ",
                            color_title=" ",
                            color_map=dict(panel.colors),
                            show_label=False,
                            height=230,
                            tooltip="all",
                            buttons=["fullscreen"],
                            elem_id=f"plot-{panel.id}",
                        )
                    )
                    gr.HTML(f'<p class="plot-help">{panel.help}</p>')
    latest = gr.HTML(elem_id="rollouts-note")
    with gr.Row():
        pictures = gr.Gallery(
            label="Pictures of these rollouts", columns=1, height=330,
            elem_id="rollout-pictures", object_fit="contain", allow_preview=False,
            min_width=260, buttons=[], interactive=False,
        )  # fmt: skip
        rollouts = gr.Dataframe(
            headers=["picture", "completion", "advantage", "finish"], interactive=False, wrap=True,
            show_label=False, elem_id="rollouts", min_width=320, max_height=330, buttons=[],
            column_widths=["95px", "55%", "120px", "80px"],
        )  # fmt: skip
    log = gr.Textbox(
        label="What the training printed", lines=8, max_lines=8, interactive=False,
        autoscroll=False, elem_id="log", buttons=["copy"],
    )  # fmt: skip
    seen = gr.State(None)  # what this visitor's page shows already

    hidden: dict[str, Any] = {
        "queue": False, "show_progress": "hidden", "api_visibility": "private",
    }  # fmt: skip
    outputs = [seen, steps, status, numbers, *plots, latest, pictures, rollouts, log]

    def refresh(run_id: str, before: Any) -> tuple[Any, ...]:
        path = site.path(run_id)
        job = site.jobs.current()
        printed = site.jobs.log_tail(run_id)
        now = (folder.signature(path), job, len(printed), _is_stale(path))
        if now == before:
            return tuple(gr.skip() for _ in outputs)
        same_curves = before is not None and before[0] == now[0]
        return now, *_screen(site, run_id, path, printed, same_curves=same_curves)

    for event in (page.load, run.change):
        event(in_words(lambda run_id: refresh(run_id, None)), [run], outputs, **hidden)
    tick.tick(in_words(refresh), [run, seen], outputs, **hidden)

    def act(verb: str) -> Any:
        def handler(run_id: str) -> None:
            if run_id == SAMPLE_ID:
                raise ValueError("this is a recording: choose or start a run of your own.")
            gr.Info(getattr(site.jobs, verb)(run_id))

        return in_words(handler)

    for button, verb in ((pause, "pause"), (resume, "resume"), (stop, "stop")):
        button.click(act(verb), [run], None, queue=False, api_visibility="private")

    def show_command(run_name: str, preset: str, *values: float | None) -> str:
        arguments = _arguments(preset, values)
        return shlex.join(["prism-lite", "run", "--out", f"runs/{run_name or 'NAME'}", *arguments])

    gr.on(
        [page.load, *(component.change for component in (name, recipe, *knobs))],
        in_words(show_command),
        [name, recipe, *knobs],
        [command],
        **hidden,
    )

    def begin(run_name: str, preset: str, *values: float | None) -> tuple[Any, Any]:
        run_name = (run_name or "").strip()
        if run_name in folder.run_ids(site.home):
            raise ValueError(
                f"run {run_name!r} exists: Resume goes on with it, another name starts a new one."
            )
        _check_startable(preset)
        job = site.jobs.start(run_name, _arguments(preset, values))
        gr.Info(
            f"{run_name} starts (process {job.pid}); it shows in the list after its first seconds."
        )
        return view.note(f"{run_name} is starting: base model first, then the stages."), gr.skip()

    start.click(
        in_words(begin), [name, recipe, *knobs], [status, log], queue=False, api_name="start"
    )


def _recipes() -> list[str]:
    from prism_lite.recipe import recipe_names

    return recipe_names()


@functools.cache
def _preset(name: str) -> Any:
    from prism_lite.recipe import load_recipe

    return load_recipe(name)


def _arguments(preset: str, values: Sequence[float | None]) -> list[str]:
    """What follows `prism-lite run --out DIR`: the preset, and the knobs that differ from it.

    Raises:
        ValueError: no such preset, or a knob out of range.
    """
    from prism_lite.recipe import load_recipe

    if preset not in _recipes():
        raise ValueError(f"preset {preset!r}: choose one of {', '.join(_recipes())}.")
    changed = []
    for (key, title, _), value in zip(KNOBS, values, strict=True):
        if value is None:
            continue
        if not 0 <= value <= MAX_KNOB:
            raise ValueError(f"{title} = {value:g}: expected 0 to {MAX_KNOB}.")
        if int(value) != functools.reduce(getattr, key.split("."), _preset(preset)):
            changed.append(f"{key}={int(value)}")
    load_recipe(preset, changed)  # what it says about a wrong value is said before anything starts
    return ["--recipe", preset, *changed]


def _check_startable(preset: str) -> None:
    config = _preset(preset)
    if config.data.task == "files" and config.data.train is None:
        raise ValueError(
            f"preset {preset} trains on your own file, and no path is taken from a browser: copy the "
            "command above, add data.train=FILE, and watch the run here."
        )


def _screen(
    site: Site, run_id: str, path: Path, printed: str, *, same_curves: bool
) -> tuple[Any, ...]:
    """Everything the tab shows of a run, `seen` excepted."""
    job = site.jobs.current()
    is_training = job is not None and job.run == run_id
    stages = folder.progress(path)
    state = _state(path, is_training)
    active = next((s.stage for s in stages if not s.is_done), None)
    metrics = folder.read_metrics(path)
    if same_curves:
        drawn: list[Any] = [gr.skip() for _ in curves.PANELS]
    else:
        drawn = [curves.panel_frame(panel, metrics) for panel in curves.PANELS]
    if job is not None and not is_training:
        note = f"{job.run!r} is training now; this is {run_id!r}. {_STATES[state]}"
    else:
        note = _STATES[state]
    kind = {"training": "good", "stopped": "warn", "paused": "warn"}.get(state, "plain")
    return (
        view.stepper(stages, active if state != "recorded" else None, state),
        view.note(note, kind=kind),
        _numbers(metrics),
        *drawn,
        *_last_rollouts(path),
        printed or "Nothing printed here: this run was not started from this page.",
    )


_STATES = {
    "recorded": "A recorded run that ships with the demo: real figures, no weights. "
    "Start a run of your own below.",
    "finished": "Finished: every stage is trained and evaluated.",
    "training": "Training in its own process: closing this page, or the demo, does not stop it.",
    "paused": "Paused: it holds its memory and goes on with Resume.",
    "stopped": "Not running and not finished. Resume goes on from its last checkpoint.",
    "elsewhere": "Another program is writing to this run (its last step is under a minute old).",
}


def _state(path: Path, is_training: bool) -> str:
    if path == folder.SAMPLE_RUN:
        return "recorded"
    if is_training:
        return "paused" if folder.control_command(path) == "pause" else "training"
    if folder.is_finished(path):
        return "finished"
    return "stopped" if _is_stale(path) else "elsewhere"


def _is_stale(path: Path) -> bool:
    """Whether nothing was logged for a while."""
    file = path / "metrics.jsonl"
    return not file.exists() or time.time() - file.stat().st_mtime > STALE_S


def _numbers(metrics: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return view.note("No step yet: figures come with the first one.")
    last = metrics[-1]
    items = [
        (
            "stage and step",
            f"{STAGE_TITLES.get(last['stage'], last['stage'])} {last['step'] + 1}",
            "The last optimizer step that was logged.",
        )
    ]
    items += [
        (title, pattern.format(last[key]), text)
        for title, key, pattern, text in FIGURES
        if key in last
    ]
    return view.figures(items)


def _last_rollouts(path: Path) -> tuple[Any, ...]:
    """Pictures and completions of the newest rollouts, a few of one step."""
    kept = [
        (stage, steps[-1])
        for stage in ("rlvr", "align")
        if (steps := folder.rollout_steps(path, stage))
    ]
    if not kept:
        return view.note("No rollouts yet: they come with alignment and RLVR."), None, None
    stage, step = kept[0]
    records = folder.read_rollouts(path, stage, step)
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_prompt.setdefault(record["prompt_id"], []).append(record)
    pictures, table = [], []
    for number, (prompt_id, group) in enumerate(list(by_prompt.items())[: NUM_ROLLOUTS // 2], 1):
        sample = rows.sample_by_id(path, prompt_id)
        if sample is not None and sample.pictures:
            pictures.append((sample.pictures[0].open(), f"{number} · {sample.question}"))
        best, worst = (f(group, key=lambda r: r["advantage"]) for f in (max, min))
        table += [
            [str(number), r["completion"][:300], view.number(r["advantage"]), r["finish_reason"]]
            for r in (best, worst)
        ]
    text = (
        f"Newest rollouts: {STAGE_TITLES[stage]} step {step + 1}; of each prompt the best and the worst by "
        "advantage."
    )
    return view.note(text), pictures, table
