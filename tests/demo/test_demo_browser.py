"""The app in a real browser: what users see, on a desktop and on a phone, and what must not happen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.runs import folder, game
from prism_lite.recipe import load_recipe
from tests.demo.screens import PHONE, TABS, open_tab

pytestmark = pytest.mark.browser
HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'


def text_of(page: Any, selector: str) -> str:
    return page.locator(selector).inner_text()


def test_every_tab_of_the_sample_shows_something(
    visit: Callable[..., Any], sample_url: str
) -> None:
    page = visit(sample_url)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.wait_for_selector(".story-card.right")
    assert page.locator(".story-card").count() == 5
    assert page.locator(".story-card.wrong u").count() > 0
    assert "Example 1 of" in text_of(page, "#story-question")
    page.wait_for_function("document.querySelector('#badge').innerText.includes('RECORDED RUN')")
    open_tab(page, "Compare")
    page.wait_for_selector("#marks-rlvr .mark")
    assert "<caption>" in text_of(page, "#answer-base")
    assert "✗ caption: read" in text_of(page, "#marks-control")
    assert "✓ caption: right" in text_of(page, "#marks-rlvr")
    wait_for_text(page, "#changes", "RLVR - RLVR alone")
    page.get_by_role("button", name="Drift meter of this run").click()
    wait_for_text(page, "#drift", "thinks wrong given the caption")
    open_tab(page, "Discriminator")
    page.wait_for_selector("#heat-perception .token")
    page.locator("#advantage-bars canvas, #advantage-bars svg").first.wait_for()
    open_tab(page, "Train")
    page.wait_for_selector("#stepper .step.done")
    for panel in ("sft_loss", "pair_accuracy", "rewards", "peak"):
        page.locator(f"#plot-{panel} canvas, #plot-{panel} svg.marks").first.wait_for()
    open_tab(page, "Rewards")
    page.wait_for_selector("#reward-figures .figure")
    figures = [b.inner_text() for b in page.locator("#reward-figures .figure b").all()]
    bars, log = (float(figure) for figure in figures[:2])
    assert bars == pytest.approx(log, abs=1.01e-3)  # float64 and float32 may round apart
    page.wait_for_selector("#reward-why .reward-card img")
    page.locator("#reward-row input").click()
    page.get_by_role("option", name="1.8", exact=True).click()
    wait_for_text(page, "#reward-why", "Rollout 1.8: accuracy")
    open_tab(page, "Data")
    page.wait_for_selector("#data-gallery img")
    assert "2,048 rows" in text_of(page, "#data-count")
    open_tab(page, "Memory")
    page.wait_for_selector("#memory-figures .figure")
    assert not errors


@pytest.mark.parametrize("tab", TABS)
def test_a_phone_is_never_scrolled_sideways(
    visit: Callable[..., Any], sample_url: str, tab: str
) -> None:
    page = visit(sample_url, width=PHONE[0], height=PHONE[1])
    page.wait_for_selector(".story-card")
    open_tab(page, tab)
    page.wait_for_timeout(800)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_every_control_is_reached_by_keyboard(visit: Callable[..., Any], sample_url: str) -> None:
    page = visit(sample_url)
    open_tab(page, "Compare")
    page.wait_for_selector("#marks-rlvr .mark")
    page.locator("h1").click()
    reached: set[str] = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(() => { const e = document.activeElement; const h = e.closest('[id]:not(input)');"
                " return (e.getAttribute('role') || e.tagName) + ' ' + (h ? h.id : ''); })()"
            )
        )
    ids = " ".join(reached).split()
    for name in ("run", "source", "examples", "example", "ask"):
        assert name in ids, sorted(reached)
    assert any(item.startswith("tab ") for item in reached)


def test_the_form_shows_the_recipe_and_the_command(
    visit: Callable[..., Any], sample_url: str
) -> None:
    def wait_for_command(text: str) -> None:
        page.wait_for_function(
            "text => document.querySelector('#command textarea').value === text",
            arg=f"prism-lite run --out runs/{text}",
        )

    page = visit(sample_url)
    open_tab(page, "Train")
    page.locator("#new-run button").first.click()
    wait_for_command("run-1 --recipe tiny")
    page.locator("#run-name input, #run-name textarea").first.fill("first")
    wait_for_command("first --recipe tiny")
    steps = page.locator("#setting-sft-steps input")
    assert int(steps.input_value()) == load_recipe("tiny").sft.steps
    steps.fill("7")
    wait_for_command("first --recipe tiny sft.steps=7")
    page.locator("#recipe input").click()
    page.get_by_role("option", name="t4-2b").click()
    wait_for_command("first --recipe t4-2b")
    assert int(steps.input_value()) == load_recipe("t4-2b").sft.steps


@pytest.fixture
def stand_in_url(tmp_path: Path) -> Iterator[str]:
    """Serve an empty folder of runs, with a stand-in for the training, and stop what was started."""
    from demo.app import launch
    from demo.runs.folder import open_home
    from demo.runs.trainer import Trainer
    from tests.demo.test_demo_folder import STAND_IN

    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    trainer = Trainer(tmp_path / "runs", program=(sys.executable, str(program)))
    home = open_home(None, root=trainer.root)
    app, url, _ = launch(home, is_open=False, trainer=trainer)
    yield url
    running = trainer.current()
    if running is not None:
        os.kill(running.pid, signal.SIGKILL)
    app.close(verbose=False)


def test_start_on_the_untouched_form_starts_a_run(
    visit: Callable[..., Any], stand_in_url: str
) -> None:
    page = visit(stand_in_url)
    open_tab(page, "Train")
    page.locator("#new-run button").first.click()
    page.locator("#start").click()
    wait_for_text(page, "#start-reply", "This page shows run-1 now")
    wait_for_text(page, "#train-status", "Training as a separate process")
    page.wait_for_selector("#badge .badge-training")
    assert page.locator("#run input").input_value() == "run-1"
    # a second one is refused in words, beside the button
    page.locator("#start").click()
    wait_for_text(page, "#start-reply", "'run-1' is training already")
    assert page.locator("#resume").is_disabled()
    page.locator("#pause").click()
    wait_for_text(page, "#train-reply", "run-1 pauses after the current step")
    page.wait_for_function("!document.querySelector('#resume').disabled")
    page.locator("#resume").click()
    wait_for_text(page, "#train-reply", "run-1 resumes")
    # after a stop it can be resumed at once, and the sentence that announced it is gone
    page.locator("#stop").click()
    wait_for_text(page, "#train-reply", "saves a checkpoint after the current step and stops")
    page.wait_for_function("!document.querySelector('#resume').disabled", timeout=20_000)
    wait_for_text(page, "#train-status", "Not running and not finished")
    wait_for_text(page, "#badge", "no stage of this run is trained yet")
    page.wait_for_function("document.querySelector('#train-reply').innerText.trim() === ''")
    open_tab(page, "Story")
    wait_for_text(page, "#story-note", "No examples in this run yet")
    assert not page.locator("#story-next").is_visible()
    open_tab(page, "Rewards")
    wait_for_text(page, "#alarms", "No rewards yet")
    assert "gold answer" in text_of(page, "#rewards")


@pytest.mark.parametrize(
    ("name", "recipe", "sentence"),
    [
        ("", "tiny", "run name '': expected 1 to 40 lower-case letters"),
        ("Bad name", "tiny", "run name 'Bad name': expected 1 to 40 lower-case letters"),
        ("a", "t4-2b", "choose one under “Train on your own data”"),
    ],
)
def test_a_start_that_is_refused_says_why_beside_the_button(
    visit: Callable[..., Any], stand_in_url: str, name: str, recipe: str, sentence: str
) -> None:
    page = visit(stand_in_url)
    open_tab(page, "Train")
    page.locator("#new-run button").first.click()
    if recipe != "tiny":
        page.locator("#recipe input").click()
        page.get_by_role("option", name=recipe).click()
    page.locator("#run-name input, #run-name textarea").first.fill(name)
    page.locator("#start").click()
    wait_for_text(page, "#start-reply", sentence)
    for button in ("pause", "resume", "stop"):
        assert page.locator(f"#{button}").is_disabled()


def test_own_data_in_four_steps(
    visit: Callable[..., Any], stand_in_url: str, tmp_path: Path
) -> None:
    folder_of_data = tmp_path / "data"
    page = visit(stand_in_url)
    open_tab(page, "Train")
    page.locator("#own-data button").first.click()
    assert "prism-lite teach FILE" in text_of(page, "#own-teach")
    page.locator("#own-start").click()
    wait_for_text(page, "#own-start-reply", "no file chosen: put one (.jsonl, .ndjson")
    folder_of_data.mkdir()
    row = {"prompt": "What is 1+1?", "answer": "2"}
    (folder_of_data / "mine.jsonl").write_text(json.dumps(row) + "\n" + "not a row\n")
    page.locator("#own-train input").click()
    page.get_by_role("option", name="mine.jsonl").click()
    page.locator("#own-check").click()
    wait_for_text(page, "#own-check-reply", "mine.jsonl:")
    wait_for_text(page, "#own-check-reply", "mine.jsonl, line 2: broken JSON")
    page.locator("#own-start").click()
    wait_for_text(page, "#own-start-reply", "This page shows run-1 now")
    assert page.locator("#run input").input_value() == "run-1"
    page.wait_for_function(
        "document.querySelector('#own-name input, #own-name textarea').value === 'run-2'"
    )
    output = tmp_path / "runs" / ".logs" / "run-1.log"
    assert output.is_file()


def test_a_question_about_nothing_is_answered_in_place(
    visit: Callable[..., Any], sample_url: str
) -> None:
    page = visit(sample_url)
    open_tab(page, "Compare")
    page.wait_for_selector("#marks-rlvr .mark")
    for source, sentence in (
        ("Own drawing", "nothing is drawn"),
        ("Own picture", "no picture yet"),
    ):
        page.get_by_label(source, exact=True).check()
        page.locator("#ask").click()
        wait_for_text(page, "#compare-note", sentence)
        assert page.locator("#marks-rlvr .mark").count() == 0  # no stale answers


def test_a_run_that_was_deleted_meanwhile_is_a_sentence(
    visit: Callable[..., Any], live_home: Path
) -> None:
    from demo.app import launch
    from demo.runs.folder import open_home

    gone = live_home.parent / "gone"
    shutil.copytree(live_home, gone)
    app, url, _ = launch(open_home(str(live_home)), is_open=False)
    try:
        page = visit(url)
        page.locator("#run input").click()
        page.get_by_role("option", name="gone", exact=True).wait_for()
        shutil.rmtree(gone)
        page.get_by_role("option", name="gone", exact=True).click()
        wait_for_text(page, ".toast-wrap", "run 'gone' does not exist (any more)")
    finally:
        app.close(verbose=False)


def test_arrow_keys_show_the_other_examples(visit: Callable[..., Any], sample_url: str) -> None:
    page = visit(sample_url)
    page.wait_for_selector(".story-card")
    for key, example in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        page.keyboard.press(key)
        wait_for_text(page, "#story-question", f"Example {example} of")


def wait_for_text(page: Any, selector: str, text: str) -> None:
    page.wait_for_function(
        "([selector, text]) => [...document.querySelectorAll(selector)]"
        ".some(e => e.innerText.includes(text))",
        arg=[selector, text],
    )


def test_numbers_explain_themselves_on_focus(visit: Callable[..., Any], sample_url: str) -> None:
    page = visit(sample_url)
    open_tab(page, "Train")
    page.wait_for_selector("#train-figures .figure")
    figure = page.locator("#train-figures .figure").first
    figure.focus()
    shown = figure.evaluate("e => getComputedStyle(e, '::after').content")
    assert "step" in shown


@pytest.fixture(scope="module")
def hostile_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the recording with hostile completions: markup, and 20,000 tokens."""
    run = tmp_path_factory.mktemp("hostile") / "run"
    shutil.copytree(folder.SAMPLE_RUN, run)
    file = run / "demo" / "compare.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        long = "seven " * 20_000 if line["stage"] == "rlvr" else ""
        line["completion"] = f"<caption>{HOSTILE}{long}</caption><think>{HOSTILE}"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in (run / "rollouts").glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            record["completion"] = HOSTILE
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def test_hostile_and_endless_completions_are_only_text(
    visit: Callable[..., Any], hostile_home: Path
) -> None:
    from demo.app import launch
    from demo.runs.folder import open_home

    app, url, _ = launch(open_home(str(hostile_home)), is_open=False)
    try:
        page = visit(url)
        open_tab(page, "Compare")
        page.wait_for_selector("#marks-rlvr .mark")
        assert HOSTILE in text_of(page, "#answer-base")
        assert "characters]" in text_of(page, "#answer-rlvr")
        for tab in TABS[2:7]:
            open_tab(page, tab)
            page.wait_for_timeout(700)
        open_tab(page, "Rewards")
        page.wait_for_selector("#reward-text .textfield")
        assert page.evaluate("window.pwned") is None
    finally:
        app.close(verbose=False)


def test_a_drawing_is_answered(visit: Callable[..., Any], live_url: str) -> None:
    page = visit(live_url)
    page.wait_for_selector("#badge .badge-tiny", timeout=60_000)
    open_tab(page, "Compare")
    assert page.locator("#answer-rlvr").is_visible()
    # this run does not train RLVR alone
    page.wait_for_selector("#answer-control", state="hidden", timeout=10_000)
    page.get_by_label("Own drawing").check()
    canvas = page.locator("#pad canvas").first
    canvas.wait_for()
    page.wait_for_timeout(800)
    box = canvas.bounding_box()

    def stroke(*points: tuple[float, float]) -> None:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=3)
        page.mouse.up()

    stroke((0.25, 0.3), (0.25, 0.75))
    stroke((0.6, 0.3), (0.75, 0.3), (0.65, 0.75))
    page.locator("#truth input, #truth textarea").first.fill("1 7")
    page.wait_for_timeout(500)
    page.locator("#question input").first.click()
    page.get_by_role("option", name="Is the first digit greater than the last?").click()
    page.locator("#ask").click()
    page.wait_for_selector("#marks-rlvr .mark")
    assert "Gold answer: no" in text_of(page, "#compare-note")
    assert page.locator("#model-input img").count() == 1


def test_reload_and_a_second_tab_show_the_training_that_runs(
    visit: Callable[..., Any], live_home: Path, live_url: str
) -> None:
    """With a stand-in for the training: the pages only read the disk."""
    from tests.demo.test_demo_folder import STAND_IN, until_ended

    program = live_home.parent.parent / "stand_in.py"
    program.write_text(STAND_IN)
    from demo.runs.trainer import Trainer

    trainer = Trainer(live_home.parent, program=(sys.executable, str(program)))
    trainer.start("drawn", [])
    try:
        time.sleep(1)
        pages = [visit(live_url), visit(live_url)]
        for page in pages:
            choose_run(page, "drawn")
            open_tab(page, "Train")
            page.wait_for_function(
                "document.querySelector('#train-status').innerText.includes('process')"
            )
        pages[0].reload()
        pages[0].wait_for_selector("#badge .badge")
        choose_run(pages[0], "drawn")
        pages[0].wait_for_selector("#badge .badge-training")
        open_tab(pages[0], "Train")
        pages[0].locator("#pause").click()
        for page in pages:  # the other tab sees it within a tick or two
            page.wait_for_function(
                "document.querySelector('#train-status').innerText.includes('Paused')"
            )
        pages[1].locator("#stop").click()
        until_ended(trainer)
        pages[0].wait_for_function(
            "!document.querySelector('#train-status').innerText.includes('Paused')"
        )
    finally:
        running = trainer.current()
        if running is not None:
            os.kill(running.pid, signal.SIGKILL)


def test_an_open_page_shows_a_stage_that_was_finished_meanwhile(
    visit: Callable[..., Any], live_home: Path
) -> None:
    from demo.app import launch
    from demo.runs.folder import open_home

    running = live_home.parent / "running"
    shutil.copytree(live_home, running)
    kept = running.parent.parent / "kept"
    kept.mkdir()
    for name in ("rollouts", "stages/rlvr"):  # as before RLVR
        shutil.move(running / name, kept / Path(name).name)
    results = running / "results.json"
    written = results.read_text()
    earlier = json.loads(written)
    del earlier["stages"]["rlvr"]
    results.write_text(json.dumps(earlier))
    app, url, _ = launch(open_home(str(running)), is_open=False)
    try:
        page = visit(url)
        open_tab(page, "Rewards")
        wait_for_text(page, "#alarms", "No rewards yet")
        page.wait_for_timeout(3000)  # a tick sees the stages that are done
        shutil.move(kept / "rollouts", running / "rollouts")
        shutil.move(kept / "rlvr", running / "stages" / "rlvr")
        results.write_text(written)
        page.wait_for_selector("#reward-figures .figure")
        open_tab(page, "Discriminator")
        page.wait_for_selector("#game .game-step:not([hidden])")
    finally:
        app.close(verbose=False)
        shutil.rmtree(running)


def choose_run(page: Any, name: str) -> None:
    page.locator("#run input").click()
    page.get_by_role("option", name=name, exact=True).click()
    page.wait_for_timeout(300)


def test_another_group_shows_its_own_row(visit: Callable[..., Any], sample_url: str) -> None:
    """The events of fields that a new group fills must not bring back the old group."""
    groups = folder.read_lines(folder.SAMPLE_RUN / "demo" / "groups.jsonl")
    page = visit(sample_url)
    open_tab(page, "Discriminator")
    page.wait_for_selector("#heat-perception .token-container")
    for number in (2, 3):
        page.locator("#group input").click()
        page.get_by_role("option", name=f"last discriminator · {number} ·").click()
        expected = groups[number - 1]["rows"][0]["completion"].split("\n")[0]
        page.wait_for_function(
            "text => document.querySelector('#row-text').innerText.replace(/\\s+/g, '')"
            ".includes(text)",
            arg="".join(expected.removeprefix("<caption>").removesuffix("</caption>").split()),
        )
        page.wait_for_timeout(1500)  # for late answers
        assert page.locator("#heat-perception .token-container").count() > 3
        assert page.locator("#heat-reasoning .token-container").count() > 3


def test_the_game_is_scrubbed_and_played(visit: Callable[..., Any], sample_url: str) -> None:
    accuracies = game.pair_accuracies(folder.SAMPLE_RUN)
    steps = game.steps_of(folder.SAMPLE_RUN)
    page = visit(sample_url)
    open_tab(page, "Discriminator")
    page.wait_for_selector("#game .game-step:not([hidden]) .tok")

    def shown() -> tuple[str, list[float], str]:
        values = page.locator("#game .needle b").all_inner_texts()
        cards = page.locator("#game .game-step:not([hidden]) .strip")
        return (
            text_of(page, "#game .game-number"),
            [float(v) for v in values],
            cards.nth(2).inner_text(),
        )

    def expected(index: int) -> tuple[str, list[float]]:
        step = steps[index]["step"]
        return str(step + 1), [round(accuracies[name][step], 2) for name in game.CHANNELS]

    assert shown()[:2] == expected(0)
    page.locator(".game-slider").focus()
    page.keyboard.press("ArrowRight")
    assert shown()[:2] == expected(1)
    tokens = [token[0] for token in steps[1]["sample"]["tokens"]["perception"]]
    numbers = [str(token[2]) for token in steps[1]["sample"]["tokens"]["perception"]]
    assert shown()[2].split() == " ".join(
        f"{text} {number}" for text, number in zip(tokens, numbers, strict=True)
    ).replace("\n", "⏎").split()  # fmt: skip
    assert page.locator("#game .game-step:not([hidden])").count() == 1
    page.keyboard.press("End")
    assert shown()[:2] == expected(len(steps) - 1)
    play = page.locator(".game-play")
    play.click()  # from the beginning, since it is at the end
    assert play.get_attribute("aria-pressed") == "true"
    page.wait_for_function("document.querySelector('.game-slider').value === '2'")
    play.click()
    index = int(page.locator(".game-slider").input_value())
    assert shown()[:2] == expected(index)
    page.wait_for_timeout(2000)
    assert int(page.locator(".game-slider").input_value()) == index


def test_an_own_run_computes_its_shares(visit: Callable[..., Any], live_home: Path) -> None:
    from demo.app import launch
    from demo.runs.folder import open_home

    played = live_home.parent / "played"
    shutil.copytree(live_home, played)
    app, url, _ = launch(open_home(str(played)), is_open=False)
    try:
        page = visit(url)
        open_tab(page, "Discriminator")
        page.wait_for_selector("#game .game-step:not([hidden])")
        assert page.locator("#game .tok.up").count() == 1  # the legend's
        page.locator("#game-compute").click()
        page.wait_for_selector("#game .strip .tok")
        page.wait_for_selector("#game-compute", state="hidden")
        assert game.has_shares(game.steps_of(played))
    finally:
        app.close(verbose=False)
        shutil.rmtree(played)


def test_dark_mode_is_dark(visit: Callable[..., Any], sample_url: str) -> None:
    page = visit(f"{sample_url}?__theme=dark")
    assert page.evaluate("document.body.classList.contains('dark')")
    page.wait_for_selector(".story-card")
    color = page.locator(".note").first.evaluate("e => getComputedStyle(e).backgroundColor")
    assert max(int(v) for v in color.strip("rgb()").split(",")[:3]) < 80


def test_an_open_sketchpad_uploads_nothing_by_itself(
    visit: Callable[..., Any], sample_url: str
) -> None:
    """Every update of the page made it upload its drawing again: answers waited for ten seconds."""
    page = visit(sample_url)
    page.wait_for_selector(".story-card.right")
    open_tab(page, "Compare")
    page.get_by_label("Own drawing").check()
    canvas = page.locator("#pad canvas").first
    canvas.wait_for()
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    wait_until_quiet(page, addresses)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 100, box["y"] + 150, steps=3)
    page.mouse.up()
    page.wait_for_timeout(5000)
    assert sum("/upload" in address for address in addresses) <= 6
    assert not any("/run/predict" in address for address in addresses)
    open_tab(page, "Train")  # which must show what a training does
    with page.expect_request(lambda request: "/run/predict" in request.url, timeout=10_000):
        pass
    open_tab(page, "Compare")
    wait_until_quiet(page, addresses)


def wait_until_quiet(page: Any, addresses: list[str]) -> None:
    """Wait for eight seconds without a request; updates that were on their way come first."""
    for _ in range(10):
        addresses.clear()
        page.wait_for_timeout(8000)
        if not addresses:
            return
    pytest.fail(f"the page never stops asking: {addresses}")
