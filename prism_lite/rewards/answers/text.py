# ruff: noqa: RUF001 - look-alike characters are what this file is about
r"""Text of an answer: remove its wrappers and give equal characters one spelling.

`clean` comes first in every comparison. It keeps the meaning: it only removes wrappers (`$..$`,
`\boxed{..}`, `**..**`, "The answer is") and invisible characters, and replaces look-alikes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

# NFKC would turn "10²" into "102" and "3½" into "31/2", so both are marked before it.
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_VULGAR_FRACTION = re.compile("[¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
_LOOK_ALIKES = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‒": "-", "⁄": "/", "∕": "/", "÷": "/",
        "⋅": "·", "∙": "·", "•": "·", "º": "°", "˚": "°",
        "‘": "'", "’": "'", "′": "'", "“": '"', "”": '"', "″": '"',
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ",
        "±": r"\pm ", "π": r"\pi ",
    }
)  # fmt: skip
_INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u00ad]")

_LATEX_REWRITES = (
    (r"\\(?:left|right|displaystyle|bigl|bigr|big|limits)(?![a-zA-Z])\.?", ""),
    (r"\\[dt]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"(?<=\d)(?:\{,\}|\\,|\\!,|,\\!)(?=\d{3}(?!\d))", ","),
    (r"\$(?=[^\s$])([^$]*[^\s$])\$(?!\d)|\\\(([^$]+?)\\\)", r"\1\2"),
    (r"\\[,;:! ]|~|\\quad|\\qquad", " "),
    (r"\\([%#&_${}])", r"\1"),
    (r"\\(?:text|mathrm|textrm|rm|operatorname|mbox)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\(le|ge)(?:q|qslant)(?![a-zA-Z])", r"\\\1 "),
    (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])", "°"),
)
_WRAPPER = re.compile(
    r"""<answer>(.*)</answer> | \$\$([^$]+)\$\$ | \$([^$]+)\$ | \\\((.*)\\\) | \\\[(.*)\\\]
    | \*\*([^*]+)\*\* | __([^_]+)__ | `+([^`]+)`+ | "([^"]+)" | '([^']+)'""",
    re.DOTALL | re.VERBOSE,
)
_COMMAND_WRAPPER = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|mathrm|mathbf|mathit|rm)\s*\{")
# "3!" is a factorial, "\!" a LaTeX space and "..." more entries; the others only end a sentence.
_SENTENCE_END = re.compile(r"[;,]$|(?<!\.\.)\.$|(?<![\d)}\\])(?<!^\w)!$")
_PREFIX = re.compile(
    r"(?:(?:so|thus|hence|therefore)[,\s]+)?(?:the\s+)?(?:(?:final|correct|right)\s+)?"
    r"(?:answer|result|option|choice)"
    r"(?:\s+is\s*:?|\s*:|\s+(?=\(?[A-J](?:[.:)]|\s*$)))\s*(?=\S)",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """Return an answer without wrappers and with one spelling per character; may be empty."""
    if not text.isascii():
        text = _SUPERSCRIPTS.sub(r"^{\g<0>}", _INVISIBLE.sub("", text))
        text = _VULGAR_FRACTION.sub(r" \g<0>", text).translate(_LOOK_ALIKES)
        text = unicodedata.normalize("NFKC", text).translate(_LOOK_ALIKES)
    return " ".join(_unwrap(replace_all(_unwrap(text), _LATEX_REWRITES)).split())


def _unwrap(text: str) -> str:
    """Remove what encloses an answer; wrappers nest: **$\boxed{3}$**."""
    for _ in range(8):
        text = inner = text.strip()
        while _SENTENCE_END.search(inner[-3:]):
            inner = inner[:-1].rstrip()
        command = _COMMAND_WRAPPER.match(inner)
        if prefix := _PREFIX.match(inner):
            inner = inner[prefix.end() :]
        elif wrapper := _WRAPPER.fullmatch(inner):
            inner = wrapper[wrapper.lastindex or 0]
        elif command and closing_bracket(inner, command.end() - 1) == len(inner) - 1:
            inner = inner[command.end() : -1]
        if inner == text:
            break
        text = inner
    return text.strip()


def closing_bracket(text: str, start: int) -> int:
    """Return the index of the bracket that closes the one at `start`; -1 if none does.

    Brackets of any kind count as one depth, since those of an interval may differ: "[1, 2)"
    closes at its ")".
    """
    depth = 0
    for i, character in enumerate(text[start:], start):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return i
    return -1


_WORD_FORM_REWRITES = (
    # Before a single letter "A" is an option: "A C" must not become "C".
    (r"(?i)^(?:the|an|a)\s+(?=\w\w)", ""),
    (r"\s*([/()\[\]{}=<>|])\s*", r"\1"),
    (r"(?<=\d)\s*:\s*(?=\d)", ":"),
    (r"(?<=[^\W\d_]{2})-(?=\w)|(?<=[^\W\d_])-(?=[^\W\d_]{2})", " "),
    # After a digit "!" and "." may mean something; after a word they only end it.
    (r"[,;:?\"](?=\s|$)|(?<![\d)}])[.!](?=\s|$)", " "),
    (r"(?<=\d)\s+(?=[A-Za-z°%])|(?<=\.)\s+(?=\d)", ""),
)


def replace_all(text: str, rewrites: Iterable[tuple[str, str]]) -> str:
    """Return `text` after each (pattern, replacement) in turn."""
    for pattern, replacement in rewrites:
        text = re.sub(pattern, replacement, text)
    return text


@lru_cache(maxsize=4096)
def word_form(text: str) -> str:
    """Return `text` as words are compared: no case, articles, hyphens or sentence marks.

    "The T-shirt." is "t shirt"; "( 1 / 2 )" is "(1/2)".
    """
    return " ".join(replace_all(text, _WORD_FORM_REWRITES).split()).casefold()
