# ruff: noqa: RUF001, SIM905 - the multiplication sign is meant; word lists read better as text
r"""Numbers as people and models write them, kept exact, and when two of them agree.

"1,234.50", "2 \times 10^3", "3 1/2", "\frac{1}{2}", "3.2 million", "twenty-five" become fractions,
with the value of the last written digit, so that a tolerance can be stated in the gold answer's
own terms.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

RELATIVE_TOLERANCE = 1e-6
_MAX_CHARACTERS = 200
_MAX_EXPONENT = 400  # 10 ** 999999999 would never end


@dataclass(frozen=True)
class Number:
    """A number as written.

    Attributes:
        value: exact.
        step: value of the last written decimal place (0.01 for "3.14"); None for integers,
            fractions and expressions, which are exact.
        num_digits: significant digits as written; 0 where `step` is None.
    """

    value: Fraction
    step: Fraction | None = None
    num_digits: int = 0

    def times(self, factor: Fraction | int) -> Number:
        """Return the number in another scale."""
        step = None if self.step is None else self.step * abs(factor)
        return Number(self.value * factor, step, self.num_digits)


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORD_VALUES = dict(zip((*_ONES, *_TENS), (*range(20), *range(20, 100, 10)), strict=True))
_SCALES: dict[str, int] = {
    "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "mn": 10**6, "bn": 10**9, "tn": 10**12, "dozen": 12,
}  # fmt: skip
_CHINESE_SCALES: dict[str, int] = {"万": 10**4, "亿": 10**8}
_ATTACHED = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}  # "5K"; "5 K" is in kelvin
_PARTS = "half third quarter fourth fifth sixth seventh eighth ninth tenth".split()
_PART_VALUES: dict[str, int] = dict(zip(_PARTS, (2, 3, 4, 4, 5, 6, 7, 8, 9, 10), strict=True))

_EUROPEAN = r"\d{1,3}(?:\.\d{3})+,\d{1,2}(?!\d)"  # both separators leave one reading
_DECIMAL = rf"(?:{_EUROPEAN}|(?:\d{{1,3}}(?:[, ]\d{{3}})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"""(?: \+\s* | (?P<minus> -\s* | (?:negative|minus)\s+ ) )?
    (?: (?: (?P<whole>\d+) (?: \s+ | \s*(?=\\frac) ) )?
        (?: (?P<top>{_DECIMAL}) \s*/\s* (?P<bottom>{_DECIMAL})
          | \\frac \s*{{\s* (?P<latex_top>[+-]?\s*{_DECIMAL}) \s*}}
                   \s*{{\s* (?P<latex_bottom>{_DECIMAL}) \s*}} )
      | (?: (?P<mantissa>{_DECIMAL}) \s*(?:\\times|\\cdot|[×x*·])\s* )?
        10 \s*(?:\^|\*\*)\s* {{?\s* (?P<power>[+-]?\s*\d+) \s*}}?
      | (?P<decimal>{_DECIMAL}) (?: e(?P<exponent>[+-]?\d+)(?!\w) )?
      | (?P<words> (?:{"|".join(_TENS)}) (?: [\s-]+(?:{"|".join(_ONES[1:10])}) )?
          | {"|".join(reversed(_ONES))} ) (?![\w-])
          (?: \s+(?P<part> (?<=one\s)(?:{"|".join(_PARTS)})
                        | (?:halve|{"|".join(_PARTS[1:])})s )\b )? )
    (?P<hundred> \s*hundred\b )?
    (?: (?-i:(?P<attached>[kKMB])) (?![\w/^])
      | \s*(?P<scale> (?:{"|".join(_SCALES)})\b | [{"".join(_CHINESE_SCALES)}] ) )?""",
    re.VERBOSE | re.IGNORECASE,
)


def match_number(text: str, *, scale_letters: str = "KMB") -> tuple[Number, int] | None:
    """Return the number at the start of a cleaned text and where it ends, or None.

    The longest reading wins: "2 x 10^3 m" is 2000 and ends before " m". A letter attached to a whole
    number is a scale only if it is among `scale_letters`: "6k" may be a product, "3M" a name.
    """
    match = _NUMBER.match(text) if len(text) <= _MAX_CHARACTERS else None
    number = _unsigned(match) if match else None
    if match is None or number is None:
        return None
    factor = -1 if match["minus"] else 1
    factor *= 100 if match["hundred"] else 1
    letter, scale = match["attached"], (match["scale"] or "").lower()
    has_decimals = number.step is not None
    if letter and letter not in scale_letters and not has_decimals:
        return number.times(factor), match.start("attached")
    if (
        scale in ("mn", "bn", "tn")
        and not has_decimals
        and text[match.start("scale") - 1].isdigit()
    ):
        return number.times(factor), match.start("scale")
    factor *= _ATTACHED.get(letter) or (_SCALES | _CHINESE_SCALES).get(scale, 1)
    return number.times(factor), match.end()


def _unsigned(match: re.Match[str]) -> Number | None:
    if top := match["top"] or match["latex_top"]:
        denominator = _decimal(match["bottom"] or match["latex_bottom"]).value
        if denominator == 0:
            return None
        return Number(int(match["whole"] or 0) + _decimal(top).value / denominator)
    if words := match["words"]:
        count = sum(_WORD_VALUES[word] for word in re.findall(r"\w+", words.lower()))
        part = (match["part"] or "").lower().removesuffix("s").replace("halve", "half")
        return Number(Fraction(count, _PART_VALUES.get(part, 1)))
    exponent = int((match["power"] or match["exponent"] or "0").replace(" ", ""))
    if abs(exponent) > _MAX_EXPONENT:
        return None
    return _decimal(match["mantissa"] or match["decimal"] or "1").times(Fraction(10) ** exponent)


def _decimal(text: str) -> Number:
    if re.fullmatch(_EUROPEAN, text):
        text = text.replace(".", "").replace(",", ".")
    text = text.replace(",", "").replace(" ", "")
    integer, _, decimals = text.partition(".")
    if not decimals:
        return Number(Fraction(integer))
    num_digits = len((integer + decimals).lstrip("+-0"))
    return Number(Fraction(text), Fraction(1, 10 ** len(decimals)), num_digits)


def numbers_agree(predicted: Number, gold: Number, tolerance: float = RELATIVE_TOLERANCE) -> bool:
    """Check whether a predicted number counts as the gold one.

    Equal values agree. Two integers agree only if equal, unless the caller widened the tolerance:
    10000001 is not 10000000. Otherwise they agree within the relative tolerance, or when the
    prediction is written more finely than the gold and rounds to it: at least two gold digits for
    an exact prediction (2/3 for 0.67), three for a decimal one (3.1416 for 3.14). One more decimal
    must be within a third of the gold's last place: 2.504 claims another value than 2.50.
    """
    distance = abs(predicted.value - gold.value)
    largest = max(abs(predicted.value), abs(gold.value))
    are_integers = predicted.value.denominator == 1 and gold.value.denominator == 1
    if distance == 0 or (are_integers and tolerance <= RELATIVE_TOLERANCE):
        return distance == 0
    if distance <= Fraction(tolerance) * largest:
        return True
    if gold.step is None:
        return False
    is_finer = predicted.step is None or predicted.step < gold.step
    is_exact = predicted.step is None and predicted.value.denominator != 1
    is_next_place = predicted.step is not None and 10 * predicted.step == gold.step
    limit = gold.step / (3 if is_next_place else 2)
    return is_finer and gold.num_digits >= (2 if is_exact else 3) and distance <= limit
