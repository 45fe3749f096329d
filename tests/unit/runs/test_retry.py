"""The command that an alarm names can be given to a shell, and is accepted."""

from __future__ import annotations

import json
import shlex

import pytest

from prism_lite.__main__ import _overrides, _parser
from prism_lite.recipe import load_recipe
from prism_lite.runs.folder import RunFolder
from prism_lite.runs.retry import repeat_with, retry_command
from tests.micro import quiet_console


def run_of(folder, command: str | None) -> RunFolder:
    folder.mkdir()
    (folder / "env.json").write_text(json.dumps({"command": command}))
    return RunFolder(folder, load_recipe("tiny"), quiet_console())


@pytest.mark.parametrize(
    "command",
    [
        "prism-lite run --recipe tiny",
        "prism-lite sft --out OUT sft.steps=50 --seed 3",
        "prism-lite run --out=OUT --sft.steps 50 --seed=3 eval.stages='[sft, rlvr]'",
    ],
)
def test_the_command_has_the_new_setting_and_a_new_folder(tmp_path, command):
    run = run_of(tmp_path / "a b", command.replace("OUT", shlex.quote(str(tmp_path / "a b"))))
    (tmp_path / "a b-2").mkdir()
    text = retry_command(run, {"sft.steps": "*2", "sft.optim.learning_rate": "*0.1"})
    assert text is not None
    program, *words = shlex.split(text)
    arguments, rest = _parser().parse_known_args(words)
    config = load_recipe(arguments.recipe, _overrides(rest))
    assert (program, arguments.command) == ("prism-lite", "run")
    assert arguments.out == str(tmp_path / "a b-3")
    assert config.sft.steps == 2 * run.config.sft.steps
    assert config.sft.optim.learning_rate == pytest.approx(run.config.sft.optim.learning_rate / 10)
    assert text.count("sft.steps") == 1 and text.count("--out") == 1
    assert "--seed" not in command or arguments.seed == 3
    if "eval.stages" in command:
        assert config.eval.stages == ("sft", "rlvr")


def test_the_same_folder_where_the_setting_may_change_in_it(tmp_path):
    run = run_of(tmp_path / "r", "prism-lite align --out r align.gate=stop")
    assert retry_command(run, {"align.gate": "warn"}, resumes=True) == (
        "prism-lite align --out r align.gate=warn"
    )


def test_no_command_from_python_or_where_it_would_be_refused(tmp_path):
    python = run_of(tmp_path / "python", None)
    assert retry_command(python, {"sft.steps": "*2"}) is None
    assert repeat_with(python, {"sft.steps": "*2"}) == f" with another --out than {python.path}."
    shell = run_of(tmp_path / "shell", "prism-lite run")
    assert retry_command(shell, {"sampling.max_completion_tokens": "1000000"}) is None
    assert retry_command(shell, {}) is None
