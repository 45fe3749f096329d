"""`prism-lite settings`: every setting is explained, in lines that fit a terminal."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from prism_lite.cli.settings import all_settings
from prism_lite.setting_names import known_keys
from tests.pipeline.commands import REPOSITORY, check_refused, in_process, prism_lite

SETTINGS = {setting.key: setting for setting in all_settings()}


def printed(*arguments: str) -> str:
    done = in_process("settings", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def printed_keys(*arguments: str) -> list[str]:
    return re.findall(r"^(\S+) = ", printed(*arguments), re.MULTILINE)


@pytest.mark.parametrize("key", known_keys())
def test_every_setting_has_a_text_that_says_more_than_its_name(key):
    text = SETTINGS[key].text
    assert text.endswith("."), "a text is a sentence"
    words = set(re.findall(r"[a-z]+", text.lower()))
    assert len(words - set(re.findall(r"[a-z]+", key)) - {"the", "a", "of", "in", "for", "per"}) > 1


def test_all_settings_are_printed_once_within_80_columns():
    assert sorted(printed_keys()) == sorted(known_keys())
    lines = printed().splitlines()
    # (a path of a recipe is not broken)
    assert [line for line in lines if len(line) > 80] == []


def test_a_section_a_setting_and_a_word():
    keys = printed_keys("rlvr.loss")
    assert keys and all(key.startswith("rlvr.loss.") for key in keys)
    assert "rlvr: " not in printed("rlvr.loss")
    assert printed_keys("rlvr.group_size") == ["rlvr.group_size"]
    assert printed_keys("SCHULMAN") == ["rlvr.kl_kind"]
    assert printed_keys("gspo_token") == ["align.loss.name", "rlvr.loss.name"]


def test_what_is_printed_of_a_setting():
    assert printed("rlvr.loss.clip_dual") == (
        "rlvr.loss: The loss of the policy on its own rollouts. METHOD section 11.\n\n"
        "rlvr.loss.clip_dual = 3.0   (number above 1 or null)\n"
        "    Upper bound of the ratio where the advantage is negative (dual clip); cispo\n"
        "    and sapo have none. null: off.\n"
        "    set to 3.0 by rlvr.preset=grpo\n"
        "    set to 10.0 by rlvr.preset=dapo\n"
        "    set to null by rlvr.preset=gspo\n"
    )
    assert "    set to float16 by t4-2b, t4-4b\n" in printed("model.compute_dtype")
    assert "by tiny" in printed("discriminator.trunk")
    assert "set to" not in printed("recipe"), "a name is not a setting that a recipe chooses"


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("align.group_size", "integer from 2"),
        ("rlvr.overlong_buffer", "number above 0 to 1"),
        ("align.replay_fraction", "number from 0 below 1"),
        ("data.train", "text or null"),
        ("rlvr.rewards", "mapping of names to numbers"),
        ("eval.stages", "list of base | sft | control | align | rlvr"),
        ("model.float32_vision", "true | false"),
    ],
)
def test_the_values_of_a_setting(key, values):
    assert SETTINGS[key].values == values


def test_an_unknown_word_names_near_settings():
    check_refused(in_process("settings", "align.grup_size"), "align.group_size")
    check_refused(in_process("settings", "tempratur"), "sampling.temperature")
    check_refused(in_process("settings", "qqqq"), "prism-lite settings lists all")
    check_refused(in_process("settings", "align", "align.steps=3"), "takes no override")


def test_settings_does_not_import_torch_and_run_help_names_it():
    code = (
        "import sys; from prism_lite.__main__ import main; main(['settings', 'rlvr'])\n"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "prism-lite settings" in " ".join(prism_lite("run", "--help").stdout.split())


def test_a_reader_that_closes_the_pipe_gets_no_traceback():
    command = f"{sys.executable} -m prism_lite settings | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1
