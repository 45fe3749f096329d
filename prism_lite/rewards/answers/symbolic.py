# ruff: noqa: RUF001, SIM905 - the times sign is meant; word lists read better as text
r"""Expressions: are `\sqrt{8}` and `2\sqrt{2}` the same? Asked of math-verify in a killable
process.

Nothing heavy is imported here; the worker process starts at the first question, serves the whole
run and ends with it. Answers are remembered, since the rollouts of a group repeat them.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from prism_lite.rewards.answers.numbers import RELATIVE_TOLERANCE, Number, numbers_agree
from prism_lite.rewards.answers.text import closing_bracket

TIME_LIMIT_S = 0.8
MAX_EXPRESSION_CHARACTERS = 300
_START_LIMIT_S = (
    120.0  # importing sympy on a busy machine; paid once, not counted as a question's time
)
_GRACE_S = 0.1
_MAX_LATE = 3
_ENDED = "worker ended"
_MAX_REMEMBERED = 16384

_COMMANDS = (
    "frac sqrt cdot times div pm mp pi theta alpha beta gamma delta lambda mu omega phi rho sigma "
    "tau sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp le ge lt gt ne "
    "infty cup cap in emptyset varnothing mathbb binom sum int prod lim circ deg angle degree to "
    "setminus lfloor rfloor lceil rceil lvert rvert mid vert gcd max min mathrm"
).split()
_COMMAND = re.compile(rf"\\(?:{'|'.join(_COMMANDS)})(?![a-zA-Z])")
_FUNCTIONS = (
    "sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|ln|log|exp|pi|theta|infinity|infty|inf"
)
_FUNCTION = re.compile(rf"(?<![A-Za-z\\])({_FUNCTIONS})(?![A-Za-z])")
_LETTERS = re.compile(r"[A-Za-z]+")
# "e", "i", "o", "u" stay out: "on" must never equal "no" as a product of variables.
_VARIABLES = frozenset("abckmnpqrstwxyz")
_ALLOWED = re.compile(r"[-+*/^_=<>()\[\]{}|!.,·×√%:\\ 0-9A-Za-z]+")
_OPERATOR = re.compile(r"[-+*/^=<>|!·×√\\]|\d")


def to_latex(text: str) -> str | None:
    r"""A cleaned answer as LaTeX that a parser understands, or None where it is not an expression.

    Words are refused, and so are runs of capitals: as products of variables the angle ABC would
        equal
    BCA. `sqrt(2)` becomes `\sqrt{2}`, `x^10` becomes `x^{10}`, `a**2` becomes `a^{2}`.
    """
    if not text or len(text) > MAX_EXPRESSION_CHARACTERS or not _ALLOWED.fullmatch(text):
        return None
    bare = _FUNCTION.sub(" ", _COMMAND.sub(" ", text))
    if "\\" in bare or re.search(r"[A-Za-z]\d", bare.replace("_", "")):
        return None
    for run in _LETTERS.findall(bare):
        if len(run) > 1 and (len(run) > 3 or not set(run) <= _VARIABLES):
            return None
    if not _OPERATOR.search(text) and not re.fullmatch(r"[A-Za-z]|pi|theta", text):
        return None
    text = text.replace("**", "^").replace("·", r"\cdot ").replace("×", r"\times ")
    text = re.sub(r"(?<=[\dA-Za-z)}])\s*\*\s*(?=[\\\dA-Za-z({])", r" \\cdot ", text)
    text = _FUNCTION.sub(lambda name: rf"\{_LATEX_NAMES.get(name.group(1), name.group(1))} ", text)
    text = re.sub(r"√\s*(?=[({])", r"\\sqrt ", text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?|[a-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"\^\s*([+-]?\s*\d{2,}|[+-]\s*[\da-z])", r"^{\1}", text)
    text = re.sub(r"<\s*=", r"\\le ", text)
    text = re.sub(r">\s*=", r"\\ge ", text)
    return _braced_roots(text)


_LATEX_NAMES = {"infinity": "infty", "inf": "infty"}


def _braced_roots(text: str) -> str:
    r"""`\sqrt (x+1)` as `\sqrt{x+1}`."""
    for _ in range(20):
        match = re.search(r"\\sqrt\s*\(", text)
        if not match:
            break
        end = closing_bracket(text, match.end() - 1)
        if end < 0:
            break
        text = text[: match.start()] + r"\sqrt{" + text[match.end() : end] + "}" + text[end + 1 :]
    return text


@dataclass(frozen=True)
class SymbolicResult:
    """`matches` and why; `timed_out` where the question was killed at its limit."""

    matches: bool
    why: str
    timed_out: bool = False


def expressions_agree(
    predicted: str,
    gold: str,
    *,
    gold_number: Number | None = None,
    relative_tolerance: float = RELATIVE_TOLERANCE,
    time_limit_s: float = TIME_LIMIT_S,
) -> SymbolicResult:
    """Compare two LaTeX expressions (from `to_latex`).

    Args:
        predicted: the prediction.
        gold: the gold answer.
        gold_number: the gold answer as a written number, if it is one: a symbolic prediction counts
            when it agrees with it to its last written digit (see `numbers_agree`).
        relative_tolerance: for two constants.
        time_limit_s: wall-clock seconds for this question once the worker runs.
    """
    reply = _ask(predicted, gold, time_limit_s)
    failure = reply.get("failure")
    if failure == "timeout":
        return SymbolicResult(False, f"no verdict within {time_limit_s:g} s", timed_out=True)
    if failure:
        return SymbolicResult(False, f"expressions: {failure}")
    if "values" in reply:
        left, right = (Number(Fraction(value)) for value in reply["values"])
        right = gold_number or right
        if abs(left.value - right.value) <= Fraction(1, 10**15):  # 30 digits were computed
            return SymbolicResult(True, "equal expressions")
        agree = numbers_agree(left, right, relative_tolerance=relative_tolerance)
        return SymbolicResult(agree, "equal within tolerance" if agree else "values differ")
    return SymbolicResult(
        reply["equal"], "equal expressions" if reply["equal"] else "expressions differ"
    )


class _Worker:
    """One running worker process and the thread that reads its replies."""

    def __init__(self) -> None:
        # By file path: importing the package in the worker is not needed. -u keeps the pipe
        # unbuffered.
        script = Path(__file__).with_name("symbolic_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.owner = os.getpid()
        self.num_asked = 0
        self.num_late = 0  # questions in a row without a reply in time
        self.replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        ready = self._next_reply(_START_LIMIT_S)
        if ready is None or not ready.get("ready"):
            self.stop()
            raise RuntimeError(
                "the math-verify worker did not start: run "
                f"`{sys.executable} {script}` to see why (it should print a ready line)."
            )

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.replies.put(line)
        self.replies.put("")

    def _next_reply(self, limit_s: float) -> dict | None:
        try:
            line = self.replies.get(timeout=limit_s)
        except queue.Empty:
            return None
        return json.loads(line) if line else {"failure": _ENDED}

    def ask(self, predicted: str, gold: str, limit_s: float) -> dict | None:
        """The reply, or None when none came in time; a late one is passed over by its number."""
        assert self.process.stdin is not None
        self.num_asked += 1
        request = {"id": self.num_asked, "predicted": predicted, "gold": gold, "limit_s": limit_s}
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"failure": _ENDED}
        deadline = time.monotonic() + limit_s + _GRACE_S
        while True:
            reply = self._next_reply(max(0.0, deadline - time.monotonic()))
            if reply is None:
                self.num_late += 1
                return None
            if reply.get("failure") == _ENDED or reply["id"] == self.num_asked:
                self.num_late = 0
                return reply

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


_lock = threading.Lock()
_worker: _Worker | None = None
_remembered: OrderedDict[tuple[str, str], dict] = OrderedDict()


def start_worker() -> None:
    """Start the worker now, so that the first question does not pay for it."""
    with _lock:
        _running_worker()


def _running_worker() -> _Worker:
    global _worker
    if _worker is None or _worker.owner != os.getpid() or _worker.process.poll() is not None:
        _worker = _Worker()
    return _worker


def _ask(predicted: str, gold: str, limit_s: float) -> dict:
    key = (predicted, gold)
    with _lock:
        if key in _remembered:
            _remembered.move_to_end(key)
            return _remembered[key]
        reply = _running_worker().ask(predicted, gold, limit_s)
        if reply and reply.get("failure") == _ENDED:  # killed from outside: one new start
            _drop_worker()
            reply = _running_worker().ask(predicted, gold, limit_s)
        if reply and reply.get("failure") == _ENDED:
            _drop_worker()
            raise RuntimeError(
                f"the math-verify worker ended twice on {predicted!r} and {gold!r}: is memory "
                "short?"
            )
        # A worker that forks ends each question itself: being late once is the machine's load.
        if _worker and _worker.num_late >= (_MAX_LATE if hasattr(os, "fork") else 1):
            _drop_worker()
        if reply is None:
            return {"failure": "timeout"}
        if reply.get("failure") not in ("timeout", "died"):  # these depend on the machine's load
            _remembered[key] = reply
            if len(_remembered) > _MAX_REMEMBERED:
                _remembered.popitem(last=False)
        return reply


def _drop_worker() -> None:
    global _worker
    if _worker is not None:
        _worker.stop()
    _worker = None


@atexit.register
def _stop_at_exit() -> None:
    if _worker is not None and _worker.owner == os.getpid():
        _worker.stop()
