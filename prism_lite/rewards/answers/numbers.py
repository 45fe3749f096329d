# ruff: noqa: RUF001, SIM905 - the times sign is meant; word lists read better as text
r"""Numbers as people and models write them, kept exact, and when two of them agree.

"1,234.50", "2 \times 10^3", "3 1/2", "\frac{1}{2}", "twenty-five" become fractions, with the place
of the last written digit, so that a tolerance can be stated in the gold answer's own terms.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

RELATIVE_TOLERANCE = 1e-6
MAX_NUMBER_CHARACTERS = 200
_MAX_EXPONENT = 400  # 10 ** 999999999 would never end


@dataclass(frozen=True)
class Number:
    """A number as written.

    Attributes:
        value: exact.
        step: worth of the last written decimal place (0.01 for "3.14"); None for integers,
            fractions and expressions, which are exact.
        num_digits: significant digits as written; 0 where `step` is None.
    """

    value: Fraction
    step: Fraction | None = None
    num_digits: int = 0


_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_POWER_OF_TEN = (
    r"(?:\s*(?:\\times|\\cdot|×|x|X|\*|·)\s*10\s*(?:\^|\*\*)\s*\{?\s*([+-]?\s*\d+)\s*\}?"
    r"|[eE]([+-]?\d+)(?![\w]))"
)
_SCIENTIFIC = re.compile(rf"({_DECIMAL}){_POWER_OF_TEN}")
_BARE_POWER = re.compile(r"10\s*(?:\^|\*\*)\s*\{?\s*([+-]?\s*\d+)\s*\}?")
_FRACTION = re.compile(
    rf"(?:(\d+)(?:\s+|\s*(?=\\frac)))?"
    rf"(?:({_DECIMAL})\s*/\s*({_DECIMAL})"
    rf"|\\frac\s*\{{\s*([+-]?\s*{_DECIMAL})\s*\}}\s*\{{\s*({_DECIMAL})\s*\}}"
    r"|\\frac\s*(\d)\s*(\d))"
)
_PLAIN = re.compile(_DECIMAL)
_SIGN = re.compile(r"(?:([+-])\s*|(?:negative|minus)\s+)")


def match_number(text: str) -> tuple[Number, int] | None:
    """The number at the start of a cleaned text and where it ends, or None.

    The longest reading wins: "2 x 10^3 m" is 2000 and ends before " m".
    """
    if len(text) > MAX_NUMBER_CHARACTERS:
        return None
    sign_match = _SIGN.match(text)
    start = sign_match.end() if sign_match else 0
    sign = -1 if sign_match and sign_match.group(1) != "+" else 1
    found = _match_unsigned(text, start)
    if found is None:
        return None
    number, end = found
    return Number(sign * number.value, number.step, number.num_digits), end


def _match_unsigned(text: str, start: int) -> tuple[Number, int] | None:
    match = _FRACTION.match(text, start)
    if match:
        number = _fraction(match)
        return (number, match.end()) if number else None
    match = _SCIENTIFIC.match(text, start)
    if match:
        exponent = int((match.group(2) or match.group(3)).replace(" ", ""))
        if abs(exponent) > _MAX_EXPONENT:
            return None
        return _scaled(_decimal(match.group(1)), exponent), match.end()
    match = _BARE_POWER.match(text, start)
    if match:
        exponent = int(match.group(1).replace(" ", ""))
        if abs(exponent) > _MAX_EXPONENT:
            return None
        return Number(Fraction(10) ** exponent), match.end()
    match = _PLAIN.match(text, start)
    if match:
        return _decimal(match.group()), match.end()
    return _match_words(text, start)


def _decimal(text: str) -> Number:
    text = text.replace(",", "").replace(" ", "")
    whole, point, decimals = text.partition(".")
    value = Fraction(
        int(whole or "0") * 10 ** len(decimals) + int(decimals or "0"), 10 ** len(decimals)
    )
    if not point or not decimals:
        return Number(value)
    return Number(value, Fraction(1, 10 ** len(decimals)), len((whole + decimals).lstrip("0")))


def _scaled(number: Number, exponent: int) -> Number:
    factor = Fraction(10) ** exponent
    return Number(
        number.value * factor,
        None if number.step is None else number.step * factor,
        number.num_digits,
    )


def _fraction(match: re.Match[str]) -> Number | None:
    whole, top, bottom, latex_top, latex_bottom, digit_top, digit_bottom = match.groups()
    top = top or latex_top or digit_top
    bottom = bottom or latex_bottom or digit_bottom
    negative = top.startswith("-")
    numerator = _decimal(top.lstrip("+-").strip()).value * (-1 if negative else 1)
    denominator = _decimal(bottom).value
    if denominator == 0:
        return None
    return Number(Fraction(int(whole or 0)) + numerator / denominator)


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORD_VALUES = {word: i for i, word in enumerate(_ONES)} | {
    word: 10 * (i + 2) for i, word in enumerate(_TENS)
}
_ONE = "|".join(sorted(_ONES, key=len, reverse=True))  # "seventeen" before "seven"
_WORDS = re.compile(
    rf"(?:({'|'.join(_TENS)})(?:[\s-]+({'|'.join(_ONES[1:10])}))?|({_ONE}))(?:\s+(hundred))?(?![\w-])",
    re.IGNORECASE,
)


def _match_words(text: str, start: int) -> tuple[Number, int] | None:
    match = _WORDS.match(text, start)
    if not match:
        return None
    *words, hundred = match.groups()
    value = sum(_WORD_VALUES[word.lower()] for word in words if word)
    return Number(Fraction(value * (100 if hundred else 1))), match.end()


def numbers_agree(
    predicted: Number, gold: Number, *, relative_tolerance: float = RELATIVE_TOLERANCE
) -> bool:
    """Whether a predicted number counts as the gold one.

    Equal values agree. Two whole numbers agree only if equal (unless the caller widened the
    tolerance: 10000001 is not 10000000). Otherwise they agree within `relative_tolerance`, or when
    the prediction is written more finely than the gold and rounds to it: at least two gold digits
    for an exact prediction (2/3 for 0.67), three for a decimal one (3.1416 for 3.14).
    """
    if predicted.value == gold.value:
        return True
    distance = abs(predicted.value - gold.value)
    largest = max(abs(predicted.value), abs(gold.value))
    are_whole = predicted.value.denominator == 1 and gold.value.denominator == 1
    if are_whole and relative_tolerance <= RELATIVE_TOLERANCE:
        return False
    if distance <= Fraction(relative_tolerance) * largest:
        return True
    if gold.step is None or are_whole:
        return False
    is_finer = predicted.step is None or predicted.step < gold.step
    is_exact = predicted.step is None and predicted.value.denominator != 1
    return is_finer and gold.num_digits >= (2 if is_exact else 3) and 2 * distance <= gold.step
