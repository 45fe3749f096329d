"""A column map for a file of no known format, from its own names and values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prism_lite.data.formats.base import is_empty, parse_cell
from prism_lite.data.formats.row_pictures import holds_picture

_HINTS = {
    "choices": re.compile(r".*(?:choice|option|candidate).*"),
    "answer": re.compile(
        r".*(?:answer|solution|label|gold|truth|target|correct|result|response).*"
    ),
    "prompt": re.compile(r".*(?:question|query|problem|prompt|instruction|task|ask|text).*"),
}


def propose_columns(fields: Mapping[str, Any]) -> str:
    """Return a map such as "{prompt: frage, answer: loesung}", guessed from names, then values."""
    left = {name: value for name, value in fields.items() if not is_empty(value)}
    chosen = {"images": next((n for n in left if holds_picture(n, left[n])), None)}
    left.pop(chosen["images"] or "", None)
    for ours, hint in _HINTS.items():
        chosen[ours] = next((name for name in left if hint.fullmatch(name)), None)
        left.pop(chosen[ours] or "", None)
    lists = [name for name, value in left.items() if isinstance(parse_cell(value), list)]
    texts = [name for name, value in left.items() if isinstance(value, str | int | float)]
    if not chosen["prompt"] and texts:
        chosen["prompt"] = max(texts, key=lambda name: len(str(left[name])))
        texts.remove(chosen["prompt"])
    chosen["answer"] = chosen["answer"] or next(iter(texts), None)
    chosen["choices"] = chosen["choices"] or next(iter(lists), None)
    names = ("prompt", "images", "choices", "answer")
    return f"{{{', '.join(f'{ours}: {chosen[ours]}' for ours in names if chosen[ours])}}}"
