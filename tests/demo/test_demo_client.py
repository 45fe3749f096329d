"""The served app through gradio_client: what a page gets, and what it must not get."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from demo.runs import folder
from demo.runs.folder import SAMPLE_ID
from demo.screens.html import NO_COMPLETION
from prism_lite.types import EVALUATED_STAGES

EXAMPLE, DRAWING, UPLOAD = "Example", "Own drawing", "Own picture"
QUESTION = "What is the sum of the digits?"


def compare(client: Client, run: str, example: int, **changed: Any) -> list[Any]:
    asked: dict[str, Any] = {
        "source": EXAMPLE, "question": None, "truth": "", "seed": 0, "how": "greedy",
        "pad": None, "upload": None,
    } | changed  # fmt: skip
    call = client.submit(
        run, asked["source"], example, asked["question"], asked["truth"], asked["seed"],
        asked["how"], asked["pad"], asked["upload"], api_name="/compare",
    )  # fmt: skip
    return list(call.result())


def completions(screen: list[Any]) -> list[str]:
    """Return the completions of a screen, "" for RLVR alone if the run has none.

    They follow picture and note, with marks between.
    """
    assert len(screen) == 2 + 2 * len(EVALUATED_STAGES)
    texts = ["".join(span["token"] for span in completion) for completion in screen[2::2]]
    return ["" if text == NO_COMPLETION[0][0] else text for text in texts]


@pytest.fixture(scope="module")
def sample(sample_url: str) -> Client:
    return Client(sample_url, verbose=False)


def test_the_sample_shows_its_recorded_completions(sample: Client) -> None:
    lines = folder.read_lines(folder.SAMPLE_RUN / "demo" / "compare.jsonl")
    screen = compare(sample, SAMPLE_ID, 1)
    expected = [
        line["completion"]
        for line in lines
        if line["prompt_id"] == lines[0]["prompt_id"] and line["temperature"] == 0
    ]
    assert completions(screen) == expected and len(expected) == len(EVALUATED_STAGES)


def test_the_first_example_shows_a_caption_that_was_corrected(sample: Client) -> None:
    marks = dict(zip(EVALUATED_STAGES, compare(sample, SAMPLE_ID, 1)[3::2], strict=True))
    for stage in ("sft", "control"):
        assert re.search(r"✗ caption: read \d, is \d", marks[stage])
    assert "✓ caption: right" in marks["rlvr"]


def test_the_sample_asks_for_a_drawing(sample: Client) -> None:
    """Its model is there: what is missing is the picture."""
    with pytest.raises(AppError, match="nothing is drawn yet"):
        compare(sample, SAMPLE_ID, 1, source=DRAWING, question=QUESTION)


@pytest.mark.parametrize("run", ["..", "/etc", "../../demo/sample_run"])
def test_a_run_that_is_not_listed_is_refused(sample: Client, run: str) -> None:
    with pytest.raises(AppError):
        compare(sample, run, 1)


@pytest.mark.parametrize("example", [0, 99, "../1", None])
def test_an_example_that_is_not_listed_is_refused(sample: Client, example: Any) -> None:
    with pytest.raises(AppError):
        compare(sample, SAMPLE_ID, example)


@pytest.mark.parametrize("path", ["/etc/passwd", "demo/app.py", "pyproject.toml"])
def test_files_of_the_machine_are_not_served(sample_url: str, path: str) -> None:
    target = path if path.startswith("/") else str(Path(__file__).parents[2] / path)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{sample_url}gradio_api/file={target}", timeout=10)
    assert refusal.value.code in (403, 404)


def test_every_answer_forbids_other_hosts(sample_url: str) -> None:
    with urllib.request.urlopen(sample_url, timeout=10) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "http" not in policy


def test_an_upload_too_large_is_refused(sample: Client, tmp_path: Path) -> None:
    big = tmp_path / "big.jsonl"
    big.write_bytes(b"x" * (11 * 2**20))
    with pytest.raises(Exception, match=r"(?i)size|large|413"):
        sample.predict(handle_file(str(big)), "any stage", api_name="/check")


def test_an_upload_of_the_wrong_type_is_refused(sample: Client, tmp_path: Path) -> None:
    wrong = tmp_path / "program.exe"
    wrong.write_bytes(b"MZ")
    with pytest.raises(AppError, match=r"(?i)type|expected"):
        sample.predict(handle_file(str(wrong)), "any stage", api_name="/check")


def test_an_uploaded_file_is_checked_row_by_row(sample: Client, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"question": "What?", "answer": "3"}, {"question": "", "answer": "4"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary, first, findings = sample.predict(
        handle_file(str(file)), "any stage", api_name="/check"
    )
    assert "2 rows read" in summary and "What?" in first
    assert [row[0] for row in findings["data"]] == [2]


def test_a_corrupt_data_file_is_a_finding(sample: Client, tmp_path: Path) -> None:
    file = tmp_path / "torn.parquet"
    file.write_bytes(b"PAR1 torn")
    summary, _, findings = sample.predict(handle_file(str(file)), "any stage", api_name="/check")
    assert "not readable" in summary and len(findings["data"]) == 1


def wait_for_model(client: Client, run: str) -> None:
    """Ask until the model is loaded; only an open page would load it by itself."""
    end_s = time.monotonic() + 60
    while True:
        screen = compare(client, run, 1)
        if "Live" in screen[1]:
            return
        assert time.monotonic() < end_s, screen[1]
        time.sleep(0.5)


@pytest.fixture(scope="module")
def live(live_url: str) -> Client:
    client = Client(live_url, verbose=False)
    wait_for_model(client, "micro")
    return client


def test_the_same_seed_gives_the_same_text_and_another_another(live: Client) -> None:
    first, again, other = (
        completions(compare(live, "micro", 1, how="sampled", seed=seed)) for seed in (3, 3, 4)
    )
    assert first == again and first != other
    answered = dict(zip(EVALUATED_STAGES, map(bool, first), strict=True))
    assert answered == {stage: stage != "control" for stage in EVALUATED_STAGES}


def test_live_answers_are_those_of_the_library(live: Client, live_home: Path) -> None:
    """Greedy text of two stages equals plain sampling from the saved adapters."""
    import dataclasses

    from demo.runs import samples
    from prism_lite.digits.base_model import base_folder
    from prism_lite.models.backbone import load_backbone
    from prism_lite.recipe import parse_config
    from prism_lite.runs.checkpoint import load_final
    from prism_lite.sampling.rollouts import sample_groups

    config = parse_config(folder.read_config(live_home))
    task = samples.task_of(live_home)
    backbone = load_backbone(config.model, config.lora, base_folder(config), seed=config.seed)
    expected = []
    for stage in ("base", "rlvr"):
        if stage != "base":
            final = load_final(live_home / "stages" / stage)
            backbone.load_adapter_state(final["policy"])
        (group,) = sample_groups(
            backbone,
            task.heldout[:1],
            group_size=1,
            sampling=dataclasses.replace(config.sampling, temperature=0.0),
            seed=("any",),
        )
        expected.append(group.rollouts[0].text)
    base, *_, rlvr = completions(compare(live, "micro", 1))
    assert [base, rlvr] == expected


def test_an_own_picture_is_answered_and_marked(live: Client, tmp_path: Path) -> None:
    sheet = Image.new("RGB", (400, 200), "white")
    for left in (80, 260):
        sheet.paste("black", (left, 40, left + 20, 160))
    path = tmp_path / "two-ones.png"
    sheet.save(path)
    question = "Is the first digit greater than the last?"
    screen = compare(
        live, "micro", 1, source=UPLOAD, question=question, truth="1 1",
        upload=handle_file(str(path)),
    )  # fmt: skip
    assert sum(map(bool, completions(screen))) == 4
    assert "Digits: 1 1. Gold answer: no." in screen[1]


def test_a_question_that_the_model_has_not_learned_is_refused(live: Client, tmp_path: Path) -> None:
    path = tmp_path / "white.png"
    Image.new("RGB", (64, 64), "white").save(path)
    with pytest.raises(AppError, match="listed questions"):
        compare(live, "micro", 1, source=UPLOAD, question=QUESTION, upload=handle_file(str(path)))


def test_a_corrupt_picture_is_refused_in_words(live: Client, tmp_path: Path) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"\x89PNG\r\n\x1a\n torn")
    with pytest.raises(AppError, match=r"cannot read picture torn\.png: it is damaged"):
        compare(live, "micro", 1, source=UPLOAD, question=QUESTION, upload=handle_file(str(torn)))


def test_two_users_are_answered_one_after_the_other(live: Client, live_url: str) -> None:
    other = Client(live_url, verbose=False)
    arguments = ("micro", EXAMPLE, 2, None, "", 0, "greedy", None, None)
    calls = [client.submit(*arguments, api_name="/compare") for client in (live, other)]
    first, second = (completions(list(call.result())) for call in calls)
    assert first == second and any(first)


def test_a_shared_app_asks_for_a_password_and_has_no_training(tmp_path: Path) -> None:
    from demo.app import build_app
    from demo.runs.folder import open_home
    from demo.runs.trainer import Trainer
    from demo.site import Site

    home = open_home(None, root=tmp_path, is_shared=True)
    page = build_app(Site(home, Trainer(home.root)))
    names = {fn.api_name for fn in page.fns.values()}
    assert "compare" in names and not names & {"start", "check"}
    labels = {getattr(block, "label", "") for block in page.blocks.values()}
    assert "Compare" in labels and not labels & {"Train", "Memory"}


def test_a_failed_public_link_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradio as gr

    from demo.app import launch
    from demo.runs.folder import open_home

    def launched(page: Any, **_: Any) -> tuple[Any, str, None]:
        page.share_url = None  # what Gradio leaves, with a line in the terminal
        return page, "http://127.0.0.1:0/", None

    monkeypatch.setattr(gr.Blocks, "launch", launched)
    with pytest.raises(ValueError, match="cannot create a public link"):
        launch(open_home(None, root=tmp_path, is_shared=True), is_open=False)
