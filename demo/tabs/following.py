"""After Start: the page goes to the new run, or says why it did not begin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from demo.runs import folder
from demo.screens import html
from demo.site import Header, Site, connect


@dataclass(frozen=True)
class Started:
    """A run that this visitor has started, until its first step or its end.

    Attributes:
        run_id: its name.
        command: what starts it in a terminal.
        is_shown: whether the page went to it.
    """

    run_id: str
    command: str
    is_shown: bool = False


def connect_following(
    site: Site, header: Header, begun: Any, started: gr.State, name: gr.Textbox, reply: gr.HTML
) -> None:
    """Follow what was started, and keep the name in the form one that no run has yet.

    Args:
        begun: the event of the form's button, after which there is something to follow.
        started: holds a `Started`, or None.
        name: the form's field for the name of the next run.
        reply: the sentence below the form's button.
    """

    # not the page's own timer: it would update the page where nothing is followed
    tick = gr.Timer(header.tick.value, active=False)

    def wait(run: Started | None) -> gr.Timer:
        return gr.Timer(active=run is not None)

    def look(run: Started | None, shown: str) -> tuple[Any, ...]:
        updates = follow(site, run, shown)
        return *updates, gr.Timer(active=False) if updates[1] is None else gr.skip()

    def rename(now: str) -> Any:
        return folder.new_run_id(site.home) if now in folder.run_ids(site.home) else gr.skip()

    connect(begun.then, wait, [started], [tick])
    outputs = [header.run_choice, started, reply, name, tick]
    connect(tick.tick, look, [started, header.run_choice], outputs, is_silent=True)
    connect(header.opened.then, rename, [name], [name], is_silent=True)
    connect(header.run_choice.change, rename, [name], [name])


def follow(site: Site, run: Started | None, shown: str) -> tuple[Any, ...]:
    """Return the choice of a run, what is still followed, the sentence below the button, a free name."""
    if run is None:
        return (gr.skip(),) * 4
    process = site.trainer.current()  # before the folder, which it may have written at its end
    is_running = process is not None and process.run_id == run.run_id
    known = folder.run_ids(site.home)
    if run.run_id not in known:
        if is_running:
            return (gr.skip(),) * 4
        choice = gr.Dropdown(choices=known, value=shown if shown in known else site.home.first)
        return choice, None, html.note(_why_not(site, run), tone="warn"), gr.skip()
    is_settled = not is_running or (site.path(run.run_id) / "metrics.jsonl").is_file()
    choice, reply, name = gr.skip(), gr.skip(), gr.skip()
    if not run.is_shown:
        choice = gr.Dropdown(choices=known, value=run.run_id)
        reply = html.note(
            f"This page shows {run.run_id} now: its stages are at the top.", tone="good"
        )
        name = folder.new_run_id(site.home)
    return choice, None if is_settled else replace(run, is_shown=True), reply, name


def _why_not(site: Site, run: Started) -> str:
    """Return why a run left no folder, the last line that its process printed, and where settings go."""
    lines = site.trainer.log_tail(run.run_id).strip().splitlines()
    reason = lines[-1].removeprefix("prism-lite: ") if lines else "its process printed nothing."
    return (
        f"{run.run_id} did not start: {reason} Settings can be added to the same command in a terminal: "
        f"{run.command}"
    )
