"""Helpers of the browser tests; as a program, screenshots of every tab: light, dark and phone.

python -m tests.demo.screens OUT [RUN]
python -m tests.demo.screens OUT --readme    # also replaces demo/screenshots, from the recorded sample
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TABS = (
    "Story", "Compare", "Discriminator", "Train", "Two runs", "Rewards", "Data", "Memory",
)  # fmt: skip
PHONE = (390, 844)
README_WIDTH = 960
MODES = {"light": (1440, 900), "dark": (1440, 900), "phone": PHONE}


def find_chromium() -> str | None:
    """Return the path of Chromium."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def open_tab(page: Any, name: str) -> None:
    """Open a tab; on a phone the last ones are in a menu."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.is_visible():
        tab.click()
        return
    page.locator(".overflow-menu > button").first.click()
    page.locator(".overflow-dropdown button", has_text=name).click()


def update_readme(out: Path) -> None:
    """Replace the pictures in demo/screenshots by those in `out`, smaller and with 256 colors."""
    from PIL import Image

    for target in (Path(__file__).parents[2] / "demo" / "screenshots").glob("*.png"):
        with Image.open(out / f"{target.stem}-light.png") as image:
            size = (README_WIDTH, round(image.height * README_WIDTH / image.width))
            small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        small.quantize(256, Image.Quantize.MAXCOVERAGE).save(target, optimize=True)


def take(out: Path, run: str | None, wait_s: float) -> None:
    """Save one screenshot of each tab in each mode."""
    from playwright.sync_api import sync_playwright

    from demo.app import launch
    from demo.runs.folder import open_home

    out.mkdir(parents=True, exist_ok=True)
    home = open_home(run, root=out / "no-runs")
    app, url, _ = launch(home, is_open=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        for mode, (width, height) in MODES.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(f"{url}?__theme={'dark' if mode == 'dark' else 'light'}")
            page.wait_for_selector(".story-card")
            page.wait_for_function(
                "!document.querySelector('#badge').innerText.includes('LOADING')"
            )
            for tab in (
                "Story",
                "Compare",
                "Discriminator",
                "Train",
                "Two runs",
                "Rewards",
                "Data",
                "Memory",
            ):
                open_tab(page, tab)
                page.mouse.wheel(0, 20_000)  # pictures further down load when they are near
                page.wait_for_timeout(int(1000 * wait_s))
                page.screenshot(
                    path=out / f"{tab.lower().replace(' ', '-')}-{mode}.png", full_page=True
                )
        browser.close()
    app.close(verbose=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("run", nargs="?", help="default: the recorded sample")
    parser.add_argument("--wait", type=float, default=3.0, help="seconds before each screenshot")
    parser.add_argument("--readme", action="store_true", help="replace demo/screenshots")
    arguments = parser.parse_args()
    if arguments.readme and arguments.run:
        parser.error("--readme shows the recorded sample: omit RUN")
    take(arguments.out, arguments.run, arguments.wait)
    if arguments.readme:
        update_readme(arguments.out)
