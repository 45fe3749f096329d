"""How soon the demo answers a user: `python -m tests.bench.demo_start [RUN] [--repeat N]`.

From the start of the process: the address is printed, Chromium paints for the first time, the cards of the
tab Story are there. Then, for drawings, the seconds from a click until the last stage's last token is on
the screen. RUN has the weights of a tiny model; by default those that ship with the demo answer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.demo.screens import ARGUMENTS, find_chromium, open_tab

REPOSITORY = Path(__file__).parents[2]
NUM_DIGITS, NUM_ANSWERS = 4, 3
PAINTED = """() => performance.timeOrigin + performance.getEntriesByType('paint')
    .find(entry => entry.name === 'first-contentful-paint').startTime"""
# Resolves with seconds once the last stage, cleared by the click, has its marks again.
ASK = """([selector, place]) => new Promise(done => {
    const marks = document.querySelector('#marks-rlvr'), started = performance.now();
    setTimeout(() => done(null), 60_000);
    let isCleared = false;
    new MutationObserver((_, observer) => {
        isCleared ||= !marks.querySelector('.mark');
        if (!isCleared || !marks.querySelector('.mark')) return;
        observer.disconnect();
        done((performance.now() - started) / 1000);
    }).observe(marks, {childList: true, subtree: true, characterData: true});
    document.querySelectorAll(selector)[place].click();
})"""


@contextmanager
def served(*arguments: str) -> Iterator[tuple[str, float, float]]:
    """A demo process of its own: address, when it was started (Unix time), seconds to the address."""
    with tempfile.TemporaryDirectory() as empty:
        started_s = time.time()
        server = subprocess.Popen(
            [sys.executable, "-m", "prism_lite", "demo", *arguments],
            stdout=subprocess.PIPE, text=True, cwd=empty,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[2]
            yield address, started_s, time.time() - started_s
        finally:
            server.terminate()
            server.wait()


def first_paint(browser: Any) -> tuple[float, float, float]:
    """Seconds to the address, to the first paint, and to the cards of Story."""
    with served() as (address, started_s, address_s):
        page = browser.new_page()
        page.goto(address, wait_until="commit")
        page.wait_for_selector(".story-card")
        complete_s = time.time() - started_s
        painted_s = page.evaluate(PAINTED) / 1000 - started_s
        page.close()
    return address_s, painted_s, complete_s


def answer_drawings(browser: Any, run: str | None) -> list[tuple[float, list[float]]]:
    """Of each answer to a drawing: seconds from the click to the last token, and each stage's own."""
    times = []
    arguments = ["--run", str(Path(run).resolve())] if run else []
    with served(*arguments) as (address, _, _):
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#badge .badge")
        page.wait_for_function(
            "/tiny model answers|trained in this run/.test(document.querySelector('#badge').innerText)",
            timeout=60_000,
        )
        open_tab(page, "Compare")
        page.get_by_label("Own drawing").check()
        page.locator("#pad canvas").first.wait_for()
        page.wait_for_timeout(1000)
        for number in range(NUM_DIGITS):
            _draw_seven(page, 0.1 + 0.2 * number)
            page.wait_for_timeout(500)
        for _ in range(NUM_ANSWERS):  # of the same drawing: nothing is kept between answers
            seconds = page.evaluate(ASK, ["#ask", 0])
            if seconds is None:
                text = page.locator("#compare-note").inner_text()
                raise RuntimeError(f"no answer within 60 s; the page says: {text}")
            spans = page.locator(".marks span", has_text=" s").all_inner_texts()
            stages = [float(text.split()[0]) for text in spans if text.endswith(" s")]
            times.append((seconds, stages))
    return times


def _draw_seven(page: Any, x: float) -> None:
    box = page.locator("#pad canvas").first.bounding_box()
    points = ((x, 0.3), (x + 0.1, 0.3), (x + 0.04, 0.75))
    places = [(box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place)
    page.mouse.up()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", help="a finished run of the tiny model")
    parser.add_argument("--repeat", type=int, default=3, help="processes started; default: 3")
    given = parser.parse_args(arguments)
    from playwright.sync_api import sync_playwright

    print(f"load average before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        browser.new_page().goto("about:blank")
        for number in range(given.repeat):
            address_s, painted_s, complete_s = first_paint(browser)
            print(
                f"start {number + 1}: address {address_s:.2f} s, first paint {painted_s:.2f} s, "
                f"Story complete {complete_s:.2f} s",
                flush=True,
            )
        answered = answer_drawings(browser, given.run)
        for number, (seconds, stages) in enumerate(answered, 1):
            print(f"answer {number}: {seconds:.2f} s from click to last token, stages {stages}")
        times = [seconds for seconds, _ in answered]
        print(f"median {statistics.median(times):.2f} s, worst {max(times):.2f} s")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
