"""Multiple choice and yes/no: letters, option texts, and what a letter with a text claims.

"A", "(a)", "A. cat", "option A" and, where the options are known, "cat" may all say the same;
"A. dog" where A is the cat says two things and counts as wrong, and so does a list of every option.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from prism_lite.rewards.answers.text import clean, word_form


@dataclass(frozen=True)
class Choice:
    """An option letter (upper case) and the text written after it, if any."""

    letter: str
    text: str = ""


_LETTER = re.compile(r"\(?\[?([A-Ja-j])\]?\)?[.:]?")
_LETTER_AND_TEXT = re.compile(
    r"(\([A-Ja-j]\)|\[[A-J]\]|[A-J][.):]|[a-j]\)|[A-J]\s+-(?=\s)"
    r"|[A-J]\s+(?=\([a-zA-Z][^()]+\)$))[.:]?\s*(\S.*)",
    re.DOTALL,
)
_OR_ANOTHER = re.compile(r"\(?(?:or|and|not|maybe|but)\b", re.IGNORECASE)
_LETTERS = re.compile(r"\(?[A-J]\)?(?:\s*(?:,\s*and|,|;|&|/|\band\b)\s*\(?[A-J]\)?)+")
_COMPACT_LETTERS = re.compile(r"(?=..)A?B?C?D?E?F?G?H?")
_NEXT_MARKER = re.compile(r"(?:^|[\s(,;])([A-J])[).:](?=\s|$)")
_OPTION_LINE = re.compile(
    r"(?:^|(?<=[\s;,]))\(?([A-J])[).:]\s*(.+?)(?=(?:[\s;,]+\(?[A-J][).:]\s)|\n|$)"
)


@lru_cache(maxsize=4096)
def parse_choice(text: str) -> Choice | None:
    """Return the option that a cleaned answer names, or None."""
    if match := _LETTER.fullmatch(text):
        return Choice(match[1].upper())
    if match := _LETTER_AND_TEXT.fullmatch(text):
        return Choice(match[1].strip("()[].: -").upper(), clean(match[2]))
    return None


def _parse_letters(text: str) -> frozenset[str]:
    """Return several letters ("A, C", "A and C", in order also "AC"), or none."""
    is_compact = _COMPACT_LETTERS.fullmatch(text)
    is_list = is_compact or _LETTERS.fullmatch(text)
    return frozenset(re.findall(r"[A-J]" if is_compact else r"\b[A-J]\b", text) if is_list else "")


@lru_cache(maxsize=1024)
def options_in(prompt: str) -> tuple[str, ...]:
    """Return the option texts that a prompt lists from A on, or () where it lists none.

    They may be lines ("A. cat") or one line ("(A) cat (B) dog").
    """
    options: list[str] = []
    for letter, text in _OPTION_LINE.findall(prompt[-4000:]):
        if letter == "A":
            options = []
        if letter == chr(ord("A") + len(options)):
            options.append(text.strip())
    return tuple(options) if len(options) > 1 else ()


def option_texts(choices: Sequence[str]) -> tuple[str, ...]:
    """Return the options without their letters: "A. cat" and "cat" are both "cat"."""
    texts = []
    for letter, text in zip("ABCDEFGHIJ", (clean(str(choice)) for choice in choices), strict=False):
        choice = parse_choice(text)
        texts.append(choice.text if choice and choice.text and choice.letter == letter else text)
    return tuple(texts)


def compare_choice(
    predicted: str, gold: str, options: Sequence[str], same: Callable[[str, str], bool]
) -> bool | None:
    """Compare answers to a multiple-choice question; None where no letter is involved.

    Args:
        predicted: cleaned prediction.
        gold: cleaned gold answer.
        options: the option texts from A on, or () where they are not known.
        same: compares two texts as values (an option may be a number).
    """
    choice, gold_choice = parse_choice(predicted), parse_choice(gold)
    if gold_letters := _parse_letters(gold):
        letters = _parse_letters(predicted)
        return letters == gold_letters if letters or choice else None
    # Several options, or "B (or C)".
    if choice and (_NEXT_MARKER.search(choice.text) or _OR_ANOTHER.match(choice.text)):
        return False
    option_of = dict(zip("ABCDEFGHIJ", options, strict=False))
    if choice and not gold_choice:
        option = option_of.get(choice.letter)
        if not option:
            return True if choice.text and same(choice.text, gold) else None
        return (not choice.text or same(choice.text, option)) and same(option, gold)
    if not gold_choice:
        return None
    expected = gold_choice.text or option_of.get(gold_choice.letter, "")
    if not choice:
        is_same = word_form(predicted) == word_form(gold) or same(predicted, expected)
        return is_same if expected else None
    if not expected or not choice.text or same(choice.text, expected):
        return choice.letter == gold_choice.letter
    # "A. the left one" names no other option; "A. dog" where A is the cat does.
    others = [option for option in options if option and option != expected]
    contradicts = not options or any(
        same(choice.text, option) or _names(choice.text, option, expected) for option in others
    )
    return choice.letter == gold_choice.letter and not contradicts


def _names(text: str, option: str, expected: str) -> bool:
    """Check whether a text holds another option ("12 or 13") that is not part of the right one."""
    words, other, right = (f" {word_form(each)} " for each in (text, option, expected))
    return other in words and other not in right


_TRUTH: dict[str, bool] = dict.fromkeys(
    ("yes", "true", "yeah", "yep", "是", "是的", "对", "对的", "正确"), True
)
_TRUTH |= dict.fromkeys(("no", "false", "nope", "否", "不是", "不对", "错误", "错"), False)
_SAID_TRUTH = re.compile(
    r"(yes|no|true|false|yeah|yep|nope|是的?|对的?|正确|否|不[是对]|错误?)(?:\s*[,.;:!?-]\s*|$"
    r"|\s+(?=(?:it|there|they|s?he|the|this|that|we|these|those|because|since|as)\b))(.*)",
    re.IGNORECASE | re.DOTALL,
)


_HEDGE = re.compile(
    r"^[^?]*\?\s*\w|\b(?:opposite|maybe|perhaps|depends|wait|unsure|not sure)\b"
    r"|\bbut(?:\s+\w+)?\s+(?:yes|no|true|false)\b",
    re.IGNORECASE,
)


def compare_truth(predicted: str, gold: str) -> bool | None:
    """Compare with a gold answer that is yes, no, true or false; None where it is something else.

    The prediction may continue after its first word ("No, the bar is lower") but not take it back
    ("yes or no", "yes, no").
    """
    expected = _TRUTH.get(gold.casefold())
    match = _SAID_TRUTH.fullmatch(predicted)
    if expected is None or match is None:
        return None if expected is None else False
    if _HEDGE.search(predicted):
        return False
    words = [match[1], *re.findall(r"\w+", match[2])[:2]]
    return all(_TRUTH.get(word.lower(), expected) == expected for word in words)
