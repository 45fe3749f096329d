"""Units of measurement in answers: a small table of our own, exact factors, conversion or conflict.

Sources of the factors: the SI brochure (9th edition) and NIST Special Publication 811 (inch, pound,
acre, calorie and others are exact by definition). Money converts only within one currency.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

Dimension = tuple[tuple[str, int], ...]  # (("length", 1), ("time", -1)); () is a pure number


@dataclass(frozen=True)
class Unit:
    """factor * x + offset is the value of x in the base unit of `dimension`."""

    dimension: Dimension
    factor: Fraction
    offset: Fraction = Fraction(0)


def _unit(factor: str | int, offset: str | int = 0, **powers: int) -> Unit:
    return Unit(tuple(sorted(powers.items())), Fraction(factor), Fraction(offset))


# name or symbol, several per unit. Names are matched without case and plural s; symbols as written
# first.
_TABLE: tuple[tuple[str, Unit], ...] = (
    ("m meter metre", _unit(1, length=1)),
    ("km kilometer kilometre", _unit(1000, length=1)),
    ("dm decimeter decimetre", _unit("1/10", length=1)),
    ("cm centimeter centimetre", _unit("1/100", length=1)),
    ("mm millimeter millimetre", _unit("1/1000", length=1)),
    ("μm um micrometer micrometre micron", _unit("1/1000000", length=1)),
    ("nm nanometer nanometre", _unit("1/1000000000", length=1)),
    ('in inch inches "', _unit("0.0254", length=1)),
    ("ft foot feet '", _unit("0.3048", length=1)),
    ("yd yard", _unit("0.9144", length=1)),
    ("mi mile", _unit("1609.344", length=1)),
    ("kg kilogram kilo", _unit(1, mass=1)),
    ("g gram gm", _unit("1/1000", mass=1)),
    ("mg milligram", _unit("1/1000000", mass=1)),
    ("μg ug microgram", _unit("1/1000000000", mass=1)),
    ("t ton tonne", _unit(1000, mass=1)),
    ("lb lbs pound", _unit("0.45359237", mass=1)),
    ("oz ounce", _unit("0.028349523125", mass=1)),
    ("s sec second", _unit(1, time=1)),
    ("ms millisecond", _unit("1/1000", time=1)),
    ("μs us microsecond", _unit("1/1000000", time=1)),
    ("ns nanosecond", _unit("1/1000000000", time=1)),
    ("min minute", _unit(60, time=1)),
    ("h hr hour", _unit(3600, time=1)),
    ("d day", _unit(86400, time=1)),
    ("wk week", _unit(604800, time=1)),
    ("month mo", _unit(1, month=1)),  # no fixed number of days
    ("yr year", _unit(12, month=1)),
    ("L l liter litre", _unit("1/1000", length=3)),
    ("mL ml cc milliliter millilitre", _unit("1/1000000", length=3)),
    ("cL cl centiliter", _unit("1/100000", length=3)),
    ("dL dl deciliter", _unit("1/10000", length=3)),
    ("gal gallon", _unit("0.003785411784", length=3)),
    ("ha hectare", _unit(10000, length=2)),
    ("acre", _unit("4046.8564224", length=2)),
    ("mph", _unit("0.44704", length=1, time=-1)),
    ("kph kmh", _unit("5/18", length=1, time=-1)),
    ("K kelvin", _unit(1, temperature=1)),
    ("°C C celsius centigrade", _unit(1, "273.15", temperature=1)),
    ("°F F fahrenheit", _unit("5/9", "45967/180", temperature=1)),
    ("° degree deg", _unit(1, angle=1)),
    ("rad radian", _unit("57.295779513082320876798154814105", angle=1)),  # 180 / pi to 32 digits
    ("N newton", _unit(1, mass=1, length=1, time=-2)),
    ("kN kilonewton", _unit(1000, mass=1, length=1, time=-2)),
    ("J joule", _unit(1, mass=1, length=2, time=-2)),
    ("kJ kilojoule", _unit(1000, mass=1, length=2, time=-2)),
    ("MJ megajoule", _unit(1000000, mass=1, length=2, time=-2)),
    ("cal calorie", _unit("4.184", mass=1, length=2, time=-2)),
    ("kcal kilocalorie", _unit(4184, mass=1, length=2, time=-2)),
    ("Wh watt-hour", _unit(3600, mass=1, length=2, time=-2)),
    ("kWh kilowatt-hour", _unit(3600000, mass=1, length=2, time=-2)),
    ("W watt", _unit(1, mass=1, length=2, time=-3)),
    ("mW milliwatt", _unit("1/1000", mass=1, length=2, time=-3)),
    ("kW kilowatt", _unit(1000, mass=1, length=2, time=-3)),
    ("MW megawatt", _unit(1000000, mass=1, length=2, time=-3)),
    ("GW gigawatt", _unit(1000000000, mass=1, length=2, time=-3)),
    ("Pa pascal", _unit(1, mass=1, length=-1, time=-2)),
    ("hPa hectopascal mbar millibar", _unit(100, mass=1, length=-1, time=-2)),
    ("kPa kilopascal", _unit(1000, mass=1, length=-1, time=-2)),
    ("MPa megapascal", _unit(1000000, mass=1, length=-1, time=-2)),
    ("bar", _unit(100000, mass=1, length=-1, time=-2)),
    ("atm atmosphere", _unit(101325, mass=1, length=-1, time=-2)),
    ("A amp ampere", _unit(1, current=1)),
    ("mA milliampere", _unit("1/1000", current=1)),
    ("V volt", _unit(1, mass=1, length=2, time=-3, current=-1)),
    ("mV millivolt", _unit("1/1000", mass=1, length=2, time=-3, current=-1)),
    ("kV kilovolt", _unit(1000, mass=1, length=2, time=-3, current=-1)),
    (r"Ω \Omega ohm", _unit(1, mass=1, length=2, time=-3, current=-2)),
    ("Hz hertz", _unit(1, time=-1)),
    ("kHz kilohertz", _unit(1000, time=-1)),
    ("MHz megahertz", _unit(1000000, time=-1)),
    ("GHz gigahertz", _unit(1000000000, time=-1)),
    ("mol mole", _unit(1, amount=1)),
    ("mmol", _unit("1/1000", amount=1)),
    ("bit", _unit(1, data=1)),
    ("byte", _unit(8, data=1)),
    ("kB KB kilobyte", _unit(8000, data=1)),
    ("MB megabyte", _unit(8000000, data=1)),
    ("GB gigabyte", _unit(8000000000, data=1)),
    ("TB terabyte", _unit(8000000000000, data=1)),
    ("$ USD dollar", _unit(1, dollar=1)),
    ("cent ¢", _unit("1/100", dollar=1)),
    ("€ EUR euro", _unit(1, euro=1)),
    ("£ GBP", _unit(1, sterling=1)),
    ("¥ JPY yen", _unit(1, yen=1)),
    ("CNY RMB yuan", _unit(1, yuan=1)),
    ("₹ INR Rs rupee", _unit(1, rupee=1)),
    ("% percent pct", _unit(1, percent=1)),
    ("unit", _unit(1)),
)
# Words that multiply a number and are no unit: "3.2 million people".
SCALES = {
    "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "mn": 10**6, "bn": 10**9, "tn": 10**12, "dozen": 12,
}  # fmt: skip
ATTACHED_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}  # "5K", never "5 K" (kelvin)
CURRENCY_SIGNS = "$€£¥₹"
PERCENT: Dimension = (("percent", 1),)
_ANGLE: Dimension = (("angle", 1),)
_TEMPERATURE: Dimension = (("temperature", 1),)

_SYMBOLS = {name: unit for names, unit in _TABLE for name in names.split()}
_NAMES = {name.casefold(): unit for name, unit in reversed(list(_SYMBOLS.items()))}

_UNIT_MARKUP = re.compile(r"\\(?:text|mathrm|textrm|rm|operatorname|mbox)\s*\{([^{}]*)\}")
# A power is written "cm^2", "cm^{2}", "cm 2" never: "5 ft 6 in" would be feet to the sixth.
_FACTOR = re.compile(r"([^\s*·/^\d{}()-]+)(?:\s*\^\s*\{?\s*([+-]?\d)\s*\}?|([23])(?!\d))?")
_POWER_WORDS = {"square": 2, "sq": 2, "sq.": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}


def strip_unit_markup(text: str) -> str:
    r"""`5 \text{ cm}^{2}` without the LaTeX commands around its unit: `5  cm^{2}`."""
    return _UNIT_MARKUP.sub(r" \1", text) if "\\" in text else text


@lru_cache(maxsize=2048)
def parse_unit(text: str) -> Unit | None:
    """The unit that a cleaned text names, or None.

    "km/h", "cm^{2}", "square feet", "meters per second squared" and "kg m^-3" are read as products.
    """
    text = text.strip().rstrip(".").strip()
    if not text or len(text) > 60:
        return None
    if text in ("degrees Celsius", "degree Celsius") or text.casefold() in _DEGREE_NAMES:
        return _DEGREE_NAMES[text.casefold()]
    plain = _lookup(text)
    if plain:
        return plain
    text = re.sub(r"\bper\b", "/", text)
    over, slash, under = text.partition("/")
    if "/" in under:
        return None
    product = _product(over)
    if not slash or product is None:
        return product
    divisor = _product(under.strip().strip("()"))
    return _times(product, divisor, -1) if divisor else None


_DEGREE_NAMES = {
    f"degree{plural} {name}": _NAMES[name]
    for plural in ("", "s")
    for name in ("celsius", "fahrenheit", "c", "f")
}


def _lookup(word: str) -> Unit | None:
    found = _SYMBOLS.get(word)
    if found:
        return found
    folded = word.casefold()
    found = _NAMES.get(folded)
    if found is None and len(folded) > 3 and folded.endswith("s"):
        found = _NAMES.get(folded[:-1])
    return found


def _product(text: str) -> Unit | None:
    result = Unit((), Fraction(1))
    last: Unit | None = None
    pending_power = 1
    position = 0
    text = text.strip()
    while position < len(text):
        if text[position] in " *·":
            position += 1
            continue
        match = _FACTOR.match(text, position)
        if not match:
            return None
        position = match.end()
        word, power = match.group(1), int(match.group(2) or match.group(3) or 1)
        if word.casefold() in _POWER_WORDS:
            exponent = _POWER_WORDS[word.casefold()]
            if last and word.casefold().endswith("ed"):  # "meters squared"
                result = _times(result, last, exponent - 1)
            else:
                pending_power = exponent
            continue
        unit = _lookup(word.rstrip("."))
        if unit is None:
            return None
        last = unit
        result = _times(result, unit, power * pending_power)
        pending_power = 1
    return result if last else None


def _times(left: Unit, right: Unit, power: int) -> Unit:
    powers = dict(left.dimension)
    for name, exponent in right.dimension:
        powers[name] = powers.get(name, 0) + exponent * power
    dimension = tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))
    alone = left.dimension == () and left.factor == 1 and power == 1
    return Unit(
        dimension, left.factor * right.factor**power, right.offset if alone else Fraction(0)
    )


def are_comparable(left: Unit, right: Unit) -> bool:
    """Whether a value in one unit can be a value in the other: same dimension, or "25°" beside "25
    °C".
    """
    if left.dimension == right.dimension or () in (left.dimension, right.dimension):
        return True
    return {left.dimension, right.dimension} == {_ANGLE, _TEMPERATURE}


def convert(value: Fraction, source: Unit, target: Unit) -> Fraction:
    """`value` in `source` as a value in `target`; unchanged between a degree sign and a
    temperature.
    """
    if source.dimension != target.dimension:
        return value
    return (value * source.factor + source.offset - target.offset) / target.factor
