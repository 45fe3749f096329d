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

Same = Callable[[str, str], bool]


@dataclass(frozen=True)
class Choice:
    """An option letter (upper case) and the text that stands with it, if any."""

    letter: str
    text: str = ""


_LETTER = re.compile(r"\(?\[?([A-Ja-j])\]?\)?[.:]?")
_LETTER_AND_TEXT = re.compile(
    r"(?:\(([A-Ja-j])\)|\[([A-J])\]|([A-J])[.):]|([a-j])\)|([A-J])\s+-(?=\s))[.:]?\s*(\S.*)",
    re.DOTALL,
)
_SPOKEN = re.compile(r"(?:option|choice|answer)\s+\(?([A-Ja-j])\)?(?:[.:,]\s*(.*))?", re.IGNORECASE)
_LETTERS = re.compile(r"\(?[A-J]\)?(?:\s*(?:,\s*and|,|;|&|\band\b)\s*\(?[A-J]\)?)+")
_COMPACT_LETTERS = re.compile(r"A?B?C?D?E?F?G?H?")
_NEXT_MARKER = re.compile(r"(?:^|[\s(,;])([A-J])[).:](?=\s|$)")
_OPTION_LINE = re.compile(
    r"(?:^|(?<=[\s;,]))\(?([A-J])[).:]\s*(.+?)(?=(?:[\s;,]+\(?[A-J][).:]\s)|\n|$)"
)


@lru_cache(maxsize=4096)
def parse_choice(text: str) -> Choice | None:
    """The option that a cleaned answer names, or None."""
    match = _LETTER.fullmatch(text)
    if match:
        return Choice(match.group(1).upper())
    match = _SPOKEN.fullmatch(text)
    if match:
        return Choice(match.group(1).upper(), (match.group(2) or "").strip())
    match = _LETTER_AND_TEXT.fullmatch(text)
    if match:
        *letters, rest = match.groups()
        return Choice(next(letter for letter in letters if letter).upper(), clean(rest))
    return None


def parse_letters(text: str, *, compact: bool = False) -> frozenset[str] | None:
    """Several letters ("A, C", "A and C"; with `compact` also "AC", in order), or None."""
    if _LETTERS.fullmatch(text):
        return frozenset(re.findall(r"[A-J]\b", text))
    if compact and len(text) > 1 and _COMPACT_LETTERS.fullmatch(text):
        return frozenset(text)
    return None


@lru_cache(maxsize=1024)
def options_in(prompt: str) -> tuple[str, ...]:
    """The option texts that a prompt lists from A on ("A. cat" lines or "(A) cat (B) dog"); else
    ().
    """
    found = _OPTION_LINE.findall(prompt[-4000:])
    options: list[str] = []
    for letter, text in found:
        if letter == "A":
            options = []
        if letter == chr(ord("A") + len(options)):
            options.append(text.strip())
    return tuple(options) if len(options) > 1 else ()


def option_texts(choices: Sequence[str]) -> tuple[str, ...]:
    """The options without their letters: "A. cat" and "cat" are both "cat"."""
    texts = []
    for i, choice in enumerate(choices):
        text = clean(str(choice))
        parsed = parse_choice(text)
        is_marked = parsed is not None and parsed.text and parsed.letter == chr(ord("A") + i)
        texts.append(parsed.text if parsed and is_marked else text)
    return tuple(texts)


def compare_choice(
    predicted: str, gold: str, options: Sequence[str], same: Same
) -> tuple[bool, str] | None:
    """Verdict on an answer to a multiple-choice question, or None where no letter is involved.

    Args:
        predicted: cleaned prediction.
        gold: cleaned gold answer.
        options: the option texts from A on, or () where they are not known.
        same: compares two texts as values (an option may be a number).
    """
    gold_letters = parse_letters(gold, compact=True)
    if gold_letters:
        letters = parse_letters(predicted, compact=True)
        if letters is None and parse_choice(predicted):
            return False, "one letter of several"
        return None if letters is None else (letters == gold_letters, "set of letters")
    gold_choice, choice = parse_choice(gold), parse_choice(predicted)
    if gold_choice is None and choice is None:
        return None
    if gold_choice and parse_letters(predicted):
        return False, "several letters"
    if gold_choice is None:
        assert choice is not None
        return _letter_for_text(choice, gold, options, same)
    expected = gold_choice.text or _option(options, gold_choice.letter)
    if choice is None:
        if not expected:
            return None
        matches = same(predicted, expected) or word_form(predicted) == word_form(gold)
        return matches, "text of the option" if matches else "not the text of the option"
    if choice.letter != gold_choice.letter:
        return False, "another letter"
    if choice.text and _NEXT_MARKER.search(choice.text):
        return False, "several options"
    if choice.text and expected and not same(choice.text, expected):
        is_other = any(same(choice.text, option) for option in options)
        if is_other or not options:
            return False, "letter and text disagree"
    return True, "same letter"


def _letter_for_text(
    choice: Choice, gold: str, options: Sequence[str], same: Same
) -> tuple[bool, str] | None:
    """The gold answer is a text, the prediction names a letter."""
    option = _option(options, choice.letter)
    if choice.text and _NEXT_MARKER.search(choice.text):
        return False, "several options"
    if not option:
        if choice.text and same(choice.text, gold):
            return True, "text beside the letter"
        return None
    if choice.text and not same(choice.text, option):
        return False, "letter and text disagree"
    matches = same(option, gold)
    return matches, "letter of the gold text" if matches else "letter of another option"


def _option(options: Sequence[str], letter: str) -> str:
    index = ord(letter) - ord("A")
    return options[index] if index < len(options) else ""


_TRUTH = {
    "yes": True,
    "true": True,
    "yeah": True,
    "yep": True,
    "no": False,
    "false": False,
    "nope": False,
}
_GOLD_TRUTH = re.compile(r"(yes|no|true|false)", re.IGNORECASE)
_SAID_TRUTH = re.compile(
    r"(yes|no|true|false|yeah|yep|nope)(?:\s*[,.;:!-]\s*|\s+(?=(?:it|there|they|he|she|the|this|that|we|"
    r"these|those|because|since|as)\b)|$)(.*)",
    re.IGNORECASE | re.DOTALL,
)
_TRUTH_WORD = re.compile(r"\b(?:yes|no|true|false|nope|yeah|yep)\b", re.IGNORECASE)


def compare_truth(predicted: str, gold: str) -> tuple[bool, str] | None:
    """Verdict where the gold answer is yes, no, true or false; None where it is something else.

    The prediction may go on after its first word ("No, the bar is lower") but not take it back
    ("yes or no", "yes, no").
    """
    gold_match = _GOLD_TRUTH.fullmatch(gold)
    if not gold_match:
        return None
    match = _SAID_TRUTH.fullmatch(predicted)
    if not match:
        matches = word_form(predicted) == word_form(gold)
        return matches, "same words" if matches else "neither yes nor no"
    said = _TRUTH[match.group(1).lower()]
    first_rest = " ".join(match.group(2).split()[:2])
    if any(_TRUTH[word.lower()] != said for word in _TRUTH_WORD.findall(first_rest)):
        return False, "both yes and no"
    matches = said == _TRUTH[gold_match.group(1).lower()]
    return matches, "same truth value" if matches else "opposite truth value"
