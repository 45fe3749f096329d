"""The drift meter's figures for their reader: a line for the console, a table for the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prism_lite.types import EVALUATED_STAGES

# Figures of results.json (stages/drift.py): title, format.
_COLUMNS = {
    "perception_errors": ("captions wrong", ".3f"),
    "reasoning_errors_given_caption": ("thinks wrong given the caption", ".3f"),
    "token_difference": ("tokens", "+.1f"),
    "bullet_difference": ("bullets", "+.2f"),
    "step_difference": ("steps", "+.2f"),
    "teacher_js_words": ("JS words", ".3f"),
    "teacher_js_bigrams": ("JS bigrams", ".3f"),
    "teacher_distance": ("energy distance", ".4f"),
    "teacher_distance_chance": ("by chance", ".4f"),
    "teacher_p": ("p", ".3f"),
    "kl_to_start": ("KL to start", ".3f"),
}
_IN_LINE = (
    "perception_errors", "reasoning_errors_given_caption", "token_difference", "teacher_js_bigrams",
    "teacher_p", "kl_to_start",
)  # fmt: skip
HOW_TO_READ = """\
Compare each row with the base's. Captions and thinks: shares of the well-formed completions. Tokens, \
bullets, steps: the policy minus the teacher's text of the same held-out row. JS: Jensen-Shannon distance \
of word counts to the teacher's text (0 equal, 1 disjoint). Energy distance: of n-grams, beside what \
chance gives, with the p-value of the permutation test (0.001 is the smallest it can give). KL to start: \
nats per token between the policy and the one that the stage started from."""


def drift_line(figures: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Return one line about an evaluated policy, each figure with the base's in parentheses."""
    cells = []
    for name in _IN_LINE:
        if name not in figures:
            continue
        title, _ = _COLUMNS[name]
        of_base = f" (base {_text(base, name)})" if name in base else ""
        cells.append(f"{title} {_text(figures, name)}{of_base}")
    return f"      drift: {', '.join(cells) or 'nothing to measure it on'}"


def drift_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the stages' figures; no rows where the drift was not measured."""
    drift = results.get("drift", {})
    names = [name for name in _COLUMNS if any(name in figures for figures in drift.values())]
    if not names:
        return [], []
    rows = [
        [stage, *(_text(drift[stage], name) for name in names)]
        for stage in dict.fromkeys((*EVALUATED_STAGES, *drift))
        if stage in drift
    ]
    return ["drift", *(_COLUMNS[name][0] for name in names)], rows


def drift_section(results: Mapping[str, Any]) -> str:
    """Return a section of the model card: the table of the stages, and how to read it."""
    headers, rows = drift_table(results)
    if not rows:
        return ""
    lines = [headers, ["---"] * len(headers), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"\n{table}\n\n{HOW_TO_READ}\n"


def _text(figures: Mapping[str, Any], name: str) -> str:
    return format(figures[name], _COLUMNS[name][1]) if name in figures else "-"
