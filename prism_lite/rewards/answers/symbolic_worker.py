"""The process that runs math-verify: one question per line, each in a child that can be killed.

Started by `symbolic`, never imported by it. It imports sympy once, warms the parser's tables, then
forks for every question: one that loops for ever or exhausts the memory dies alone at its limit of
processor time, and the next one starts from the same warm state within milliseconds.

Protocol, JSON lines: question {"predicted", "gold", "limit_s"}; reply {"equal": bool},
{"values": [str, str]} (30 digits each) or {"undecided": reason}, each with "cpu_s".
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import time
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy
from math_verify import verify

_MAX_CHILD_BYTES = 4 << 30  # address space of one question, sympy itself included
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
)
_WARM_UP = (  # differing pairs: they reach the solvers, which are imported when first used
    ("y=2x+1", "x=5"),
    ("x>3", r"(1,\infty)"),
    (r"x\in(0,1)", "-1<x<2"),
    (r"(x+1)^{2}-\sin(x)", r"\frac{x}{2}-\sqrt{2}"),
    (r"\log_{2}(8)", "2+2i"),
)


def compare(predicted: str, gold: str) -> dict[str, Any]:
    """Parse both LaTeX expressions and compare them."""
    try:
        predicted_expr, gold_expr = (
            latex2sympy(latex, normalization_config=_NORMALIZATION) for latex in (predicted, gold)
        )
    except MemoryError:
        raise  # undecided, unlike what cannot be read
    # latex2sympy raises bare Exception for text it does not understand, so nothing narrower catches
    # it; an expression that cannot be read equals no other.
    except Exception:  # noqa: BLE001
        return {"equal": False}
    if predicted_expr is None or gold_expr is None:
        return {"equal": False}
    values = [_value(predicted_expr), _value(gold_expr)]
    if None not in values:
        return {"values": values}
    # float_rounding 6 is math-verify's own; plain numbers never come here, so it only acts on
    # coefficients. No time limit inside: it could not stop big integers, the kernel's signal can.
    equal = verify(gold_expr, predicted_expr, timeout_seconds=None, allow_set_relation_comp=True)
    return {"equal": bool(equal)}


def _value(expr: Any) -> str | None:
    """Return a real constant as a decimal string of 30 digits, else None."""
    if not isinstance(expr, sympy.Expr) or expr.free_symbols:
        return None
    value = sympy.N(expr.doit(), 30)
    real, imaginary = value.as_real_imag()
    if imaginary != 0 and abs(imaginary) < abs(real) * sympy.Float("1e-20"):
        value = real  # rounding of a real root
    is_real = isinstance(value, sympy.Float | sympy.Integer) and value.is_finite
    if not is_real:
        return None
    # Of terms that cancel no digit is left: the constant is 0.
    return "0" if isinstance(value, sympy.Float) and value._prec < 10 else str(value)


def _answer(question: dict[str, Any]) -> None:
    """Fork a child that compares and replies; reply for it if it ended without."""
    child = os.fork()
    if child == 0:
        exit_code = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (_MAX_CHILD_BYTES, _MAX_CHILD_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            # The kernel ends the child at its limit; the timer counts its processor time alone.
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, question["limit_s"])
            reply = compare(question["predicted"], question["gold"])
            signal.setitimer(signal.ITIMER_PROF, 0)  # a reply is written in full or not at all
            os.write(1, f"{json.dumps(reply | {'cpu_s': time.process_time()})}\n".encode())
            exit_code = 0
        finally:
            os._exit(exit_code)  # never runs the parent's clean-up, nor prints a traceback
    _, status, usage = os.wait4(child, 0)
    if status:
        timed_out = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
        reason = "no verdict within the time limit" if timed_out else "the comparison failed"
        reply = {"undecided": reason, "cpu_s": usage.ru_utime + usage.ru_stime}
        os.write(1, f"{json.dumps(reply)}\n".encode())


def main() -> None:
    """Answer questions from stdin until it closes."""
    sys.stdout = sys.stderr  # nothing but replies may reach the pipe
    logging.disable(logging.WARNING)  # math-verify warns once that its own time limit is off
    for predicted, gold in _WARM_UP:
        compare(predicted, gold)
    for line in sys.stdin:
        _answer(json.loads(line))


if __name__ == "__main__":
    main()
