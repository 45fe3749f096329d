"""The app: the header, eight tabs, and how it is served.

Nothing is loaded from other hosts: system fonts, no analytics, and a content security policy that blocks
what Gradio's page would load elsewhere.
"""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Must be set before gradio is imported: its analytics and version check contact other hosts.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from starlette.middleware import Middleware

from demo.headers import LOCAL_HOSTS, OwnHostsOnly, SecurityHeaders
from demo.runs import folder
from demo.runs.folder import Home
from demo.runs.trainer import Trainer
from demo.screens import html
from demo.site import Header, Site, connect
from demo.tabs import compare, data, discriminator, memory, rewards, story, train, two_runs
from demo.uploads import make_uploads_private

_TICK_S = 2.0
_MAX_WAITING = 64
_DELETE_UPLOADS_S = 3600
_GUEST = "guest"
_STYLE = Path(__file__).with_name("style.css")


def build_app(site: Site) -> gr.Blocks:
    """Build all tabs of the app."""
    delete_cache = (_DELETE_UPLOADS_S, _DELETE_UPLOADS_S)
    with gr.Blocks(title="prism_lite", analytics_enabled=False, delete_cache=delete_cache) as page:
        header = _header(site, page)
        with gr.Tabs() as tabs:
            with gr.Tab("Story"):
                story.build(site, header)
            with gr.Tab("Compare"):
                compare.build(site, header, tabs)
            with gr.Tab("Discriminator"):
                discriminator.build(site, header)
            if not site.home.is_shared:
                with gr.Tab("Train"):
                    train.build(site, header)
            with gr.Tab("Two runs"):
                two_runs.build(site, header)
            with gr.Tab("Rewards"):
                rewards.build(site, header)
            with gr.Tab("Data") as data_tab:
                data.build(site, header, data_tab)
            if not site.home.is_shared:
                with gr.Tab("Memory"):
                    memory.build(site, header)
    page.queue(max_size=_MAX_WAITING, default_concurrency_limit=1)
    return page


def _header(site: Site, page: gr.Blocks) -> Header:
    """Lay out the title, the choice of a run and a badge with its state, and connect their events."""
    with gr.Row(elem_classes="header"):
        with gr.Column(scale=3, min_width=240):
            text = "SFT, adversarial alignment, RLVR: what each stage changes"
            gr.HTML(f"<h1>prism_lite</h1><p>{text}</p>", elem_classes="title")
        with gr.Column(scale=2, min_width=220):
            run_choice = gr.Dropdown(
                choices=folder.run_ids(site.home), value=site.home.first, label="Run", elem_id="run"
            )
        with gr.Column(scale=3, min_width=240):
            badge = gr.HTML(elem_id="badge")
    tick = gr.Timer(_TICK_S)
    finished = gr.State(None)  # the chosen run, and its stages that were done at the last tick
    # a component, since a state outside the queue has no change event
    num_finished = gr.Number(0, visible="hidden", label="finished stages")

    def show_status(run_id: str) -> str:
        process = site.trainer.current()
        if process is not None and process.run_id == run_id:
            return html.badge("training", f"{run_id}, process {process.pid}")
        return html.badge(*site.models.status(site.path(run_id)))

    def prepare_model(run_id: str, replaces: bool) -> str:
        if site.trainer.current() is None:  # a training needs the machine
            site.models.prepare(site.path(run_id), replaces=replaces)
        return show_status(run_id)

    def list_runs(run_id: str) -> gr.Dropdown:
        known = folder.run_ids(site.home)
        return gr.Dropdown(choices=known, value=run_id if run_id in known else site.home.first)

    def open_page() -> gr.Dropdown:
        process = site.trainer.current()
        return list_runs(process.run_id if process is not None else site.home.first)

    def count_finished(run_id: str, before: Any, count: int) -> tuple[Any, Any]:
        now = (run_id, folder.finished_stages(site.path(run_id)))
        if now == before:
            return gr.skip(), gr.skip()
        is_same_run = before is not None and before[0] == run_id
        return now, count + 1 if is_same_run else gr.skip()

    opened = connect(page.load, open_page, None, [run_choice], is_silent=True)
    connect(run_choice.focus, list_runs, [run_choice], [run_choice])
    # not `prepare_model`: importing torch would delay the first paint
    connect(opened.then, show_status, [run_choice], [badge], is_silent=True)
    replace_model = functools.partial(prepare_model, replaces=not site.home.is_shared)
    connect(run_choice.change, replace_model, [run_choice], [badge])
    keep_model = functools.partial(prepare_model, replaces=False)
    connect(tick.tick, keep_model, [run_choice], [badge], is_silent=True)
    counted = [finished, num_finished]
    connect(tick.tick, count_finished, [run_choice, *counted], counted, is_silent=True)
    return Header(run_choice, opened, tick, num_finished, badge, show_status)


def launch(
    home: Home,
    *,
    port: int | None = None,
    is_open: bool = True,
    trainer: Trainer | None = None,
    hosts: Sequence[str] = (),
) -> tuple[gr.Blocks, str, str | None]:
    """Serve the app.

    Args:
        home: the runs; a shared one gets a public link, a password and no training.
        port: None takes the first free one from 7860.
        is_open: whether to block until Ctrl-C; otherwise threads serve the app (tests, notebooks).
        trainer: starts trainings; default: `prism-lite run` in the folder of the runs.
        hosts: further names that the page is opened under, as that of a proxy.

    Returns:
        The app, its address, and the guests' password (None if it is not shared).

    Raises:
        ValueError: the port is in use, or no public link can be created.
    """
    make_uploads_private()
    page = build_app(Site(home, trainer or Trainer(home.root)))
    password = secrets.token_urlsafe(9) if home.is_shared else None
    own_hosts = {*LOCAL_HOSTS, *hosts}
    address = _serve(page, port, password, own_hosts)
    if page.share_url:
        own_hosts.add(str(urlsplit(page.share_url).hostname))
    if password and not page.share_url:
        page.close(verbose=False)
        raise ValueError(
            "cannot create a public link: Gradio's link service cannot be reached from this machine. Omit "
            "--share and forward the port instead: ssh -L 7860:127.0.0.1:7860 THIS_MACHINE."
        )
    if is_open:
        if password:
            print(
                f"public link: {page.share_url}\nuser: {_GUEST}\npassword: {password}\n"
                f"Guests see every run in {home.root} with its data, and can ask its models; they cannot "
                "train. The link expires after at most a week."
            )
        print(f"prism_lite demo: {address} (Ctrl-C quits; a training keeps running)", flush=True)
        page.block_thread()
    return page, address, password


def _serve(page: gr.Blocks, port: int | None, password: str | None, hosts: set[str]) -> str:
    """Serve the app in threads, with a public link if there is a password; return its address."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
        radius_size=gr.themes.sizes.radius_sm,
    ).set(  # the default's white on light teal is hard to read
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        # and its gray on white is too
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
    )
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=password is not None,
            auth=(_GUEST, password) if password else None,
            max_file_size="10mb",
            theme=theme,
            css_paths=_STYLE,
            run_history=False,
            footer_links=[],
            enable_monitoring=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
            app_kwargs={
                "middleware": [
                    Middleware(SecurityHeaders),
                    Middleware(OwnHostsOnly, hosts=hosts),
                ]
            },
        )
    except OSError as error:
        raise ValueError(
            f"cannot serve on port {port}: {error}. Choose another --port, or omit it."
        ) from error
    return address
