"""The process that runs math-verify: one request per line, each in a child that can be killed.

Started by `prism_lite.rewards.symbolic`, never imported by it. It imports sympy once, warms the
parser's tables, then forks for every request: a request that loops for ever or eats the memory dies
alone within its time limit, and the next one starts from the same warm state within milliseconds.
Without `os.fork` (Windows) it computes in place and its parent kills and restarts the whole
process.

Protocol, JSON lines: {"ready": true} at the start; request {"id", "predicted",
"gold", "limit_s"}; reply the id with {"equal": bool} or {"values": [str, str]} (30 digits each) or
{"failure": str}.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy
from math_verify import verify

_MAX_CHILD_BYTES = 4 << 30  # address space of one request, sympy itself included
_NORMALIZATION = NormalizationConfig(
    basic_latex=True,
    units=False,
    malformed_operators=True,
    nits=True,
    boxed="none",
    equations=False,
)
_WARM_UP = (
    (r"\frac{1}{2}+x^{2}", r"\sqrt{2}x-1"),
    (r"y=2x+1", r"x>3"),
    (r"(1,\infty)", r"\sin(\pi/6)"),
)


def compare(predicted: str, gold: str) -> dict[str, Any]:
    """Parse both LaTeX expressions and compare them."""
    predicted_expr, gold_expr = _parse(predicted), _parse(gold)
    if predicted_expr is None or gold_expr is None:
        return {"failure": f"cannot parse {'prediction' if predicted_expr is None else 'gold'}"}
    values = [_value(predicted_expr), _value(gold_expr)]
    if values[0] is not None and values[1] is not None:
        return {"values": values}
    if isinstance(predicted_expr, sympy.Equality) and isinstance(gold_expr, sympy.Equality):
        return {"equal": _same_equation(predicted_expr, gold_expr)}
    # float_rounding 6 is math-verify's own; plain numbers never come here, so it only acts on
    # coefficients. No time limit inside: signals cannot stop big integers, the parent's kill can.
    equal = verify(gold_expr, predicted_expr, timeout_seconds=None, allow_set_relation_comp=True)
    return {"equal": bool(equal)}


def _parse(text: str) -> Any:
    try:
        return latex2sympy(text, normalization_config=_NORMALIZATION)
    # latex2sympy raises bare Exception for text it does not understand, so nothing narrower catches
    # it; "not an expression" is the answer here, and the caller reports it.
    except Exception:  # noqa: BLE001
        return None


def _value(expr: Any) -> str | None:
    """A real constant as a decimal string of 30 digits, else None."""
    if not isinstance(expr, sympy.Expr) or expr.free_symbols:
        return None
    value = sympy.N(expr.doit(), 30, chop=True)
    if not isinstance(value, sympy.Float | sympy.Integer) or not value.is_finite:
        return None
    return str(value)


def _same_equation(left: Any, right: Any) -> bool:
    """Whether two equations differ by a constant factor only: y = 2x + 1 is 2x - y + 1 = 0."""
    first, second = sympy.expand(left.lhs - left.rhs), sympy.expand(right.lhs - right.rhs)
    if first.free_symbols != second.free_symbols or second == 0 or first == 0:
        return bool(first == second)
    ratio = sympy.simplify(first / second)
    return bool(ratio.is_number and ratio != 0)


def _reply(request: dict[str, Any]) -> str:
    return json.dumps({"id": request["id"], **compare(request["predicted"], request["gold"])})


def _compare_in_child(request: dict[str, Any]) -> str:
    """Fork, compare, and give the child's reply line; kills the child at the limit."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read_end)
            _limit_child(request["limit_s"])
            reply = _reply(request)
            os.write(write_end, reply.encode())
            status = 0
        finally:
            os._exit(status)  # never runs the parent's clean-up, nor prints a traceback
    os.close(write_end)
    deadline = time.monotonic() + request["limit_s"]
    readable, _, _ = select.select([read_end], [], [], max(0.0, deadline - time.monotonic()))
    reply = os.read(read_end, 65536).decode() if readable else ""
    os.close(read_end)
    if not readable:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if reply:
        return reply
    return json.dumps({"id": request["id"], "failure": "died" if readable else "timeout"})


def _limit_child(limit_s: float) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MAX_CHILD_BYTES, _MAX_CHILD_BYTES))
    seconds = int(limit_s) + 2  # if this process dies first, the kernel ends the child
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Serve requests from stdin until it closes."""
    logging.disable(logging.WARNING)  # math-verify warns once that its own time limit is off
    for predicted, gold in _WARM_UP:
        compare(predicted, gold)
    replies = sys.stdout
    sys.stdout = sys.stderr  # nothing but replies may reach the pipe
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        reply = _compare_in_child(request) if hasattr(os, "fork") else _reply(request)
        print(reply, file=replies, flush=True)


if __name__ == "__main__":
    main()
