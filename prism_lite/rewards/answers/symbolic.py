# ruff: noqa: RUF001, SIM905 - the root sign is meant; word lists read better as text
r"""Expressions: are `\sqrt{8}` and `2\sqrt{2}` the same? math-verify decides in its own process.

Nothing heavy is imported here; the worker process starts at the first question and ends with this
process. Replies are kept, since the rollouts of a group repeat their answers.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

from prism_lite.rewards.answers.text import replace_all

TIME_LIMIT_S = 1.0  # of processor time: a verdict must not depend on what else the machine does
_START_LIMIT_S = 120.0  # importing sympy on a busy machine; paid once
_HUNG_S = 90.0  # wall-clock time after which the worker is taken for hung and is killed
_MAX_CHARACTERS = 300
_MAX_REPLIES = 16384

_COMMANDS = (
    "frac sqrt cdot times div pm mp pi theta alpha beta gamma delta lambda mu omega phi rho sigma "
    "tau sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp le ge lt gt ne "
    "infty cup cap in emptyset varnothing mathbb binom sum int prod lim circ deg angle degree to "
    "setminus lfloor rfloor lceil rceil lvert rvert mid vert gcd max min mathrm"
).split()
_COMMAND = re.compile(rf"\\(?:{'|'.join(_COMMANDS)})(?![a-zA-Z])")
_FUNCTIONS = "sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|ln|log|exp|pi|theta"
_REWRITES = (
    (r"\*\*", "^"),
    (r"·", "*"),
    (rf"(?<![A-Za-z\\])({_FUNCTIONS})(?![A-Za-z])", r"\\\1 "),
    (r"(?<![A-Za-z\\])inf(?:ty|inity)?(?![A-Za-z])", r"\\infty "),
    (r"√\s*(\d+(?:\.\d+)?|[a-z])", r"\\sqrt{\1}"),
    (r"√", r"\\sqrt "),
    (r"\^\s*([+-]\s*(?:\d+|[a-z]))", r"^{\1}"),
)
_ROOT_OF_BRACKETS = re.compile(r"\\sqrt\s*\(((?:[^()]|\([^()]*\))*)\)")
_ALLOWED = re.compile(r"[-+*/^_=<>()\[\]{}|!.,·×√%:\\ 0-9A-Za-z]+")
# "e", "i", "o", "u" stay out: "on" must never equal "no" as a product of variables.
_VARIABLES = re.compile(r"[abckmnpqrstwxyz]{1,3}|[A-Za-z]")
_EXPRESSION = re.compile(r".*[-+*/^=<>|!\\×\d].*|[A-Za-z]")


def to_latex(text: str) -> str | None:
    r"""Return a cleaned answer as LaTeX that a parser understands; None if not an expression.

    Words are refused, and so are runs of capitals: as products of variables the angle ABC would
    equal BCA. `sqrt(2)` becomes `\sqrt{2}`, `a**-2` becomes `a^{-2}`.
    """
    if len(text) > _MAX_CHARACTERS or not _ALLOWED.fullmatch(text):
        return None
    text = replace_all(text, _REWRITES)
    while (rewritten := _ROOT_OF_BRACKETS.sub(r"\\sqrt{\1}", text)) != text:
        text = rewritten
    bare = _COMMAND.sub(" ", text)
    if "\\" in bare or re.search(r"[A-Za-z]\d", bare.replace("_", "")):
        return None
    are_variables = all(map(_VARIABLES.fullmatch, re.findall("[A-Za-z]+", bare)))
    return text if are_variables and _EXPRESSION.fullmatch(text) else None


class UndecidedError(Exception):
    """A comparison that takes more processor time or memory than it may have, or that fails."""


class _Worker:
    """The worker process, which answers one question at a time."""

    def __init__(self) -> None:
        # By file path: the worker does not import this package. -u keeps the pipe unbuffered.
        command = [sys.executable, "-u", "-P", str(Path(__file__).with_name("symbolic_worker.py"))]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.owner = os.getpid()
        if "values" not in (self.ask("1", "1", hung_s=_START_LIMIT_S) or {}):
            raise RuntimeError(
                f"the math-verify worker did not start: run `{' '.join(command)}` to see why (it "
                "should wait for input)."
            )

    def ask(self, predicted: str, gold: str, *, hung_s: float = _HUNG_S) -> dict | None:
        """Return the reply, or None if the worker ended; a hung one is killed and undecided."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        is_hung = threading.Event()

        def kill() -> None:
            is_hung.set()
            self.process.kill()

        killer = threading.Timer(hung_s, kill)
        killer.start()
        reply = ""
        try:
            question = {"predicted": predicted, "gold": gold, "limit_s": TIME_LIMIT_S}
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
            reply = stdout.readline()
        except BrokenPipeError:
            pass
        finally:
            killer.cancel()
            if not reply:  # also when interrupted: the next question must not get this one's reply
                self.process.kill()
                self.process.wait()
        if reply:
            return json.loads(reply)
        return {"undecided": "the worker hung", "cpu_s": TIME_LIMIT_S} if is_hung.is_set() else None


_lock = threading.Lock()
_worker: _Worker | None = None
_replies: dict[tuple[str, str], dict] = {}


def start_worker() -> None:
    """Start the worker now, so that the first question does not pay for it."""
    with _lock:
        _running_worker()


def _running_worker() -> _Worker:
    global _worker
    # A forked process needs a worker of its own.
    if _worker is None or _worker.owner != os.getpid() or _worker.process.poll() is not None:
        _worker = _Worker()
    return _worker


def ask(predicted: str, gold: str) -> dict:
    """Ask math-verify whether two LaTeX expressions (from `to_latex`) are equal.

    Every reply is kept, an undecided one too: the same pair is not decided differently later.

    Returns:
        {"equal": bool}, or for two real constants {"values": [predicted, gold]}, decimal strings
        of 30 digits; with "cpu_s", the processor time that the first reply took.

    Raises:
        UndecidedError: no reply within `TIME_LIMIT_S` seconds of processor time, or none at all.
        RuntimeError: the worker does not start, or ended twice.
    """
    key = (predicted, gold)
    with _lock:
        reply = _replies.get(key)
        if reply is None:
            # A worker that was killed from outside is replaced once.
            reply = _running_worker().ask(predicted, gold) or _running_worker().ask(predicted, gold)
            if reply is None:
                raise RuntimeError(
                    f"the math-verify worker ended twice on {predicted!r} and {gold!r}: is memory "
                    "short?"
                )
            if len(_replies) >= _MAX_REPLIES:
                del _replies[next(iter(_replies))]
            _replies[key] = reply
    if "undecided" in reply:
        raise UndecidedError(reply["undecided"])
    return reply
