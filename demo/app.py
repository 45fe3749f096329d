"""The app: header, six tabs, and how it is served.

Nothing is asked of any other host: system fonts, no analytics, and a content policy that keeps the browser
from following what Gradio's own page would load elsewhere.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

# Before gradio is imported: its statistics and version look-up go to other hosts.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from gradio.events import Dependency
from starlette.middleware import Middleware

from demo.headers import SecurityHeaders
from demo.runs import folder
from demo.runs.folder import Home
from demo.runs.jobs import Jobs
from demo.screens import html
from demo.screens.widgets import QUIET
from demo.site import Site, in_words
from demo.tabs import compare, data, discriminator, memory, rewards, train

TICK_S = 2.0
MAX_WAITING = 16
DROP_UPLOADS_S = 3600
GUEST = "guest"
STYLE = Path(__file__).with_name("style.css")
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def build_app(site: Site) -> gr.Blocks:
    """All tabs of the app."""
    with gr.Blocks(
        title="prism_lite", analytics_enabled=False, delete_cache=(DROP_UPLOADS_S, DROP_UPLOADS_S)
    ) as page:
        run, badge = _header(site.home)
        tick = gr.Timer(TICK_S)
        opened = _wire_header(site, page, run, badge, tick)
        with gr.Tabs():
            with gr.Tab("Compare", id="compare"):
                compare.build(site, opened, run)
            with gr.Tab("Discriminator", id="discriminator"):
                discriminator.build(site, opened, run)
            if not site.home.is_shared:
                with gr.Tab("Train", id="train"):
                    train.build(site, opened, run, tick)
            with gr.Tab("Rewards", id="rewards"):
                rewards.build(site, opened, run)
            with gr.Tab("Data", id="data") as data_tab:
                data.build(site, data_tab, run)
            if not site.home.is_shared:
                with gr.Tab("Memory", id="memory"):
                    memory.build(site, opened, run)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    return page


def _header(home: Home) -> tuple[gr.Dropdown, gr.HTML]:
    """Title, the choice of a run, and the badge that says what is looked at."""
    with gr.Row(elem_classes="header"):
        with gr.Column(scale=3, min_width=240):
            gr.HTML(
                "<h1>prism_lite</h1><p>SFT, adversarial alignment, RLVR: what each changes</p>",
                elem_classes="title",
            )
        with gr.Column(scale=2, min_width=220):
            run = gr.Dropdown(
                choices=folder.run_ids(home), value=home.first, label="Run", elem_id="run"
            )
        with gr.Column(scale=3, min_width=240):
            return run, gr.HTML(elem_id="badge")


def _wire_header(
    site: Site, page: gr.Blocks, run: gr.Dropdown, badge: gr.HTML, tick: gr.Timer
) -> Dependency:
    """Its events; the one that a tab waits for before it shows the run."""

    def status(run_id: str) -> str:
        job = site.jobs.current()
        if job is not None and job.run == run_id:
            return html.badge("training", f"{run_id}, process {job.pid}")
        ready = site.models.readiness(site.path(run_id))
        return html.badge(ready.kind, ready.detail)

    def keep_up(run_id: str) -> str:
        # not on load: importing torch would hold up the first paint; not beside a training, which
        # needs the machine
        if site.jobs.current() is None:
            site.models.prepare(site.path(run_id), replaces=False)
        return status(run_id)

    def turn_to(run_id: str) -> str:
        if site.jobs.current() is None:
            site.models.prepare(site.path(run_id), replaces=not site.home.is_shared)
        return status(run_id)

    def list_runs(run_id: str) -> gr.Dropdown:
        known = folder.run_ids(site.home)
        return gr.Dropdown(choices=known, value=run_id if run_id in known else site.home.first)

    def open_page() -> gr.Dropdown:
        job = site.jobs.current()
        return list_runs(job.run if job is not None else site.home.first)

    opened = page.load(open_page, None, [run], **QUIET)
    run.focus(list_runs, [run], [run], **QUIET)
    opened.then(in_words(status), [run], [badge], **QUIET)
    run.change(in_words(turn_to), [run], [badge], **QUIET)
    tick.tick(in_words(keep_up), [run], [badge], **QUIET)
    return opened


def launch(
    home: Home,
    *,
    port: int | None = None,
    is_open: bool = True,
    jobs: Jobs | None = None,
    **settings: Any,
) -> tuple[gr.Blocks, str, str | None]:
    """Serve the app.

    Args:
        home: the runs; a shared one gets a public link, a password and no training.
        port: None takes the first free one from 7860 on.
        is_open: False returns at once and leaves serving to threads (tests, notebooks).
        jobs: how trainings are started; default: `prism-lite run` in the folder of the runs.
        settings: passed to Gradio's launch.

    Returns:
        The app, its address and the guests' password (None where it is not shared).

    Raises:
        ValueError: the port is taken, or there is no way to a public link.
    """
    _keep_uploads_private()
    page = build_app(Site(home, jobs or Jobs(home.root)))
    password = secrets.token_urlsafe(9) if home.is_shared else None
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=home.is_shared,
            auth=(GUEST, password) if password else None,
            max_file_size="10mb",
            theme=_theme(),
            css_paths=STYLE,
            run_history=False,
            footer_links=[],
            enable_monitoring=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [Middleware(SecurityHeaders)]},
            allowed_paths=[],
            **settings,
        )
    except OSError as error:
        raise ValueError(
            f"cannot serve on port {port}: {error}. Give another --port, or none for a free one."
        ) from error
    if home.is_shared and not page.share_url:
        page.close(verbose=False)
        raise ValueError(
            "no public link could be made: this machine does not reach Gradio's link service. Leave "
            "--share away and forward the port instead: ssh -L 7860:127.0.0.1:7860 THIS_MACHINE."
        )
    if is_open:
        if password:
            print(
                f"public link: {page.share_url}\nuser: {GUEST}\npassword: {password}\n"
                f"Guests see every run in {home.root} with its data, and can ask its models; they cannot "
                "train. The link lasts at most a week."
            )
        print(f"prism_lite demo: {address} (Ctrl-C ends it; a training goes on)", flush=True)
        page.block_thread()
    return page, address, password


def _keep_uploads_private() -> None:
    """Uploads and drawings lie in a folder that only this user reads and that goes with the process."""
    if "GRADIO_TEMP_DIR" not in os.environ:
        uploads = tempfile.mkdtemp(prefix="prism_lite_demo_")
        os.environ["GRADIO_TEMP_DIR"] = uploads
        atexit.register(shutil.rmtree, uploads, ignore_errors=True)


def _theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=SYSTEM_FONTS,
        font_mono=MONO_FONTS,
        radius_size=gr.themes.sizes.radius_sm,
    )
