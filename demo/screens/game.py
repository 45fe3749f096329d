"""The game of alignment as HTML: a slider over steps, two needles, teacher and sample side by side.

All steps are in the page at once and `PLAYER` shows one of them, so that scrubbing asks nothing of the
server. Text of a model is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from demo.runs import samples
from demo.runs.game import CHANNELS, Step
from demo.screens import html
from demo.screens.pictures import picture_html
from demo.screens.story import truth_html

MAX_TOKENS = 300  # shown of a part
_PARTS = {"perception": "caption", "reasoning": "think and answer"}
_NEEDLES = {"perception": "caption", "reasoning": "think, answer"}

# The keys of a page: one listener for all games that the page will show.
PLAYER = """() => {
  const TICK_MS = 1400;
  const show = (game, index) => {
    const slider = game.querySelector('.game-slider');
    slider.value = index;
    game.querySelectorAll('.game-step').forEach((step, i) => { step.hidden = i != index; });
    const step = JSON.parse(game.dataset.steps)[index];
    game.querySelector('.game-number').textContent = step;
    slider.setAttribute('aria-valuetext', `step ${step}`);
    game.querySelectorAll('.needle').forEach(needle => {
      const value = JSON.parse(needle.dataset.values)[index];
      needle.classList.toggle('unknown', value === null);
      needle.querySelector('.hand').style.transform = `rotate(${180 * (value ?? 0.5) - 90}deg)`;
      needle.querySelector('b').textContent = value === null ? 'not logged' : value.toFixed(2);
    });
  };
  const stop = game => {
    clearInterval(game.timer);
    game.timer = null;
    const button = game.querySelector('.game-play');
    button.textContent = '▶ Play';
    button.setAttribute('aria-pressed', 'false');
  };
  document.addEventListener('input', event => {
    if (!event.target.matches('.game-slider')) return;
    const game = event.target.closest('.game');
    stop(game);
    show(game, Number(event.target.value));
  });
  document.addEventListener('click', event => {
    const button = event.target.closest('.game-play');
    if (!button) return;
    const game = button.closest('.game'), slider = game.querySelector('.game-slider');
    if (game.timer) return stop(game);
    if (slider.value === slider.max) show(game, 0);
    button.textContent = '❚❚ Pause';
    button.setAttribute('aria-pressed', 'true');
    game.timer = setInterval(() => {
      if (!game.isConnected) return clearInterval(game.timer);
      if (slider.value !== slider.max) show(game, Number(slider.value) + 1);
      if (slider.value === slider.max) stop(game);
    }, TICK_MS);
  });
}"""


def game_html(
    path: Path, steps: Sequence[Step], accuracies: Mapping[str, Mapping[int, float]]
) -> str:
    """Return the game with its first step shown, "" without steps.

    Args:
        accuracies: pair accuracy of each channel by step.
    """
    if not steps:
        return ""
    numbers = [step["step"] for step in steps]
    needles = "".join(
        _needle(name, [accuracies[name].get(number) for number in numbers]) for name in CHANNELS
    )
    full = _full_color(steps)
    shown = [number + 1 for number in numbers]  # counted from 1, as the training prints them
    sections = "".join(
        f'<section class="game-step"{" hidden" if i else ""}>{_step(path, step, full)}</section>'
        for i, step in enumerate(steps)
    )
    return (
        f'<div class="game" data-steps="{escape(json.dumps(shown))}"><div class="game-controls">'
        '<button type="button" class="game-play" aria-pressed="false">▶ Play</button>'
        f'<label>Alignment step <b class="game-number">{shown[0]}</b> of {shown[-1]}'
        f'<input type="range" class="game-slider" min="0" max="{len(numbers) - 1}" value="0" step="1" '
        f'aria-valuetext="step {shown[0]}"></label></div>'
        f'<div class="needles">{needles}</div>{sections}{_legend(full)}</div>'
    )


def _needle(name: str, values: Sequence[float | None]) -> str:
    """Return a half circle from 0 to 1 with a mark at 0.5 and a hand at the first value."""
    first = values[0]
    angle = 180 * (0.5 if first is None else first) - 90
    shown = "not logged" if first is None else f"{first:.2f}"
    return (
        f'<div class="needle{" unknown" if first is None else ""}" '
        f'data-values="{escape(json.dumps(values))}">'
        '<svg viewBox="0 0 120 74" aria-hidden="true"><path class="arc" d="M10 64 A50 50 0 0 1 110 64"/>'
        '<line class="half" x1="60" y1="8" x2="60" y2="24"/><text x="60" y="36">0.5</text>'
        '<text x="10" y="73">0</text><text x="110" y="73">1</text>'
        f'<line class="hand" x1="60" y1="64" x2="60" y2="20" style="transform: rotate({angle:.1f}deg)"/>'
        '<circle cx="60" cy="64" r="4"/></svg>'
        f"<p><b>{shown}</b> {name} <span>({_NEEDLES[name]})</span></p></div>"
    )


def _step(path: Path, step: Step, full: float) -> str:
    sample = samples.sample_by_id(path, step["prompt_id"])
    picture = picture_html(sample.pictures[0].open()) if sample and sample.pictures else ""
    truth = truth_html(sample) if sample is not None else ""
    teacher, own = step["teacher"], step["sample"]
    logged = own["logged"]
    if logged:
        scores = ", ".join(f"{name} {logged[name]:+.2f}" for name in CHANNELS)
        note = f"At step {step['step'] + 1} it scored {scores}; advantage {own['advantage']:+.2f}."
    else:
        note = f"Malformed, so not scored; advantage {own['advantage']:+.2f}."
    return (
        f'<div class="story-question">{picture}<div><h3>{escape(html.question(step["question"]))}</h3>'
        f"<p>{truth}</p></div></div>"
        f'<div class="game-sides">{_side("Teacher", teacher, full, "")}'
        f"{_side('Sample of the policy', own, full, note)}</div>"
    )


def _side(title: str, row: Mapping[str, Any], full: float, note: str) -> str:
    """Return a completion as strips of tokens, or as its text where no shares were computed."""
    if row["completion"] is None:
        body = "<p>The data no longer contain this prompt.</p>"
    elif "tokens" not in row:
        body = f'<div class="part">{escape(row["completion"])}</div>'
    else:
        body = "".join(_strip(name, row, full) for name in CHANNELS)
    note = f'<p class="why">{escape(note)}</p>' if note else ""
    return f'<article class="story-card"><h4>{escape(title)}</h4>{note}{body}</article>'


def _strip(name: str, row: Mapping[str, Any], full: float) -> str:
    tokens = row["tokens"][name]
    cells = "".join(_token(token, full) for token in tokens[:MAX_TOKENS])
    if len(tokens) > MAX_TOKENS:
        cells += f" [the first {MAX_TOKENS} of {len(tokens)} tokens]"
    return (
        f"<h5>{_PARTS[name].capitalize()}: {name} score {row[name]:+.2f}</h5>"
        f'<div class="strip">{cells}</div><p class="why">{escape(_largest(tokens))}</p>'
    )


def _token(token: Sequence[Any], full: float) -> str:
    text, share, expert, other = token
    css_class, style, title = "", "", "no share computed"
    if share is not None:
        css_class = " up" if share > 0 else " down"
        style = f' style="--share:{100 * min(1, abs(share) / full):.0f}%"'
        title = f"{share:+.2f} against {_named(other)}"
    number = "" if expert is None else f"<i>{expert}</i>"
    return (
        f'<span class="tok{css_class}"{style} title="{escape(title)}">{escape(_visible(text))}'
        f"{number}</span>"
    )


def _largest(tokens: Sequence[Sequence[Any]]) -> str:
    """Return the token that lowers the score most and the one that raises it most, in words."""
    scored = [token for token in tokens if token[1] is not None]
    if not scored:
        return ""
    lowest, highest = (function(scored, key=lambda t: t[1]) for function in (min, max))
    texts = []
    if lowest[1] < 0:
        texts.append(
            f"Lowers it most: {_named(lowest[0])}, {lowest[1]:+.2f} against {_named(lowest[3])}."
        )
    else:
        texts.append("No token lowers it.")
    if highest[1] > 0:
        texts.append(
            f"Raises it most: {_named(highest[0])}, {highest[1]:+.2f} against {_named(highest[3])}."
        )
    return " ".join(texts)


def _named(token: str) -> str:
    return f"“{_visible(token).strip() or 'space'}”"


def _visible(token: str) -> str:
    return token.replace("\n", "⏎")


def _full_color(steps: Sequence[Step]) -> float:
    """Return the share that has the full color: half of the largest one, at least 0.1."""
    shares = [
        abs(token[1])
        for step in steps
        for row in (step["teacher"], step["sample"])
        for tokens in row.get("tokens", {}).values()
        for token in tokens
        if token[1] is not None
    ]
    return max(0.1, round(max(shares, default=0.0) / 2, 1))


def _legend(full: float) -> str:
    return (
        '<p class="plot-help"><span class="tok up" style="--share:100%">raises</span> '
        '<span class="tok down" style="--share:100%">lowers</span> the score; full color from '
        f"{full:.1f} points. The number is the token's expert.</p>"
    )
