# ruff: noqa: RUF001 - look-alike signs are what this file is about
r"""Answers as text: what wraps an answer is taken off, what spells the same is spelt alike.

`clean` comes first in every comparison. It keeps the meaning: only wrappers (`$..$`, `\boxed{..}`,
`**..**`, "The answer is"), invisible characters and alternative code points of one sign go.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# NFKC would turn "10²" into "102" and "3½" into "31/2", so these two families are rewritten before
# it.
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_VULGAR = re.compile("[¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")

_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "﹣": "-",
        "⁄": "/", "∕": "/", "÷": "/",
        "⋅": "·", "∙": "·", "•": "·",
        "‘": "'", "’": "'", "′": "'", "“": '"', "”": '"', "″": '"',
        "º": "°", "˚": "°",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ",
        "±": r"\pm ", "π": r"\pi ", "√": "√", "，": ",", "：": ":", "；": ";",
    }
)  # fmt: skip
_INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u00ad]")

_LATEX_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\\(?:left|right|displaystyle|bigl|bigr|big|limits)(?![a-zA-Z])\.?"), ""),
    (re.compile(r"\\[dt]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"(?<=\d)(?:\{,\}|\\,|\\!,|,\\!)(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\$(?=[^\s$])([^$]*[^\s$])\$(?!\d)|\\\(([^$]+?)\\\)"), r"\1\2"),
    (re.compile(r"\\[,;:! ]|~|\\quad|\\qquad"), " "),
    (re.compile(r"\\([%#&_$])"), r"\1"),
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])"), r"\\ge "),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])"), "°"),
)
_WRAPPERS: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"<answer>(.*)</answer>",
        r"\$\$([^$]+)\$\$",
        r"\$([^$]+)\$",
        r"\\\((.*)\\\)",
        r"\\\[(.*)\\\]",
        r"\*\*([^*]+)\*\*",
        r"__([^_]+)__",
        r"`+([^`]+)`+",
        r'"([^"]+)"',
        r"'([^']+)'",
    )
)
_COMMAND_WRAPPER = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|mathrm|mathbf|mathit|rm)\s*\{")
_PREFIX = re.compile(
    r"(?:(?:so|thus|hence|therefore)[,\s]+)?(?:the\s+)?(?:(?:final|correct|right)\s+)?"
    r"(?:answer|result|option|choice)(?:\s+is\s*:?|\s*:|\s+(?=\(?[A-Ja-j]\)?[.:]?\s*$))\s*",
    re.IGNORECASE,
)
# Before a single letter "A" is an option: "A C" must not become "C".
_ARTICLE = re.compile(r"(?:the|an|a)\s+(?=\w\w)", re.IGNORECASE)


def clean(text: str) -> str:
    """The answer without wrappers, with one code point per sign; may be empty.

    Args:
        text: what stands in the answer part, or a gold answer.
    """
    text = text.strip()
    if not text.isascii():
        text = _to_plain_signs(text).strip()
    for _ in range(8):  # wrappers nest: **$\boxed{3}$**.
        inner = _unwrap(text)
        if inner == text:
            break
        text = inner
    if "\\" in text or "~" in text or text.count("$") > 1 or "{,}" in text:
        for pattern, replacement in _LATEX_REWRITES:
            text = pattern.sub(replacement, text)
        text = _unwrap(text.strip())
    return " ".join(text.split())


def _to_plain_signs(text: str) -> str:
    text = _INVISIBLE.sub("", text)
    text = _SUPERSCRIPT_RUN.sub(lambda run: f"^{{{run.group().translate(_SUPERSCRIPTS)}}}", text)
    text = _VULGAR.sub(lambda sign: " " + unicodedata.normalize("NFKC", sign.group()), text)
    return unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)


def _unwrap(text: str) -> str:
    text = text.strip()
    while text and text[-1] in ".!;,":
        # "3!" is a factorial, "\!" a LaTeX space; the other signs only end a sentence.
        if text[-1] == "!" and len(text) > 1 and (text[-2].isalnum() or text[-2] in ")}\\"):
            if not text[-2].isalpha() or len(text) == 2:
                break
        elif text.endswith("..."):
            break
        text = text[:-1].rstrip()
    prefix = _PREFIX.match(text)
    if prefix and prefix.end() < len(text):
        return text[prefix.end() :]
    for wrapper in _WRAPPERS:
        match = wrapper.fullmatch(text)
        if match:
            return match.group(1).strip()
    command = _COMMAND_WRAPPER.match(text)
    if command and closing_bracket(text, command.end() - 1) == len(text) - 1:
        return text[command.end() : -1].strip()
    return text


_CLOSING = {"(": ")", "[": "]", "{": "}"}


def closing_bracket(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`, any kind counting as one depth; -1 if
    none.

    Interval brackets may differ, so "[1, 2)" closes at its ")".
    """
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
            if depth == 0:
                return i
    return -1


_SPACE_AT_PUNCTUATION = re.compile(r"\s*([,;:/()\[\]{}=<>|])\s*")
_SPACE_DIGIT_LETTER = re.compile(r"(?<=\d)\s+(?=[A-Za-z°%])|(?<=[.])\s+(?=\d)")


@lru_cache(maxsize=4096)
def squeeze(text: str) -> str:
    """`text` with the spaces removed that stand beside punctuation: "( 1 , 2 )" is "(1,2)"."""
    return _SPACE_AT_PUNCTUATION.sub(r"\1", text)


_LETTERS_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=\w)|(?<=[^\W\d_])-(?=[^\W\d_]{2})")
# A sign after a digit may mean something ("5!", "5."), one after a word only ends it.
_SENTENCE_SIGNS = re.compile(r",(?=\s|$)|[;:?\"](?=\s|$)|(?<![\d)}])[.!](?=\s|$)")


@lru_cache(maxsize=4096)
def word_form(text: str) -> str:
    """How words are compared: no case, articles, hyphens or sentence signs ("The T-shirt." is "t
    shirt").
    """
    article = _ARTICLE.match(text)
    text = text[article.end() :] if article else text
    text = _LETTERS_HYPHEN.sub(" ", text)
    text = _SENTENCE_SIGNS.sub(" ", text)
    text = _SPACE_DIGIT_LETTER.sub("", text)
    return " ".join(text.split()).casefold()
