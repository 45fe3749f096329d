"""Compare a prediction with the gold answer: one verdict with its reason.

The cheapest reading that decides wins: same text, option letter, yes/no, what is read as written
(times, dates, ranges), number with unit, several entries, expression (math-verify), words. Odd text
raises nothing: an unreadable prediction is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from prism_lite.rewards.answers import quantities, sets, structures, symbolic
from prism_lite.rewards.answers.choices import compare_choice, compare_truth, option_texts
from prism_lite.rewards.answers.literals import compare_literal
from prism_lite.rewards.answers.numbers import RELATIVE_TOLERANCE, Number, numbers_agree
from prism_lite.rewards.answers.text import clean, word_form

_MAX_CHARACTERS = 2000  # of a longer answer only the words are compared
_MAX_DEPTH = 4  # of lists in lists


@dataclass(frozen=True)
class Verdict:
    """Whether the answers match, and why or why not in a few words.

    `undecided` marks a symbolic comparison that needs more processor time or memory than it may
    have: `matches` is False, but nothing is known.
    """

    matches: bool
    why: str
    undecided: bool = False


@dataclass
class _Budget:
    """Tolerance and processor time of one comparison; shared by all entries of a list."""

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
        time_limit_s: processor time that symbolic work may take, in seconds; the last question
            may take as much again.

    Returns:
        The first match, else an undecided verdict, else the one on the first gold answer. An empty
        prediction or gold answer never matches.
    """
    golds = [gold] if isinstance(gold, str) else gold
    verdicts = []
    for accepted in golds:
        budget = _Budget(relative_tolerance, time_limit_s)
        verdict = _verdict(predicted.strip(), accepted.strip(), choices, budget)
        if verdict.matches:
            return verdict
        verdicts.append(verdict)
    undecided = [verdict for verdict in verdicts if verdict.undecided]
    return (undecided or verdicts or [Verdict(False, "no gold answer")])[0]


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
    if not _REASON.search(gold):
        predicted = _REASON.sub("", predicted)
    options = option_texts(choices)
    try:
        restated = _RESTATED.fullmatch(predicted)
        if restated and "(" not in gold:
            both = (_compare(text, gold, options, budget, depth=0)[0] for text in restated.groups())
            if all(both):
                return Verdict(True, "same answer, twice")
        return Verdict(*_compare(predicted, gold, options, budget, depth=0))
    except symbolic.UndecidedError as error:
        return Verdict(False, str(error), undecided=True)


_REASON = re.compile(r"(?<=\S)\s*[,;.]?\s+(?:since|because)\s.*$", re.DOTALL)
_RESTATED = re.compile(r"([^()]*[^()\s])\s+\(([^()]+)\)")  # "3 (three)"


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
    if sets.is_empty_set(predicted) and sets.is_empty_set(gold):
        return True, "same set"
    if any("{" in text or r"\cup" in text for text in (predicted, gold)):
        predicted, gold = map(sets.as_intervals, (predicted, gold))
    predicted, gold = map(structures.strip_brackets, (predicted, gold))
    predicted, gold = _without_labels(predicted, gold)
    literal = compare_literal(predicted, gold, same)
    if literal is not None:
        return literal
    quantity = quantities.parse_quantity(predicted)
    gold_quantity = quantities.parse_quantity(gold, is_gold=True)
    if quantity and gold_quantity:
        return quantities.compare_quantities(quantity, gold_quantity, budget.relative_tolerance)
    structure = None if quantity else structures.parse_structure(predicted)
    gold_structure = None if gold_quantity else structures.parse_structure(gold)
    if structure and gold_structure:
        matches = structures.compare_structures(structure, gold_structure, same)
        return matches, "same entries" if matches else "entries differ"
    if word_form(predicted) == word_form(gold):
        if (quantity and quantity.unit) or (gold_quantity and gold_quantity.unit):
            return False, "units conflict"  # "5 A" and "5 a": only one of them is a unit
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
    if _SYMBOL.fullmatch(gold) and quantities.parse_quantity(predicted):
        return False, "a number against a letter"
    if _reorders_letters(predicted, gold):
        return False, "words differ"
    latex, unit = _latex_and_unit(predicted)
    gold_latex, gold_unit = _latex_and_unit(gold, is_gold=True)
    if latex is None or gold_latex is None:
        return False, "words differ"
    if unit == quantities.DEGREE and gold_unit is None and r"\pi" in gold_latex:
        gold_latex = rf"({gold_latex})\cdot\frac{{180}}{{\pi}}"
    elif gold_unit == quantities.DEGREE and unit is None and r"\pi" in latex:
        latex = rf"({latex})\cdot\frac{{180}}{{\pi}}"
    if unit and gold_unit and unit != gold_unit:
        if unit.dimension != gold_unit.dimension or unit.offset or gold_unit.offset:
            return False, "units conflict"
        latex = rf"({latex})\cdot{_fraction_latex(unit.factor / gold_unit.factor)}"
    if budget.remaining_s <= 0:
        raise symbolic.UndecidedError("no verdict within the time limit")
    reply = symbolic.ask(latex, gold_latex)
    budget.remaining_s -= reply["cpu_s"]
    if "values" not in reply:
        return reply["equal"], "equal expressions" if reply["equal"] else "expressions differ"
    value, gold_value = map(Decimal, reply["values"])
    scale = max(abs(value), abs(gold_value))
    if abs(value - gold_value) <= scale * Decimal("1e-15"):  # 30 digits were computed
        return True, "equal expressions"
    if max(abs(value.adjusted()), abs(gold_value.adjusted())) > _MAX_EXPONENT:
        return False, "expressions differ"
    number, gold_number = Number(Fraction(value)), Number(Fraction(gold_value))
    if gold_quantity := quantities.parse_quantity(gold, is_gold=True):
        gold_number = gold_quantity.number  # as written: its last digit sets the tolerance
    agree = numbers_agree(number, gold_number, budget.relative_tolerance)
    return agree, "equal within tolerance" if agree else "expressions differ"


_SYMBOL = re.compile(r"[A-Za-z]")  # a gold answer of "e" is a letter
_MAX_EXPONENT = 5000  # a fraction of more digits is not written out
_RUN = re.compile(r"(?<![A-Za-z\\])[a-z]{2,}")
_LABEL_AND_NUMBER = re.compile(r"[a-z]+[ -]+\d+")


def _reorders_letters(predicted: str, gold: str) -> bool:
    """Check for letters of a word in another order: "cat 3" and "act 3" are not products.

    In an equation, and two letters within an expression, they are.
    """
    if "=" in gold:
        return False
    min_letters = 2 if _LABEL_AND_NUMBER.fullmatch(gold) else 3
    runs, gold_runs = (
        {run for run in _RUN.findall(text) if len(run) >= min_letters} for text in (predicted, gold)
    )
    sorted_runs = {"".join(sorted(run)) for run in gold_runs - runs}
    return any("".join(sorted(run)) in sorted_runs for run in runs - gold_runs)


def _latex_and_unit(
    text: str, *, is_gold: bool = False
) -> tuple[str | None, quantities.Unit | None]:
    r"""Split `5\sqrt{2} cm` into its magnitude, None where that is not an expression, and unit."""
    if quantity := quantities.parse_quantity(text, is_gold=is_gold):
        latex = None if quantity.noun else _fraction_latex(quantity.number.value)
        return latex, quantity.unit
    match = _TRAILING_UNIT.fullmatch(text)
    unit = quantities.parse_unit(match[2]) if match else None
    return symbolic.to_latex(match[1] if match and unit else text), unit


def _fraction_latex(value: Fraction) -> str:
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
