"""Compare a prediction with the gold answer: one verdict with its reason.

The cheapest reading that decides wins: same text, option letter, yes/no, number with unit, several
entries, expression (math-verify), words. Odd text raises nothing: an unreadable prediction is
wrong.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from prism_lite.rewards.answers import quantities, structures, symbolic
from prism_lite.rewards.answers.choices import compare_choice, compare_truth, option_texts
from prism_lite.rewards.answers.numbers import RELATIVE_TOLERANCE, Number, numbers_agree
from prism_lite.rewards.answers.text import clean, word_form

_MAX_CHARACTERS = 2000  # of a longer answer only the words are compared
_MAX_DEPTH = 4  # of lists in lists


@dataclass(frozen=True)
class Verdict:
    """Whether the answers match, and why or why not in a few words.

    `timed_out` marks a symbolic comparison that was stopped at its limit and counts as wrong.
    """

    matches: bool
    why: str
    timed_out: bool = False


@dataclass
class _Budget:
    """Tolerance and time of one comparison; shared by all entries of a list."""

    relative_tolerance: float
    remaining_s: float


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
        relative_tolerance: for numbers that are not both integers (see `numbers_agree`); chart
            tasks often take 0.05.
        time_limit_s: wall-clock limit of all symbolic work, in seconds.

    Returns:
        The first match, else the verdict on the first gold answer. An empty prediction or gold
        answer never matches.
    """
    golds = [gold] if isinstance(gold, str) else gold
    verdicts = []
    for accepted in golds:
        budget = _Budget(relative_tolerance, time_limit_s / len(golds))
        verdict = _verdict(predicted.strip(), accepted.strip(), choices, budget)
        if verdict.matches:
            return verdict
        verdicts.append(verdict)
    return verdicts[0] if verdicts else Verdict(False, "no gold answer")


def _verdict(predicted: str, gold: str, choices: Sequence[str], budget: _Budget) -> Verdict:
    if predicted == gold and gold:
        return Verdict(True, "same text")
    is_exact = budget.relative_tolerance <= RELATIVE_TOLERANCE
    if is_exact and _is_integer(predicted) and _is_integer(gold):
        # Most rollouts of small tasks need nothing more. int() refuses more than 4300 digits.
        matches = predicted.lstrip("0") == gold.lstrip("0")
        return Verdict(matches, "equal numbers" if matches else "numbers differ")
    predicted, gold = clean(predicted), clean(gold)
    if not predicted or not gold:
        return Verdict(False, "empty gold answer" if predicted else "empty prediction")
    try:
        return Verdict(*_compare(predicted, gold, option_texts(choices), budget, depth=0))
    except TimeoutError:
        return Verdict(False, "no verdict within the time limit", timed_out=True)


def _is_integer(text: str) -> bool:
    return text.isdigit() and text.isascii()


def _compare(
    predicted: str, gold: str, options: Sequence[str], budget: _Budget, depth: int
) -> tuple[bool, str]:
    if predicted == gold:
        return True, "same text"
    if depth > _MAX_DEPTH or max(len(predicted), len(gold)) > _MAX_CHARACTERS:
        matches = word_form(predicted) == word_form(gold)
        return matches, "same words" if matches else "words differ"

    def same(left: str, right: str) -> bool:
        return _compare(clean(left), clean(right), (), budget, depth + 1)[0]

    matches = compare_choice(predicted, gold, options, same) if depth == 0 else None
    if matches is not None:
        return matches, "same option" if matches else "another option"
    matches = compare_truth(predicted, gold)
    if matches is not None:
        return matches, "same truth value" if matches else "another truth value"
    predicted, gold = map(structures.strip_brackets, (predicted, gold))
    predicted, gold = _without_labels(predicted, gold)
    quantity, gold_quantity = map(quantities.parse_quantity, (predicted, gold))
    if quantity and gold_quantity:
        return quantities.compare_quantities(quantity, gold_quantity, budget.relative_tolerance)
    structure = None if quantity else structures.parse_structure(predicted)
    gold_structure = None if gold_quantity else structures.parse_structure(gold)
    if structure and gold_structure:
        matches = structures.compare_structures(structure, gold_structure, same)
        return matches, "same entries" if matches else "entries differ"
    if word_form(predicted) == word_form(gold):
        return True, "same words"
    if (structure and gold_quantity) or (gold_structure and quantity):
        return False, "one value against several"
    return _compare_expressions(predicted, gold, budget)


_LABEL = re.compile(
    r"^(?:(?:angle|length|area|perimeter|volume|distance|side|\\angle|∠|\\triangle|△)\s*)*"
    r"[A-Za-z]{1,4}'?(?:_\{?\w{1,3}\}?)?(?:\([a-z]\))?\s*(?:=|≈|\\approx)\s*(?=[^=])",
)
_OPTION = re.compile(r"[A-J]")
_EQUALS = re.compile(r"(?<![<>])=")
# A letter attached to a number is a variable ("2m"); a unit is separate, a word or a symbol.
_TRAILING_UNIT = re.compile(
    r"(.*(?:[\d)}\]]|\\pi))(?:\s+|(?=[°%]|..))([A-Za-z°%$€£]\D*(?:\^\s*\{?\d\}?)?)"
)


def _without_labels(predicted: str, gold: str) -> tuple[str, str]:
    """Remove "x =" where only one side has it, or both the same; "x = 5" is not "y = 5"."""
    bare, gold_bare = _LABEL.sub("", predicted), _LABEL.sub("", gold)
    label = predicted.removesuffix(bare).replace(" ", "")
    gold_label = gold.removesuffix(gold_bare).replace(" ", "")
    labels_conflict = label and gold_label and label != gold_label
    names_two_options = _OPTION.fullmatch(bare) or _OPTION.fullmatch(gold_bare)  # "A = B"
    if labels_conflict or names_two_options or "=" in bare + gold_bare:
        return predicted, gold
    return bare, gold_bare


def _compare_expressions(predicted: str, gold: str, budget: _Budget) -> tuple[bool, str]:
    """Ask math-verify where both sides may be expressions; their units must agree."""
    if bool(_EQUALS.search(predicted)) != bool(_EQUALS.search(gold)):
        return False, "an equation against a value"  # "2 + 2 = 5" must not count for its right side
    latex, unit = _latex_and_unit(predicted)
    gold_latex, gold_unit = _latex_and_unit(gold)
    if latex is None or gold_latex is None:
        return False, "words differ"
    if unit and gold_unit and unit != gold_unit:
        if unit.dimension != gold_unit.dimension or unit.offset or gold_unit.offset:
            return False, "units conflict"
        latex = rf"({latex})\cdot{_fraction_latex(unit.factor / gold_unit.factor)}"
    symbolic.start_worker()  # its start does not count as this comparison's time
    started = time.monotonic()
    reply = symbolic.ask(latex, gold_latex, budget.remaining_s)
    budget.remaining_s -= time.monotonic() - started
    if "values" not in reply:
        return reply["equal"], "equal expressions" if reply["equal"] else "expressions differ"
    number, gold_number = (Number(Fraction(value)) for value in reply["values"])
    if gold_quantity := quantities.parse_quantity(gold):
        gold_number = gold_quantity.number  # as written: its last digit sets the tolerance
    if abs(number.value - gold_number.value) <= Fraction(1, 10**15):  # 30 digits were computed
        return True, "equal expressions"
    agree = numbers_agree(number, gold_number, budget.relative_tolerance)
    return agree, "equal within tolerance" if agree else "expressions differ"


def _latex_and_unit(text: str) -> tuple[str | None, quantities.Unit | None]:
    r"""Split `5\sqrt{2} cm` into its magnitude, None where that is not an expression, and unit."""
    if quantity := quantities.parse_quantity(text):
        latex = None if quantity.noun else _fraction_latex(quantity.number.value)
        return latex, quantity.unit
    match = _TRAILING_UNIT.fullmatch(text)
    unit = quantities.parse_unit(match[2]) if match else None
    return symbolic.to_latex(match[1] if match and unit else text), unit


def _fraction_latex(value: Fraction) -> str:
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
