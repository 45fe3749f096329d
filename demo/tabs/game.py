"""The game of alignment, at the top of tab Discriminator."""

from __future__ import annotations

from typing import Any

import gradio as gr

from demo.runs import folder, game
from demo.screens import html
from demo.screens.game import PLAYER, game_html
from demo.site import Header, Site, connect

_ABOUT = (
    "The teacher's completion, and the first one that the policy sampled at a step of alignment, for the "
    "step's first prompt: not chosen. Needles: in which share of the step's pairs the discriminator "
    "scored the teacher higher; at 0.5 it cannot distinguish them."
)
_SHARES = (
    "The discriminators of earlier steps are not stored: the scores above the tokens, their shares and "
    "experts are those of the discriminator at the end of alignment. A token's share is the score minus "
    "the score with the likeliest other token in its place; shares do not sum to the score. The expert is "
    "the one with the largest weight in the last layer."
)
_NO_SHARES = "The tokens' shares of the scores are not computed yet for this run."
_NO_GAME = "No game yet: it starts with the first step of alignment, if a discriminator scores it."


def build(site: Site, header: Header) -> None:
    """Lay out the game and connect its events."""
    gr.HTML("<h2>The game, step by step</h2>")
    screen = gr.HTML(elem_id="game")
    note = gr.HTML(elem_id="game-note")
    compute = gr.Button(
        "Compute the tokens' shares with this run's model", visible=False, elem_id="game-compute"
    )
    outputs = [screen, note, compute]

    def show_run(run_id: str) -> tuple[Any, ...]:
        path = site.path(run_id)
        steps = game.steps_of(path)
        text = (
            f"{_ABOUT} {_SHARES if game.has_shares(steps) else _NO_SHARES}" if steps else _NO_GAME
        )
        can_compute = bool(steps) and not game.has_shares(steps) and folder.is_finished(path)
        can_compute &= folder.has_discriminator(path, "align") and not site.home.is_shared
        return (
            game_html(path, steps, game.pair_accuracies(path)), html.note(text),
            gr.Button(visible=can_compute),
        )  # fmt: skip

    def compute_shares(run_id: str) -> tuple[Any, ...]:
        from demo.record import write_game  # imports torch

        path = site.path(run_id)
        model = site.load_model(path)
        with site.models.lock:
            write_game(model, path, path)
        return show_run(run_id)

    header.on_run(show_run, outputs)
    connect(compute.click, compute_shares, [header.run_choice], outputs, is_slow=True)
    header.opened.then(None, None, None, js=PLAYER, queue=False, api_visibility="private")
