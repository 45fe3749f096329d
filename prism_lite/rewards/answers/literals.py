# ruff: noqa: RUF001, SIM905 - the multiplication sign is meant; word lists read better as text
r"""Answers that are read as written and not computed: clock times, scores, dates, ranges, sizes.

A gold answer of "10-3", "2020-01-02", "1920x1080" or "555-1234" takes no number, 4:20 is not 8:40,
and only a gold answer that is a ratio ("4:3") takes a quotient (4/3). The gold answer decides how
both are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from prism_lite.rewards.answers.numbers import match_number
from prism_lite.rewards.answers.quantities import parse_unit
from prism_lite.rewards.answers.symbolic import to_latex
from prism_lite.rewards.answers.text import replace_all, word_form


def compare_literal(
    predicted: str, gold: str, same: Callable[[str, str], bool]
) -> tuple[bool, str] | None:
    """Compare with a time, date, ratio, range, size or number code; None where neither is one.

    Args:
        predicted: cleaned prediction.
        gold: cleaned gold answer.
        same: compares two texts as values, for a ratio that is written as a quotient.

    Returns:
        Whether they match, and why or why not.
    """
    if gold_time := _parse_time(gold):
        time = _parse_time(predicted)
        return bool(time) and _are_same_times(time, gold_time), "compared as times"
    if gold_dates := _parse_date(gold):
        dates = _parse_date(predicted)
        return bool(dates) and _are_same_dates(dates, gold_dates), "compared as dates"
    gold_terms, terms = _split_ratio(gold), _split_ratio(predicted)
    if gold_terms:
        if _is_score(gold_terms):
            return _code_key(predicted) == _code_key(gold), "compared as scores"
        return _are_same_ratios(predicted, terms, gold_terms, same), "compared as ratios"
    if terms or _parse_date(predicted) or _CHAIN.fullmatch(predicted):
        return word_form(predicted) == word_form(gold), "compared as text"
    code = _parse_code(gold)
    if code is None:
        return None
    key, unit = code
    other = _parse_code(predicted)
    other_key, other_unit = other or (_code_key(predicted), "")
    units_agree = not (unit and other_unit) or parse_unit(unit) == parse_unit(other_unit)
    return key == other_key and units_agree, "compared as text"


_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*(?:([ap])\.?\s?m\b\.?)?", re.IGNORECASE)


def _parse_time(text: str) -> tuple[tuple[int, ...], str] | None:
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    return tuple(int(part or 0) for part in match.groups()[:3]), (match[4] or "").lower()


def _are_same_times(left: tuple[tuple[int, ...], str], right: tuple[tuple[int, ...], str]) -> bool:
    """Check two times as written: "9:30" may leave out AM or PM, "2:30 PM" is not "14:30"."""
    return left[0] == right[0] and (left[1] == right[1] or not (left[1] and right[1]))


_MONTH_NAMES = (
    "january february march april may june july august september october november december"
).split()
_MONTHS = {
    name[:length]: number
    for number, name in enumerate(_MONTH_NAMES, start=1)
    for length in (3, 4 if name == "september" else 3, len(name))
}
_MONTH = rf"(?P<month>{'|'.join(sorted(_MONTHS, key=len, reverse=True))})\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_WEEKDAY = re.compile(
    r"(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?[.,]*\s+", re.I
)
_NAMED_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_MONTH}\s+{_DAY}(?:,?\s+{_YEAR})?",
        rf"(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}(?:,?\s+{_YEAR})?",
        rf"{_MONTH},?\s+{_YEAR}",
        rf"{_DAY}-{_MONTH}-{_YEAR}",
    )
)
_YEAR_FIRST = re.compile(
    r"(\d{4})(?:-(\d{1,2})-(\d{1,2})|/(\d{1,2})/(\d{1,2})|\.(\d{1,2})\.(\d{1,2})"
    r"|\s*年\s*(\d{1,2})\s*月\s*(\d{1,2})\s*[日号])"
)
_YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4}|\d{2})")

# The possible dates as (year, month, day), 0 where a part is not written; and the numbers as
# written where the order of day and month is not known.
_Dates = tuple[frozenset[tuple[int, int, int]], tuple[int, ...]]


@lru_cache(maxsize=2048)
def _parse_date(text: str) -> _Dates | None:
    text = _WEEKDAY.sub("", text, count=1) if text[:1].isalpha() else text
    for pattern in _NAMED_DATES:
        if match := pattern.fullmatch(text):
            parts = match.groupdict()
            month = _MONTHS[parts["month"].lower()]
            return _dates((int(parts.get("year") or 0), month, int(parts.get("day") or 0)))
    if match := _YEAR_FIRST.fullmatch(text):
        year, month, day = (int(part) for part in match.groups() if part)
        return _dates((year, month, day))
    if match := _YEAR_LAST.fullmatch(text):
        first, second, year = int(match[1]), int(match[3]), int(match[4])
        readings = _dates((year, first, second), (year, second, first))
        # Without a valid reading ("99-99-2020") it is a number code.
        return (readings[0], (first, second, year)) if readings else None
    return None


def _dates(*readings: tuple[int, int, int]) -> _Dates | None:
    valid = frozenset(r for r in readings if 1 <= r[1] <= 12 and 0 <= r[2] <= 31)
    return (valid, ()) if valid else None


def _are_same_dates(left: _Dates, right: _Dates) -> bool:
    if left[1] and left[1] == right[1]:
        return True
    return left[0] == right[0] and len(left[0]) == 1


_TO = re.compile(r"(?<=\d)\s*(?:\bto\b|:)\s*(?=\d)")


def _split_ratio(text: str) -> tuple[str, ...]:
    """Return the terms of "4:3" or "1 : sqrt(2)", or () where it is not a ratio."""
    if ":" not in text or len(text) > 100 or re.search(r"[=,;|<>\[\]{:]\s*:|[=,;|<>]", text):
        return ()
    terms = tuple(term.strip() for term in text.split(":"))
    return terms if len(terms) > 1 and all(term and to_latex(term) for term in terms) else ()


def _value(term: str) -> Fraction | None:
    match = match_number(term)
    return match[0].value if match and match[1] == len(term) else None


def _is_score(terms: tuple[str, ...]) -> bool:
    """Check for whole numbers that are not in lowest terms, or zero: 2:0, 6:4."""
    values = [_value(term) for term in terms]
    wholes = [int(value) for value in values if value is not None and value.denominator == 1]
    return len(wholes) == len(terms) and (0 in wholes or math.gcd(*wholes) != 1)


def _are_same_ratios(
    predicted: str,
    terms: tuple[str, ...],
    gold_terms: tuple[str, ...],
    same: Callable[[str, str], bool],
) -> bool:
    terms = terms or _split_ratio(_TO.sub(":", predicted))
    if not terms:
        quotient = rf"\frac{{{gold_terms[0]}}}{{{gold_terms[1]}}}"
        return len(gold_terms) == 2 and same(predicted, quotient)
    if len(terms) != len(gold_terms):
        return False
    values, gold_values = ([_value(term) for term in side] for side in (terms, gold_terms))
    if None not in values and None not in gold_values:
        first, gold_first = values[0], gold_values[0]
        assert first is not None and gold_first is not None
        pairs = zip(values, gold_values, strict=True)
        return first != 0 and all(
            value is not None and gold is not None and value * gold_first == gold * first
            for value, gold in pairs
        )
    if len(terms) == 2:
        return same(*(rf"\frac{{{side[0]}}}{{{side[1]}}}" for side in (terms, gold_terms)))
    return all(same(p, g) for p, g in zip(terms, gold_terms, strict=True))


_N = r"[$€£¥]?\+?\(?\d[\d,.]*\)?[°%]?"
# Three numbers or more: dates, telephone and book numbers, versions, addresses.
_CHAIN = re.compile(r"\d+(?:-\d+){2,}|\d+(?:/\d+){2,}|\d+(?:\.\d+){2,}")
_CODE = re.compile(
    rf"(?P<code>(?=.*\d\)?[°%]?\s*-)(?:pp?\.|pages?)?\s*{_N}(?:(?:\s*-\s*|\s+){_N})+"
    rf"|\d[\d.]*(?:\s*[a-zμ]{{1,2}})?(?:\s*(?:[xX×]|\\times)\s*\d[\d.]*(?:\s*[a-zμ]{{1,2}}(?=\s*[xX×]))?)+"
    rf"|{_CHAIN.pattern}"
    r"|[a-z]{2,3}-\d+|\d+-[a-z]{3,})"
    r"\s*(?P<unit>[A-Za-z°%\u4e00-\u9fff][^-\d]*(?:\^\s*\{?\d\}?)?)?"
)


def _parse_code(text: str) -> tuple[str, str] | None:
    """Return a range, size or number code in one spelling and the unit after it, or None."""
    match = _CODE.fullmatch(text) if len(text) <= 60 else None
    if match is None or (match["unit"] and not parse_unit(match["unit"])):
        return None
    return _code_key(match["code"]), match["unit"] or ""


def _code_key(text: str) -> str:
    rewrites = (
        (r"^(?:pp?\.|pages?)\s*", ""),
        (r"(?<=\d)\s*(?:[xX×*]|\\times|by)\s*(?=\d)", "x"),
        (r"(?<=\d)\s+to\s+(?=\d)", "-"),
        (r"\s*([-/:x])\s*", r"\1"),
    )
    return word_form(replace_all(text, rewrites))
