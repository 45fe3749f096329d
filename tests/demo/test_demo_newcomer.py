"""What a user meets on the first day: states, answers and refusals in words, without a browser."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from demo.models.loader import Models
from demo.runs import data_files, folder
from demo.runs.holder import is_held
from demo.runs.recipes import recipe_titles
from demo.runs.trainer import Trainer
from demo.screens import answers, curves, groups, html
from demo.screens.errors import reasons
from demo.site import Site
from demo.tabs.data import check_summary
from demo.tabs.following import Started, follow
from demo.tabs.memory import plan_summary
from demo.tabs.rewards import group_cards, why_html
from prism_lite.recipe import load_recipe, recipe_names
from prism_lite.runs.lock import locked
from prism_lite.types import EVALUATED_STAGES


def new_run(path: Path, config: str = "sft: {steps: 5}\n") -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config)
    return path


def write_lock(path: Path, *, pid: int, host: str, since: datetime) -> None:
    holder = {"pid": pid, "host": host, "since": since.astimezone().isoformat(timespec="seconds")}
    (path / ".lock").write_text(json.dumps(holder))


class TestWhoTrainsARun:
    def test_the_lock_of_a_living_process_holds_the_run(self, tmp_path: Path) -> None:
        with locked(tmp_path):
            assert is_held(tmp_path)

    def test_a_run_is_free_as_soon_as_its_process_has_ended(self, tmp_path: Path) -> None:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        write_lock(tmp_path, pid=ended.pid, host=socket.gethostname(), since=datetime.now())
        (tmp_path / "metrics.jsonl").write_text("{}\n")  # just now
        assert not is_held(tmp_path)

    def test_a_process_id_that_is_used_again_does_not_hold_it(self, tmp_path: Path) -> None:
        before = datetime.now() - timedelta(days=1)  # this process is younger
        write_lock(tmp_path, pid=os.getpid(), host=socket.gethostname(), since=before)
        assert not is_held(tmp_path)

    def test_of_another_machine_only_its_writing_is_seen(self, tmp_path: Path) -> None:
        write_lock(tmp_path, pid=1, host="another-machine", since=datetime.now())
        assert not is_held(tmp_path)
        metrics = tmp_path / "metrics.jsonl"
        metrics.write_text("{}\n")
        assert is_held(tmp_path)
        os.utime(metrics, (1, 1))
        assert not is_held(tmp_path)

    @pytest.mark.parametrize(
        "content", ["", "{", "[]", '{"pid": "x", "host": "h", "since": "now"}']
    )
    def test_a_lock_that_says_nothing_holds_nothing(self, tmp_path: Path, content: str) -> None:
        assert not is_held(tmp_path)
        (tmp_path / ".lock").write_text(content)
        assert not is_held(tmp_path)


class TestTheBadge:
    def test_an_own_run_without_weights_is_not_called_a_recording(self, tmp_path: Path) -> None:
        state, text = Models().status(new_run(tmp_path / "a"))
        assert (state, text) == ("waiting", "no stage of this run is trained yet")
        assert "no model loaded" in html.badge(state, text)

    def test_an_own_run_whose_model_is_not_loaded_is_not_called_one(self, tmp_path: Path) -> None:
        run = new_run(tmp_path / "a")
        (run / "stages" / "sft" / "final").mkdir(parents=True)
        assert Models().status(run) == ("waiting", "it is loaded with the first question")


def test_an_evaluation_after_the_last_weights_is_news(tmp_path: Path) -> None:
    run = new_run(tmp_path / "a")
    (run / "stages" / "rlvr" / "final").mkdir(parents=True)
    before = folder.finished_stages(run)
    (run / "results.json").write_text(json.dumps({"stages": {"rlvr": {"accuracy": 0.5}}}))
    assert folder.finished_stages(run) != before


def test_without_a_group_no_row_is_chosen() -> None:
    """A row that stayed chosen was refused by Gradio with an error on the page."""
    *_, row, _, _ = groups.empty_screen()
    assert row.constructor_args == {"choices": [], "value": None}  # the update that the page gets


class TestAfterStart:
    PROGRAM = "print('prism-lite: no GPU here. Use another recipe.')"

    @pytest.fixture
    def site(self, tmp_path: Path) -> Site:
        trainer = Trainer(tmp_path / "runs", program=(sys.executable, "-c", self.PROGRAM))
        return Site(folder.open_home(None, root=trainer.root), trainer)

    def started(self, site: Site, run_id: str) -> Started:
        site.trainer.start(run_id, [])
        while site.trainer.current() is not None:
            pass
        return Started(run_id, "prism-lite run --out runs/a")

    def test_a_run_that_ends_before_its_folder_says_why(self, site: Site) -> None:
        choice, still, reply, _ = follow(site, self.started(site, "a"), folder.SAMPLE_ID)
        assert choice.value == folder.SAMPLE_ID and still is None
        assert "a did not start: no GPU here. Use another recipe." in reply
        assert "prism-lite run --out runs/a" in reply

    def test_a_run_whose_folder_was_removed_again_is_left(self, site: Site) -> None:
        choice, still, reply, _ = follow(site, self.started(site, "a"), "a")
        assert choice.value == folder.SAMPLE_ID and still is None and "did not start" in reply

    def test_the_page_goes_to_the_new_run_once(self, site: Site) -> None:
        run = Started("a", "")
        new_run(site.trainer.root / "a")
        (site.trainer.root / "a" / "metrics.jsonl").write_text("{}\n")
        choice, still, reply, name = follow(site, run, folder.SAMPLE_ID)
        assert name == "run-1"
        assert choice.value == "a" and still is None and "This page shows a now" in reply

    def test_nothing_started_changes_nothing(self, site: Site) -> None:
        assert not any(map(_is_news, follow(site, None, folder.SAMPLE_ID)))


def _is_news(value: Any) -> bool:
    return not (isinstance(value, dict) and value.get("__type__") == "update")


def test_the_log_s_tail_begins_with_a_whole_line(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    (tmp_path / ".logs").mkdir()
    lines = [f"line {i} of the output" for i in range(2000)]
    (tmp_path / ".logs" / "a.log").write_text("\n".join(lines))
    tail = trainer.log_tail("a").splitlines()
    assert 100 < len(tail) < 2000
    assert tail == lines[-len(tail) :]


class TestOwnData:
    @pytest.mark.parametrize(
        "text",
        [
            "{prompt: q, images: pic}",
            "prompt: q, images: pic",
            " data.columns='{prompt: q, images: pic}' ",
            'data.columns="{prompt: q, images: pic}"',
        ],
    )
    def test_columns_are_read_as_the_check_or_a_user_writes_them(self, text: str) -> None:
        assert data_files.column_map(text) == {"prompt": "q", "images": "pic"}

    @pytest.mark.parametrize(
        "text", ["{prompt q}", "prompt", "[a, b]", "prompt: [a]", "{a: {b: c}}"]
    )
    def test_other_columns_are_refused_in_words(self, text: str) -> None:
        with pytest.raises(ValueError, match="expected our name: your name of the column"):
            data_files.column_map(text)

    def test_the_advice_is_for_the_page(self, tmp_path: Path) -> None:
        file = tmp_path / "names.jsonl"
        file.write_text(json.dumps({"q": "What?", "gold": "2", "pic": "1.png"}) + "\n")
        shown, _ = check_summary(file, "")
        proposed = re.search(r"such as (\{[^}]+\}) under 2 Columns", shown)
        assert proposed and "data.columns" not in shown
        shown, _ = check_summary(file, proposed.group(1))
        assert "names.jsonl, row 1" in shown or "names.jsonl, line 1" in shown
        assert "picture 1.png does not exist" in shown and "put it there" in shown
        assert "image_root" not in shown

    def test_defects_that_are_not_shown_are_counted(self, tmp_path: Path) -> None:
        file = tmp_path / "bad.jsonl"
        row = json.dumps({"prompt": "What?", "answer": "2"})
        file.write_text(row + "\n" + "not a row\n" * 8)
        shown, _ = check_summary(file, "")
        assert shown.count("broken JSON") == 5 and "3 more: prism-lite data check" in shown

    def test_an_empty_file_has_no_row(self, tmp_path: Path) -> None:
        file = tmp_path / "empty.jsonl"
        file.write_text("")
        shown, _ = check_summary(file, "")
        assert "empty.jsonl is empty" in shown and "row -" not in shown


def test_a_recipe_is_listed_with_its_model_and_card() -> None:
    titles = {name: title for title, name in recipe_titles()}
    assert list(titles) == recipe_names()
    for name, title in titles.items():
        gib = load_recipe(name).model.min_gpu_gib
        assert (f"{gib:g} GiB" if gib else "no GPU needed") in title
    assert "Qwen3-VL-4B" in titles["rtx4090-4b"]


def test_a_plan_names_what_is_reserved_the_hours_and_what_to_lower() -> None:
    plan = {
        "card_gib": 10, "hours": 7.5, "evaluation_hours": 0.5,
        "stages": {
            "sft": {"peak_gib": 6.0, "reserved_gib": [6.0, 6.4], "hours": 3.0},
            "rlvr": {"peak_gib": 8.9, "reserved_gib": [8.9, 9.3], "hours": 4.0},
        },
    }  # fmt: skip
    shown = plan_summary(plan, "t4-2b")
    assert "Does not fit" in shown and "9.3 of 10 GiB" in shown  # the tensors alone would fit
    assert "7.5 hours" in shown
    assert "<td>RLVR</td><td>9.3</td><td>4.0</td>" in shown
    assert "prism-lite plan --recipe t4-2b --card 10" in shown
    assert "Recipes for such a card: none." in shown
    on_a_t4 = plan_summary(
        plan | {"card_gib": 15, "stages": {"sft": {"peak_gib": 20, "hours": 1}}}, "a100-8b"
    )
    names = on_a_t4.partition("Recipes for such a card: ")[2]
    assert names.startswith("t4-") and "t4-4b (Qwen3-VL-4B, 15 GiB)" in names and "rtx3060" in names
    assert "rtx4090" not in names
    shown = plan_summary(plan | {"card_gib": 12}, "t4-2b")
    assert "Fits" in shown and "Lower" not in shown


def recorded(*, accuracy: float) -> tuple[dict[str, Any], Any]:
    """Return a rollout of the recording with this accuracy, and its prompt."""
    from demo.runs import samples

    for step in folder.rollout_steps(folder.SAMPLE_RUN, "rlvr"):
        for record in folder.read_rollouts(folder.SAMPLE_RUN, "rlvr", step):
            if record["rewards"].get("accuracy") == accuracy:
                sample = samples.sample_by_id(folder.SAMPLE_RUN, record["prompt_id"])
                if accuracy or reasons(sample, record["completion"], record["finish_reason"]):
                    return dict(record), sample
    raise AssertionError("no such rollout is recorded")


def test_a_wrong_rollout_shows_its_rewards_and_what_is_wrong() -> None:
    record, sample = recorded(accuracy=0.0)
    shown = why_html("1.8", record, sample)
    digits = " ".join(map(str, sample.facts.digits))
    assert f"It shows <b>{digits}</b>" in shown and "<img" in shown
    assert "Rollout 1.8: accuracy 0.00" in shown
    (why,) = re.findall(r"Why: <b>(.+?)</b>", shown)
    assert re.search(r"read \d, is \d|expected “|malformed: |digits, are", why)


def test_a_question_is_shown_without_the_mark_of_its_picture() -> None:
    record, sample = recorded(accuracy=0.0)
    record["question"] = "<image>How many?"
    shown = why_html("1.8", record, sample) + group_cards(folder.SAMPLE_RUN, ["1.8"], [record])
    assert shown.count("<b>How many?</b>") == 2 and "image&gt;" not in shown


def test_a_right_rollout_has_nothing_wrong_or_says_what() -> None:
    record, sample = recorded(accuracy=1.0)
    errors = reasons(sample, record["completion"], record["finish_reason"])
    shown = why_html("1.1", record, sample)
    assert ("nothing wrong that can be checked" in shown) == (not errors)
    record["completion"] = "<b>no parts</b>"
    assert "malformed" in why_html("1.1", record, sample)
    assert "<b>no parts" not in why_html("<i>", record, sample)


def test_the_recorded_answers_name_the_wrong_step() -> None:
    samples = {sample.id: sample for sample in answers.examples(folder.SAMPLE_RUN)}
    lines = folder.read_lines(folder.SAMPLE_RUN / "demo" / "compare.jsonl")
    wrong = [line for line in lines if line["temperature"] == 0 and line["marks"]["think"] is False]
    sample = samples[wrong[0]["prompt_id"]]
    screen = answers.recorded_screen(folder.SAMPLE_RUN, sample, answers.GREEDY, 0)
    shown = screen[3::2][EVALUATED_STAGES.index(wrong[0]["stage"])]
    assert re.search(r"✗ think: (step “[^”]+”, )?expected “[^”]+”", shown)


def test_a_legend_names_every_curve_that_a_panel_draws() -> None:
    metrics = folder.read_metrics(folder.SAMPLE_RUN)
    for panel in curves.PANELS:
        frame, colors = curves.panel_plot(panel, metrics)
        legend = curves.panel_colors(panel)
        for curve in set(frame["curve"]) if frame is not None else ():
            assert legend[curve] == colors[curve]
            assert f"{curve}</span>" in html.narrow_legend(legend)
