# ruff: noqa: SIM905 - word lists read better as text
"""Numbers with units: "5 km" is "5000 m", is not "5 lb", and may be "5" when one side names no
unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from prism_lite.rewards.answers import units
from prism_lite.rewards.answers.numbers import (
    RELATIVE_TOLERANCE,
    Number,
    match_number,
    numbers_agree,
)
from prism_lite.rewards.answers.units import Unit


@dataclass(frozen=True)
class Quantity:
    """A number with what stands behind it.

    Attributes:
        number: in `unit`.
        unit: None where none is written or the word is not in the table.
        noun: the counted thing ("apples") where the word is no unit, singular, without case.
    """

    number: Number
    unit: Unit | None = None
    noun: str = ""


_ROUGHLY = re.compile(
    r"(?:approximately|approx\.?|about|roughly|around|≈|\\approx)\s*", re.IGNORECASE
)
_CURRENCY_CODE = re.compile(r"(USD|EUR|GBP|JPY|CNY|INR|Rs)\.?\s*(?=[\d.])")
_NOUN = re.compile(r"[^\W\d_]+(?:[ -][^\W\d_]+){0,2}")
_NO_NOUN = frozenset(
    "or and not to if plus minus times over divided than by of is are was be no but only per at am "
    "pm st nd rd th".split()
)
_ATTACHED = re.compile(r"([kKMB])(?![A-Za-z/^])\s*")
_SCALE_WORD = re.compile(rf"({'|'.join(units.SCALES)})\b\s*", re.IGNORECASE)
_UNIT_RUN = re.compile(r"[^\d,;]*?(?=\s*(?:and\s+|,\s*)?\d|$)")


@lru_cache(maxsize=4096)
def parse_quantity(text: str) -> Quantity | None:
    """Read a cleaned text that is one number with at most one unit or counted noun; else None."""
    rough = _ROUGHLY.match(text)
    text = text[rough.end() :] if rough else text
    if not text or len(text) > 200:
        return None
    sign = ""
    if text[0] in "+-" and text[1:].lstrip()[:1] in units.CURRENCY_SIGNS:
        sign, text = text[0], text[1:].lstrip()
    currency = None
    if text[:1] and text[0] in units.CURRENCY_SIGNS:
        currency, text = units.parse_unit(text[0]), text[1:].lstrip()
    code = _CURRENCY_CODE.match(text)
    if currency is None and code:
        currency, text = units.parse_unit(code.group(1)), text[code.end() :]
    found = match_number(sign + text)
    if found is None:
        return None
    number, end = found
    rest = (sign + text)[end:]
    number, rest = _take_scale(number, rest)
    rest = units.strip_unit_markup(rest).strip()
    if currency is not None:
        is_plain = not rest or units.parse_unit(rest) == currency
        return Quantity(number, currency) if is_plain else None
    if not rest:
        return Quantity(number)
    unit = units.parse_unit(rest)
    if unit is not None:
        return Quantity(number, unit) if unit.dimension else Quantity(number)
    return _compound(number, rest) or _counted(number, rest)


def _take_scale(number: Number, rest: str) -> tuple[Number, str]:
    attached = _ATTACHED.match(rest)
    word = _SCALE_WORD.match(rest.lstrip())
    if attached:
        factor, rest = units.ATTACHED_SCALES[attached.group(1)], rest[attached.end() :]
    elif word:
        factor, rest = units.SCALES[word.group(1).lower()], rest.lstrip()[word.end() :]
    else:
        return number, rest
    step = None if number.step is None else number.step * factor
    return Number(number.value * factor, step, number.num_digits), rest


def _compound(number: Number, rest: str) -> Quantity | None:
    """ "5 ft 6 in", "1 hour and 30 minutes": further numbers with units of the same dimension."""
    total, first = Fraction(0), None
    while True:
        run = _UNIT_RUN.match(rest)
        unit = units.parse_unit(run.group()) if run else None
        if run is None or unit is None or (first and unit.dimension != first.dimension):
            return None
        first = first or unit
        total += units.convert(number.value, unit, first) if not unit.offset else number.value
        rest = re.sub(r"^\s*(?:and\s+|,\s*)?", "", rest[run.end() :])
        if not rest:
            return Quantity(Number(total), first)
        found = match_number(rest)
        if found is None or found[1] >= len(rest):
            return None
        number, rest = found[0], rest[found[1] :].lstrip()


def _counted(number: Number, rest: str) -> Quantity | None:
    words = rest.casefold().split()
    if not _NOUN.fullmatch(rest) or any(word in _NO_NOUN for word in words) or len(rest) < 3:
        return None
    noun = words[-1]
    if noun in ("unit", "units"):
        return Quantity(number)
    return Quantity(number, None, _singular(noun))


def _singular(noun: str) -> str:
    irregular = {
        "people": "person",
        "children": "child",
        "men": "man",
        "women": "woman",
        "mice": "mouse",
    }
    if noun in irregular:
        return irregular[noun]
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if noun.endswith(("ches", "shes", "xes", "sses", "oes")):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun


def quantities_agree(
    predicted: Quantity, gold: Quantity, *, relative_tolerance: float = RELATIVE_TOLERANCE
) -> tuple[bool, str]:
    """Compare two quantities in the gold answer's unit.

    A unit on one side only is taken as understood from the question; with a percent sign on one
    side only, both readings of the bare number (50 and 0.5 for 50 %) count. Different units convert
    where they measure the same thing and conflict where not.

    Returns:
        Whether they agree, and why or why not in a few words.
    """
    number = predicted.number
    if predicted.unit and gold.unit:
        if not units.are_comparable(predicted.unit, gold.unit):
            return False, "units conflict"
        if predicted.unit != gold.unit:
            number = _converted(number, predicted.unit, gold.unit)
    elif (predicted.unit and gold.noun) or (predicted.noun and gold.unit):
        return False, "units conflict"
    elif predicted.noun and gold.noun and predicted.noun != gold.noun:
        return False, "counts of different things"
    if numbers_agree(number, gold.number, relative_tolerance=relative_tolerance):
        return (
            True,
            "equal numbers" if number.value == gold.number.value else "equal within tolerance",
        )
    for one, other in ((predicted, gold), (gold, predicted)):
        if one.unit and one.unit.dimension == units.PERCENT and not other.unit and not other.noun:
            as_share = _scaled(one.number, Fraction(1, 100))
            pair = (as_share, gold.number) if one is predicted else (number, as_share)
            if numbers_agree(*pair, relative_tolerance=relative_tolerance):
                return True, "percentage and its share"
    return False, "numbers differ"


def _converted(number: Number, source: Unit, target: Unit) -> Number:
    value = units.convert(number.value, source, target)
    if number.step is None or source.dimension != target.dimension:
        return Number(value, number.step, number.num_digits)
    return Number(value, number.step * source.factor / target.factor, number.num_digits)


def _scaled(number: Number, factor: Fraction) -> Number:
    step = None if number.step is None else number.step * factor
    return Number(number.value * factor, step, number.num_digits)
