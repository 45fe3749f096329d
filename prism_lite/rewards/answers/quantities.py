"""Numbers with units: "5 km" is "5000 m", not "5 lb", and equals "5" where one side has no unit.

units.tsv holds the units: symbol and names, SI prefixes in use, and the value in earlier units (or
a new dimension). Its factors are exact, from the SI brochure (9th edition) and NIST Special
Publication 811. Money converts only within one currency.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from prism_lite.rewards.answers.numbers import Number, match_number, numbers_agree
from prism_lite.rewards.answers.text import replace_all

_Dimension = frozenset[tuple[str, int]]  # {("length", 1), ("time", -1)}; empty for a pure number


@dataclass(frozen=True)
class Unit:
    """A unit; factor * x + offset is the value of x in the base unit of `dimension`."""

    dimension: _Dimension = frozenset()
    factor: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)

    def times(self, other: Unit, power: int) -> Unit:
        """Return self * other^power; a product has no offset."""
        powers = Counter(dict(self.dimension))
        for name, exponent in other.dimension:
            powers[name] += exponent * power
        dimension = frozenset(item for item in powers.items() if item[1])
        return Unit(dimension, self.factor * other.factor**power)


@dataclass(frozen=True)
class Quantity:
    """A number with the unit or word that follows it.

    Attributes:
        number: in `unit`.
        unit: None where none is written or the word is not in the table.
        noun: the counted thing ("apples") where the word is not a unit, singular, lower case.
    """

    number: Number
    unit: Unit | None = None
    noun: str = ""


_UNITS: dict[str, Unit] = {}  # by symbol or name, as written
_FOLDED: dict[str, set[str]] = {}  # the names above by folded name: {"mW", "MW"} for "mw"

_DEGREE_WORD = re.compile(r"degrees? (?=(?:celsius|fahrenheit|[CF])$)", re.IGNORECASE)
_POWERS = (
    (r"平方([^\s/每]+)", r"\1^2"),
    (r"立方([^\s/每]+)", r"\1^3"),
    (r"每", "/"),
    (r"\s*\^\s*\{?\s*([+-]?\d)\s*\}?", r"^\1 "),
    (r"(?i)\b(?:square|sq\.?)\s+([^\s/]+)", r"\1^2"),
    (r"(?i)\b(?:cubic|cu\.?)\s+([^\s/]+)", r"\1^3"),
    (r"(?i)\s+squared\b", "^2"),
    (r"(?i)\s+cubed\b", "^3"),
)
# A power is "cm^2" or "cm2", never "cm 2": "5 ft 6 in" would be feet to the sixth.
_FACTOR = re.compile(r"([^\d^{}()-]+?)\.?(?:\^([+-]?\d)|([23]))?")


@lru_cache(maxsize=2048)
def parse_unit(text: str) -> Unit | None:
    """Return the unit that a cleaned text names, or None.

    "km/h", "cm^{2}", "square feet", "meters per second squared" and "kg m^-3" are products.
    """
    text = text.strip().rstrip(".").rstrip()
    unit = _find_unit(_DEGREE_WORD.sub("", text))
    return unit if unit or len(text) > 60 else _parse_product(text)


def _find_unit(name: str) -> Unit | None:
    folded = name.casefold()
    singular = folded[:-1] if len(folded) > 3 and folded.endswith("s") else folded
    if unit := _UNITS.get(name):
        return unit
    # Case matters in one letter (A, a), in "Mg" (not mg) and where both exist (mW, MW).
    names = (_FOLDED.get(folded) or _FOLDED.get(singular) or set()) if len(name) > 1 else set()
    units = {_UNITS[other] for other in names}
    is_mega = name[:1] == "M" and len(name) == 2 and name != name.upper()
    return units.pop() if len(units) == 1 and not is_mega else None


def _parse_product(text: str) -> Unit | None:
    sides = re.split(r"/|\bper\b", replace_all(text, _POWERS))
    product = Unit()
    for sign, side in zip((1, -1), sides, strict=False):
        words = re.findall(r"[^\s*·]+", side.strip(" ()"))
        for word in words:
            match = _FACTOR.fullmatch(word)
            unit = _find_unit(match[1]) if match else None
            if match is None or unit is None:
                return None
            product = product.times(unit, sign * int(match[2] or match[3] or 1))
        if not words or len(sides) > 2:
            return None
    return product


_PREFIXES = {
    "n": ("nano", "1/1000000000"), "μ": ("micro", "1/1000000"), "u": ("micro", "1/1000000"),
    "m": ("milli", "1/1000"), "c": ("centi", "1/100"), "d": ("deci", "1/10"), "h": ("hecto", 100),
    "k": ("kilo", 10**3), "M": ("mega", 10**6), "G": ("giga", 10**9), "T": ("tera", 10**12),
    "": ("", 1),
}  # fmt: skip


def _read_units(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
        value, _, offset = row["value"].partition(" + ")
        factor, _, product = value.rpartition(" ")
        base = _parse_product(product) if factor else Unit(frozenset({(product, 1)}))
        assert base, f"{path}: {row['value']} comes before its units"
        unit = Unit(base.dimension, base.factor * Fraction(factor or 1), Fraction(offset or 0))
        symbol, *words = row["names"].split()
        for prefix in ["", *row["prefixes"].split()]:
            prefix_word, multiple = _PREFIXES[prefix]
            prefixed = replace(unit, factor=unit.factor * Fraction(multiple))
            for name in (prefix + symbol, *(prefix_word + word for word in words)):
                _UNITS[name] = prefixed
                _FOLDED.setdefault(name.casefold(), set()).add(name)


_read_units(Path(__file__).with_name("units.tsv"))
_PERCENT, DEGREE, _KELVIN = _UNITS["%"], _UNITS["°"], _UNITS["K"]

_MIN_PERCENT = 10
_ROUGHLY = re.compile(
    r"(?:approximately|approx\.?|about|roughly|around|≈|\\approx)\s*", re.IGNORECASE
)
_CURRENCY = re.compile(r"([+-]?)\s*([$€£¥₹]|USD|EUR|GBP|JPY|CNY|INR|Rs)\.?\s*(?=[\d.+-])")
_PART = r"(\d+(?:\.\d+)?)\s*([A-Za-z]+\.?|['\"])"
_COMPOUND = re.compile(rf"{_PART}(?:(?:\s*,)?(?:\s*and)?\s*{_PART})+")
_NOUN = re.compile(
    r"(?!.*\b(?:or|and|not|to|if|plus|minus|times|over|divided|than|by|of|is|are|was|be|no|but"
    r"|only|per|at|am|pm|st|nd|rd|th)\b)[^\W\d_]+(?:[ -][^\W\d_]+){0,2}",
    re.IGNORECASE,
)
_OF = re.compile(
    r"(?!out\b)(.+?) of (?!the\b)[a-z]+(?: [a-z]+){0,2}", re.IGNORECASE
)  # "grams of sugar"
_ATTACHED_SYMBOLS = frozenset("mgsLNJWVΩ")  # in "2m" a unit by habit; 3a, 7h and 10A are products
_DECADE = re.compile(r"\d{3}0s")
_IRREGULAR_PLURALS = {
    "people": "person", "children": "child", "men": "man", "women": "woman", "mice": "mouse",
}  # fmt: skip


@lru_cache(maxsize=4096)
def parse_quantity(text: str, *, is_gold: bool = False) -> Quantity | None:
    """Read a cleaned text that is one number with at most one unit or counted noun; else None.

    A gold answer of "3M" is a name, a prediction of "3M" three million.
    """
    if rough := _ROUGHLY.match(text):
        text = text[rough.end() :]
    currency = _CURRENCY.match(text)
    if currency:
        text = currency[1] + text[currency.end() :]
    match = match_number(text, scale_letters="kKMB" if currency else "" if is_gold else "KMB")
    if match is None or _DECADE.fullmatch(text):
        return None
    number, end = match
    rest = text[end:].strip()
    unit = parse_unit(rest) if _may_be_unit(text[end:]) else None
    if unit is None and (product := _OF.fullmatch(rest)):
        rest = product[1]  # a cup of flour is a cup
        unit = parse_unit(rest)
    if currency:
        expected = _UNITS[currency[2]]
        return Quantity(number, expected) if not rest or unit == expected else None
    if not rest or unit:
        return Quantity(number, unit if unit and unit.dimension else None)
    if compound := _compound(text):
        return compound
    if (len(rest) < 3 and rest.isascii()) or not _NOUN.fullmatch(rest):
        return None
    noun = rest.casefold().split()[-1]
    noun = _IRREGULAR_PLURALS.get(noun) or re.sub(r"(..)ies$", r"\1y", noun)
    noun = re.sub(r"(ch|sh|x|ss|o)es$|(?<!s)s$", r"\1", noun)
    return Quantity(number, noun="" if noun == "unit" else noun)


def _may_be_unit(rest: str) -> bool:
    """Check what follows a number: letters attached to it are a unit only as the table spells them."""
    if len(rest) > 2 or not rest.isascii() or not rest.isalpha():
        return True
    return rest in _ATTACHED_SYMBOLS if len(rest) == 1 else rest in _UNITS


def _compound(text: str) -> Quantity | None:
    """Add up "5 ft 6 in" or "1 hour and 30 minutes": numbers with units of one dimension."""
    parts = re.findall(_PART, text) if _COMPOUND.fullmatch(text) else []
    units = [unit for _, name in parts if (unit := parse_unit(name))]
    if not parts or len(units) < len(parts) or len({unit.dimension for unit in units}) > 1:
        return None
    total = sum(
        Fraction(value) * unit.factor for (value, _), unit in zip(parts, units, strict=True)
    )
    return Quantity(Number(total / units[0].factor), units[0])


def compare_quantities(predicted: Quantity, gold: Quantity, tolerance: float) -> tuple[bool, str]:
    """Compare two quantities in the gold answer's unit; also says why or why not.

    A unit on one side only is taken as understood from the question; with a percent sign on one
    side only, both readings of the bare number (50 and 0.5 for 50 %) count, where a percentage is
    plausible: a gold answer of 0.5 does not take "0.5%". Different units are
    converted if they measure the same thing and conflict if not.
    """
    number = predicted.number
    label, gold_label = predicted.unit or predicted.noun, gold.unit or gold.noun
    if predicted.unit and gold.unit:
        number = _converted(number, predicted.unit, gold.unit)
    elif label and gold_label and label != gold_label:
        number = None
    if number is None:
        return False, "units conflict"
    pairs = [(number, gold.number)]
    if label == _PERCENT and not gold_label:
        # 50 may be percent by its question; 0.5, 1 and 2 are shares or counts.
        pairs = pairs if abs(gold.number.value) >= _MIN_PERCENT else []
        pairs.append((number.times(Fraction(1, 100)), gold.number))
    if gold_label == _PERCENT and not label:
        pairs = pairs if abs(gold.number.value) > 1 else []
        pairs.append((number, gold.number.times(Fraction(1, 100))))
    if any(left.value == right.value for left, right in pairs):
        return True, "equal numbers"
    if any(numbers_agree(*pair, tolerance) for pair in pairs):
        return True, "equal within tolerance"
    return False, "numbers differ"


def _converted(number: Number, source: Unit, target: Unit) -> Number | None:
    dimensions = {source.dimension, target.dimension}
    if dimensions == {DEGREE.dimension, _KELVIN.dimension}:
        return number  # "25°" beside "25 °C"
    if len(dimensions) > 1:
        return None
    shift = (source.offset - target.offset) / target.factor
    scaled = number.times(source.factor / target.factor)
    return replace(scaled, value=scaled.value + shift)
