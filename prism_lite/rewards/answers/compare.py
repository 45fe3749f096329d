"""Does a prediction say what the gold answer says? One verdict with its reason.

The cheapest reading that decides wins: same text, option letter, yes/no, number with unit, several
entries, expression (math-verify), words. Nothing raises on odd text: an unreadable prediction is
wrong.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from prism_lite.rewards.answers import symbolic
from prism_lite.rewards.answers.choices import compare_choice, compare_truth, option_texts
from prism_lite.rewards.answers.numbers import RELATIVE_TOLERANCE, Number
from prism_lite.rewards.answers.quantities import Quantity, parse_quantity, quantities_agree
from prism_lite.rewards.answers.structures import (
    compare_structures,
    parse_structure,
    strip_brackets,
)
from prism_lite.rewards.answers.text import clean, squeeze, word_form
from prism_lite.rewards.answers.units import parse_unit, strip_unit_markup

MAX_ANSWER_CHARACTERS = 2000  # a longer "answer" is a text: only equal words count
_MAX_DEPTH = 4


@dataclass(frozen=True)
class Verdict:
    """Whether the answers match, and why or why not in a few words.

    `timed_out` marks a symbolic comparison that was stopped at its limit and counts as wrong.
    """

    matches: bool
    why: str
    timed_out: bool = False


@dataclass
class _Question:
    """What one comparison may spend; shared by all entries of a list."""

    relative_tolerance: float
    left_s: float
    timed_out: bool = False


def compare_answers(
    predicted: str,
    gold: str | Sequence[str],
    *,
    choices: Sequence[str] = (),
    relative_tolerance: float = RELATIVE_TOLERANCE,
    time_limit_s: float = symbolic.TIME_LIMIT_S,
) -> Verdict:
    """Compare a prediction with the gold answer, or with each of several accepted ones.

    Args:
        predicted: the answer part of a completion.
        gold: the gold answer, or all accepted forms of it.
        choices: option texts from A on, with or without their letters, where the question has them.
        relative_tolerance: for numbers that are not both whole (see `numbers_agree`); chart tasks
            often take 0.05.
        time_limit_s: wall-clock limit of all symbolic work, in seconds.

    Returns:
        The first match, else the verdict on the first gold answer. An empty prediction or gold
        answer never matches.
    """
    if not isinstance(gold, str):
        verdicts = []
        for one in gold:
            verdict = compare_answers(
                predicted,
                one,
                choices=choices,
                relative_tolerance=relative_tolerance,
                time_limit_s=time_limit_s / len(gold),
            )
            if verdict.matches:
                return verdict
            verdicts.append(verdict)
        return verdicts[0] if verdicts else Verdict(False, "no gold answer")
    quick = _quick(predicted, gold)
    if quick is not None and (quick.matches or relative_tolerance <= RELATIVE_TOLERANCE):
        return quick
    question = _Question(relative_tolerance, time_limit_s)
    cleaned, gold_cleaned = clean(predicted), clean(gold)
    if not cleaned or not gold_cleaned:
        return Verdict(False, "empty prediction" if not cleaned else "empty gold answer")
    options = option_texts(choices) if choices else ()
    matches, why = _compare(cleaned, gold_cleaned, options, question, depth=0)
    return Verdict(matches, why, timed_out=not matches and question.timed_out)


def _quick(predicted: str, gold: str) -> Verdict | None:
    """Equal texts and whole numbers, without any parsing: what most rollouts of small tasks
    need.
    """
    predicted, gold = predicted.strip(), gold.strip()
    if predicted == gold:
        return Verdict(bool(gold), "same text" if gold else "empty prediction")
    if not predicted or not gold:
        return Verdict(False, "empty prediction" if not predicted else "empty gold answer")
    if predicted.isdigit() and gold.isdigit() and predicted.isascii() and gold.isascii():
        matches = predicted.lstrip("0") == gold.lstrip("0")  # int() refuses more than 4300 digits
        return Verdict(matches, "equal numbers" if matches else "numbers differ")
    return None


def _compare(
    predicted: str, gold: str, options: Sequence[str], question: _Question, depth: int
) -> tuple[bool, str]:
    if predicted == gold or squeeze(predicted) == squeeze(gold):
        return True, "same text"
    if depth > _MAX_DEPTH or max(len(predicted), len(gold)) > MAX_ANSWER_CHARACTERS:
        return _compare_words(predicted, gold)

    def same(left: str, right: str) -> bool:
        return _compare(clean(left), clean(right), (), question, depth + 1)[0]

    found = compare_choice(predicted, gold, options, same) if depth == 0 else None
    found = found or compare_truth(predicted, gold)
    if found:
        return found
    predicted, gold = _without_labels(strip_brackets(predicted), strip_brackets(gold))
    quantity, gold_quantity = parse_quantity(predicted), parse_quantity(gold)
    if quantity and gold_quantity:
        return quantities_agree(
            quantity, gold_quantity, relative_tolerance=question.relative_tolerance
        )
    structure = None if quantity else parse_structure(predicted)
    gold_structure = None if gold_quantity else parse_structure(gold)
    if structure and gold_structure:
        return compare_structures(structure, gold_structure, same)
    if word_form(predicted) == word_form(gold):
        return True, "same words"
    if (structure and gold_quantity) or (gold_structure and quantity):
        return False, "one value against several"
    return _compare_expressions(predicted, gold, quantity, gold_quantity, question)


def _compare_words(predicted: str, gold: str) -> tuple[bool, str]:
    same = word_form(predicted) == word_form(gold)
    return same, "same words" if same else "words differ"


_LABEL = re.compile(
    r"(?:(?:angle|length|area|perimeter|volume|distance|side|\\angle|∠|\\triangle|△)\s*)*"
    r"[A-Za-z]{1,4}'?(?:_\{?\w{1,3}\}?)?(?:\([a-z]\))?\s*(?:=|≈|\\approx)\s*(?=[^=])",
)


_OPTION = re.compile(r"[A-J]")
_EQUALS = re.compile(r"(?<![<>])=")


def _without_labels(predicted: str, gold: str) -> tuple[str, str]:
    """Without "x =" where only one side has it, or both have the same one; "x = 5" is not "y =
    5".
    """
    label, gold_label = _LABEL.match(predicted), _LABEL.match(gold)
    texts = [m.group().replace(" ", "") if m else "" for m in (label, gold_label)]
    bare = predicted[label.end() :] if label else predicted
    gold_bare = gold[gold_label.end() :] if gold_label else gold
    if _OPTION.fullmatch(bare) or _OPTION.fullmatch(gold_bare):  # "A = B" names two options
        return predicted, gold
    if "=" in bare or "=" in gold_bare or (texts[0] != texts[1] and all(texts)):
        return predicted, gold
    return bare, gold_bare


def _compare_expressions(
    predicted: str,
    gold: str,
    quantity: Quantity | None,
    gold_quantity: Quantity | None,
    question: _Question,
) -> tuple[bool, str]:
    """Ask math-verify where both sides may be expressions; units are taken off and must agree."""
    if bool(_EQUALS.search(predicted)) != bool(_EQUALS.search(gold)):
        return False, "an equation against a value"  # "2 + 2 = 5" must not count for its right side
    magnitude, unit = (None, quantity.unit) if quantity else _take_unit(predicted)
    gold_magnitude, gold_unit = (None, gold_quantity.unit) if gold_quantity else _take_unit(gold)
    latex = _number_latex(quantity.number) if quantity else symbolic.to_latex(magnitude or "")
    gold_latex = (
        _number_latex(gold_quantity.number)
        if gold_quantity
        else symbolic.to_latex(gold_magnitude or "")
    )
    if latex is None or gold_latex is None:
        return False, "words differ"
    if (quantity and quantity.noun) or (gold_quantity and gold_quantity.noun):
        return False, "words differ"
    gold_number = gold_quantity.number if gold_quantity else None
    if unit and gold_unit and unit != gold_unit:
        if unit.dimension != gold_unit.dimension:
            return False, "units conflict"
        if unit.offset or gold_unit.offset:
            return False, "units differ and are not converted for expressions"
        ratio = unit.factor / gold_unit.factor
        latex = rf"({latex})\cdot\frac{{{ratio.numerator}}}{{{ratio.denominator}}}"
    symbolic.start_worker()  # its start is not this question's time
    if question.left_s <= 0:
        question.timed_out = True
        return False, "no time left for this comparison"
    started = time.monotonic()
    result = symbolic.expressions_agree(
        latex,
        gold_latex,
        gold_number=gold_number,
        relative_tolerance=question.relative_tolerance,
        time_limit_s=question.left_s,
    )
    question.left_s -= time.monotonic() - started
    question.timed_out |= result.timed_out
    return result.matches, result.why


def _take_unit(text: str):
    r"""`5\sqrt{2} cm` as its magnitude and its unit; the whole text and None where there is no
    unit.
    """
    plain = strip_unit_markup(text)
    match = _TRAILING_UNIT.fullmatch(plain)
    # A bare letter glued to the rest is a variable ("2m"); a unit stands apart or is a word or
    # sign.
    if match and (
        plain != text or match.group(2) or len(match.group(3)) > 1 or match.group(3) in "°%"
    ):
        unit = parse_unit(match.group(3))
        if unit is not None and match.group(1).strip():
            return match.group(1).strip(), unit
    return text, None


_TRAILING_UNIT = re.compile(r"(.*(?:[\d)}\]]|\\pi))(\s*)([A-Za-z°%$€£][^\d]*(?:\^\s*\{?\d\}?)?)")


def _number_latex(number: Number) -> str:
    value = number.value
    if value.denominator == 1:
        return str(value.numerator)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
