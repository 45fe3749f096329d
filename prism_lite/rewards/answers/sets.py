r"""Solution sets in words and conditions: `\{x | x > 2\}`, "x < -1 or x > 2", "no solution"."""

from __future__ import annotations

import re

from prism_lite.rewards.answers.text import word_form

_EMPTY = frozenset(
    (r"\emptyset", r"\varnothing", "∅", "{}", "no solution", "no solutions", "empty set",
     "no real solution", "no real solutions", "无解", "空集")
)  # fmt: skip
_BUILDER = re.compile(
    r"\{\s*([a-z])\s*(?:\\in\s*(?:\\mathbb\s*\{?\s*R\s*\}?|R)\s*)?(?:\||\\mid|:)(.*)\}"
)
_SIGN = r"(<=|>=|<|>|\\le(?![a-z])|\\ge(?![a-z]))"
_ONE_SIDED = re.compile(rf"([a-z])\s*{_SIGN}\s*([^<>=]+)")
_TWO_SIDED = re.compile(rf"([^<>=]+?)\s*{_SIGN}\s*([a-z])\s*{_SIGN}\s*([^<>=]+)")
_OR = re.compile(r"\s*,?\s+or\s+|\s*\\cup\s*")


def is_empty_set(text: str) -> bool:
    """Check whether a cleaned answer says that nothing solves the problem."""
    return word_form(text) in _EMPTY or text in _EMPTY


def as_intervals(text: str) -> str:
    r"""Return a set-builder or a list of inequalities of one variable as intervals; else the text.

    `{x | x > 2}` becomes "x > 2", "x<-1 or x>2" `(-\infty,-1)\cup(2,\infty)`.
    """
    builder = _BUILDER.fullmatch(text)
    condition = builder[2].strip() if builder else text
    if builder and not re.search(rf"(?<![A-Za-z\\]){builder[1]}(?![A-Za-z])", condition):
        return text
    pieces = _OR.split(condition)
    if len(pieces) == 1:
        return condition
    intervals = [_interval(piece.strip()) for piece in pieces]
    if None in intervals or len({variable for variable, _ in filter(None, intervals)}) > 1:
        return text
    return r"\cup ".join(interval for _, interval in filter(None, intervals))


def _interval(text: str) -> tuple[str, str] | None:
    if match := _ONE_SIDED.fullmatch(text):
        variable, sign, bound = match.groups()
        is_upper, is_closed = sign in ("<", "<=", r"\le"), sign not in ("<", ">")
        if is_upper:
            return variable, rf"(-\infty ,{bound}{']' if is_closed else ')'}"
        return variable, rf"{'[' if is_closed else '('}{bound},\infty )"
    if match := _TWO_SIDED.fullmatch(text):
        lower, sign, variable, upper_sign, upper = match.groups()
        if sign in ("<", "<=", r"\le") and upper_sign in ("<", "<=", r"\le"):
            left, right = "(" if sign == "<" else "[", ")" if upper_sign == "<" else "]"
            return variable, f"{left}{lower},{upper}{right}"
    return None
