"""Users' text is printed as it is, and a log file gets plain lines."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from rich.console import Console

import prism_lite
from prism_lite import console as console_module
from prism_lite.console import PlainProgress, say, tracked
from prism_lite.runs.report import rows_table


def plain() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=80), text


@pytest.mark.parametrize(
    "text", ["runs/[a]/x", "eval.stages='[sft, rlvr]'", "/[/old]", "[bold]", ":smile: a:b:c"]
)
def test_brackets_and_colons_are_kept(text):
    console, printed = plain()
    say(console, text, "bold red")
    console.print(rows_table([["title [a]", "x"], [text, "1"]], text))
    list(tracked([1], text, console=console))
    list(tracked([1], text, console=Console(file=io.StringIO(), force_terminal=True)))
    assert printed.getvalue().count(text) == 3


def test_no_text_reaches_a_console_as_markup():
    """Whatever is printed is a Text, a table, or a literal; f-strings go through `say`."""
    wrong = []
    for file in Path(prism_lite.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value).lower()
            if node.func.attr == "print" and "console" in owner:
                texts = [a for a in node.args if isinstance(a, (ast.JoinedStr, ast.BinOp))]
                texts += [a for a in node.args if isinstance(a, ast.Constant)]
                is_plain = any(k.arg == "markup" for k in node.keywords)
                wrong += [f"{file.name}:{node.lineno}" for _ in texts if not is_plain]
    assert not wrong


def test_a_log_file_gets_a_line_every_tenth_and_every_half_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    console, printed = plain()
    progress = PlainProgress(console, "sft", 0, 100)
    for done in range(1, 21):
        now[0] += 1.0
        progress.after_step(done, "loss 0.50")
    lines = printed.getvalue().splitlines()
    assert lines == [
        "sft: 100 of 100 steps to do",
        "sft: step 10 of 100, loss 0.50, 2 min left",
        "sft: step 20 of 100, loss 0.50, 80 s left",
    ]
    now[0] += 31.0
    progress.after_step(21, "")
    assert printed.getvalue().splitlines()[-1].startswith("sft: step 21 of 100, ")
    assert "\x1b" not in printed.getvalue() and "\r" not in printed.getvalue()


def test_a_long_loop_says_where_it_is(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    console, printed = plain()
    for _ in tracked(range(4), "reading [a]", console=console):
        now[0] += 20.0
    assert printed.getvalue() == "reading [a]: 2 of 4\n"
