# ruff: noqa: RUF001, SIM905 - look-alike characters are what this file is about
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
        "±": r"\pm ", "π": r"\pi ", "。": ".", "｡": ".", "【": "[", "】": "]",
        "「": '"', "」": '"', "『": '"', "』": '"', "《": '"', "》": '"',
    }
)  # fmt: skip
# NFKC would turn "①③" into "13": neighbours are entries of a list.
_CIRCLED = re.compile("([①-⑳])(?=[①-⑳])")
_CHINESE_REWRITES = (
    (r"(?<=[\x00-\x7f])\s*或者?\s*(?=[\x00-\x7f])", " or "),
    (r"(?<=[\x00-\x7f])\s*[和与及且]\s*(?=[\x00-\x7f])", " and "),
    (r"、", ", "),
)
_PICTOGRAPHS = re.compile(
    "^(?:[\u2600-\u2775\u2794-\u27bf\u2b50\U0001f300-\U0001faff]\ufe0f?\\s*)+(?=[\\w*$\\\\])"
)
_INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u00ad]")

_LATEX_REWRITES = (
    (r"\\(?:left|right|displaystyle|bigl|bigr|big|limits)(?![a-zA-Z])\.?", ""),
    (r"\\[dt]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"(?<=\d)(?:\{,\}|\\,|\\!,|,\\!)(?=\d{3}(?!\d))", ","),
    (r"\$(?=[^\s$])([^$]*[^\s$])\$(?!\d)|\\\(([^$]+?)\\\)", r"\1\2"),
    (r"\\[,;:! ]|~|\\quad|\\qquad", " "),
    (r"\\([%#&_${}])", r"\1"),
    (r"\\(?:text|mathrm|textrm|rm|operatorname|mbox|ce)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\(le|ge)(?:q|qslant)(?![a-zA-Z])", r"\\\1 "),
    (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])", "°"),
)
_WRAPPER = re.compile(
    r"""<answer>(.*)</answer> | \$\$([^$]+)\$\$ | \$([^$]+)\$ | \\\((.*)\\\) | \\\[(.*)\\\]
    | \*\*([^*]+)\*\* | __([^_]+)__ | `+([^`]+)`+ | "([^"]+)" | '([^']+)'""",
    re.DOTALL | re.VERBOSE,
)
_COMMAND_WRAPPER = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|mathrm|mathbf|mathit|rm)\s*\{")
# "3!" and "k!" are factorials, "\!" a LaTeX space and "..." more entries; after a word of three
# letters or with a vowel, or after a Chinese character, an exclamation mark ends a sentence.
_EXCLAMATION = (
    r"(?<![\\A-Za-z])(?:[^\W\d_]{3,}|[^\W\d_][eiouEIOU]|[eiouEIOU][^\W\d_]|[\u3400-\u9fff])!"
)
_SENTENCE_END = re.compile(rf"[;,]$|(?<!\.\.)\.$|{_EXCLAMATION}$")
_PREFIX = re.compile(
    r"(?:(?:so|thus|hence|therefore)[,\s]+)?(?:the\s+)?(?:(?:final|correct|right)\s+)?"
    r"(?:answer|result|option|choice)"
    r"(?:\s+is\s*:?|\s*:|\s+(?=\(?[A-J](?:[.:)]|\s*$)))\s*(?=\S)"
    r"|(?:所以|因此|故)?,?(?:(?:正确|最终|最后)的?)?(?:答案?|选项|结果)(?:应?[是为选]:?|:)\s*(?=\S)"
    r"|(?:所以|因此|故)?,?应?选:?\s*(?=[A-J](?![A-Za-z]))",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """Return an answer without wrappers and with one spelling per character; may be empty."""
    if not text.isascii():
        text = _CIRCLED.sub(r"\1, ", _INVISIBLE.sub("", text))
        text = _SUPERSCRIPTS.sub(r"^{\g<0>}", text)
        text = _VULGAR_FRACTION.sub(r" \g<0>", text).translate(_LOOK_ALIKES)
        text = unicodedata.normalize("NFKC", text).translate(_LOOK_ALIKES)
        text = _PICTOGRAPHS.sub("", replace_all(text, _CHINESE_REWRITES).strip())
    if "####" in text:  # GSM8K writes the answer after its explanation
        text = text.rpartition("####")[2]
    if r"\boxed" in text:
        text = _unbox(text)
    if r"\begin" in text:
        text = _MATRIX.sub(_write_matrix, text)
    return " ".join(_unwrap(replace_all(_unwrap(text), _LATEX_REWRITES)).split())


_MAX_BOXES = 16
_BOX = re.compile(r"\\boxed\s*\{")
_TAKES_BACK = re.compile(r"\b(?:not|never|wrong|incorrect|or)\b|n't\b", re.IGNORECASE)


def boxed_contents(text: str) -> list[str]:
    r"""Return the inside of every `\boxed{..}`; none where one is not closed or there are too many."""
    contents = []
    for match in _BOX.finditer(text):
        if len(contents) == _MAX_BOXES:
            return []
        end = closing_bracket(text, match.end() - 1)
        if end < 0:
            return []
        contents.append(text[match.end() : end])
    return contents


def _unbox(text: str) -> str:
    """Return the inside of the box that a text holds, or of equal ones; else the text.

    One box with nothing but mathematics before it keeps what follows, which may be its unit.
    """
    contents = boxed_contents(text)
    before, *_ = _BOX.split(text, maxsplit=1)
    if len(contents) == 1 and not re.search(r"\w", before):
        start = len(before)
        end = closing_bracket(text, text.index("{", start))
        return before + contents[0] + text[end + 1 :]
    outside = text
    for content in contents:
        outside = outside.replace(content, "", 1)
    is_clear = len({content.strip() for content in contents}) == 1
    return contents[0] if is_clear and not _TAKES_BACK.search(outside) else text


_MATRIX = re.compile(
    r"\\begin\s*\{([pbB]?matrix|array)\}\s*(?:\{[lcr|\s]*\})?(.*?)\\end\s*\{\1\}", re.DOTALL
)


def _write_matrix(match: re.Match[str]) -> str:
    """Write a LaTeX matrix as rows, "[[1, 2], [3, 4]]"."""
    lines = re.split(r"\\\\(?:\s*\[[^\]]*\])?", match[2].strip())
    rows = [[cell.strip() for cell in line.split("&")] for line in lines if line.strip()]
    return "[" + ", ".join("[" + ", ".join(row) + "]" for row in rows) + "]"


def _unwrap(text: str) -> str:
    """Remove what encloses an answer; wrappers nest: **$\boxed{3}$**."""
    for _ in range(8):
        text = inner = text.strip()
        while _SENTENCE_END.search(inner[-40:]):
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
    (r"[,;:?\"](?=\s|$)|(?<![\d)}])\.(?=\s|$)", " "),
    (rf"({_EXCLAMATION[:-1]})!(?=\s|$)", r"\1 "),
    (r"(?<=\d)\s+(?=[A-Za-z°%])|(?<=\.)\s+(?=\d)", ""),
)


_FORMULA = re.compile(r"(?:\(?[A-Z][a-z]?\d*\)?\d*)+")  # CO2, from \text{CO}_2
# After a name: "George III". A single letter may be an initial.
_ROMAN_NUMERALS: tuple[str, ...] = (
    *"II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII".split(),
)
_ROMAN_NUMERAL = re.compile(
    rf"(?<=[A-Za-z][a-z]{{2}}\s)(?:{'|'.join(n for n in _ROMAN_NUMERALS if len(n) > 1)})$"
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
    if "_" in text and _FORMULA.fullmatch(compact := re.sub(r"[\s_{}]", "", text)):
        text = compact
    text = " ".join(replace_all(text, _WORD_FORM_REWRITES).split())
    if match := _ROMAN_NUMERAL.search(text):
        text = text[: match.start()] + str(_ROMAN_NUMERALS.index(match[0]) + 2)
    return text.casefold()
