"""The app: header, six tabs, and how it is served.

Nothing is asked of any other host: system fonts, no analytics, and a content policy that keeps the browser
from following what Gradio's own page would load elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import threading
from pathlib import Path
from typing import Any

# Before gradio is imported: its statistics and version look-up go to other hosts.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from starlette.middleware import Middleware

from demo import compare, data, discriminator, folder, memory, rewards, rows, train, view
from demo.folder import Home
from demo.headers import SecurityHeaders
from demo.jobs import Jobs
from demo.site import Site, in_words

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
        with gr.Row(elem_classes="header"):
            with gr.Column(scale=3, min_width=240):
                gr.HTML(
                    "<h1>prism_lite</h1><p>SFT, adversarial alignment, RLVR: what each changes</p>",
                    elem_classes="title",
                )
            with gr.Column(scale=2, min_width=220):
                run = gr.Dropdown(
                    choices=folder.run_ids(site.home),
                    value=site.home.first,
                    label="Run",
                    elem_id="run",
                )
            with gr.Column(scale=3, min_width=240):
                badge = gr.HTML(elem_id="badge")
        tick = gr.Timer(TICK_S)
        with gr.Tabs():
            with gr.Tab("Compare", id="compare"):
                compare.build(site, page, run)
            with gr.Tab("Discriminator", id="discriminator"):
                discriminator.build(site, page, run)
            if not site.home.is_shared:
                with gr.Tab("Train", id="train"):
                    train.build(site, page, run, tick)
            with gr.Tab("Rewards", id="rewards"):
                rewards.build(site, page, run)
            with gr.Tab("Data", id="data"):
                data.build(site, page, run)
            if not site.home.is_shared:
                with gr.Tab("Memory", id="memory"):
                    memory.build(site, page, run)

        def status(run_id: str) -> str:
            path = site.path(run_id)
            job = site.jobs.current()
            if job is not None and job.run == run_id:
                return view.badge("training", f"{run_id}, process {job.pid}")
            ready = site.models.readiness(path)
            return view.badge(ready.kind, ready.detail)

        def list_runs(run_id: str) -> gr.Dropdown:
            known = folder.run_ids(site.home)
            return gr.Dropdown(choices=known, value=run_id if run_id in known else site.home.first)

        hidden: dict[str, Any] = {
            "queue": False, "show_progress": "hidden", "api_visibility": "private",
        }  # fmt: skip

        def status_and_model(run_id: str) -> str:
            # not on load: importing torch would hold up the page's first paint
            site.models.prepare(site.path(run_id))
            return status(run_id)

        for event in (page.load, run.change):
            event(in_words(status), [run], [badge], **hidden)
        tick.tick(in_words(status_and_model), [run], [badge], **hidden)
        page.load(list_runs, [run], [run], **hidden)
        run.focus(list_runs, [run], [run], **hidden)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    return page


def launch(
    home: Home, *, port: int | None = None, is_open: bool = True, **settings: Any
) -> tuple[gr.Blocks, str, str | None]:
    """Serve the app.

    Args:
        home: the runs; a shared one gets a public link, a password and no training.
        port: None takes the first free one from 7860 on.
        is_open: False returns at once and leaves serving to threads (tests, notebooks).
        settings: passed to Gradio's launch.

    Returns:
        The app, its address and the guests' password (None where it is not shared).

    Raises:
        ValueError: the port is taken.
    """
    os.environ.setdefault(
        "GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir()) / f"prism_lite_demo_{os.getuid()}")
    )
    threading.Thread(target=_read_ahead, args=(home,), daemon=True).start()
    page = build_app(Site(home, Jobs(home.root)))
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
    if is_open:
        if password:
            print(f"public link: {page.share_url}\nuser: {GUEST}\npassword: {password}")
        print(f"prism_lite demo: {address} (Ctrl-C ends it; a training goes on)", flush=True)
        page.block_thread()
    return page, address, password


def _read_ahead(home: Home) -> None:
    """The first run's data, while the browser is still on its way; a fault shows on the page."""
    with contextlib.suppress(ValueError):
        rows.task_of(folder.run_path(home, home.first))


def _theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=SYSTEM_FONTS,
        font_mono=MONO_FONTS,
        radius_size=gr.themes.sizes.radius_sm,
    )
