"""Sampling for many prompts without an update: evaluation, panels, what a policy answers before a stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from prism_lite.config import SamplingConfig
from prism_lite.models import placement
from prism_lite.models.backbone import Backbone
from prism_lite.processes import num_processes
from prism_lite.sampling.decoder import dense_bytes
from prism_lite.sampling.rollouts import MOST_ROWS, decoder_for_sampling, sample_with, token_bytes
from prism_lite.sampling.token_step import check_schedule
from prism_lite.types import Group, Sample


def sample_in_pieces(
    backbone: Backbone,
    samples: Sequence[Sample],
    *,
    with_progress: Callable[[Sequence[Sequence[Sample]], str], Iterable[Sequence[Sample]]],
    description: str,
    group_size: int,
    sampling: SamplingConfig,
    seed: tuple[object, ...],
) -> list[Group]:
    """`sample_groups` for many prompts: piece by piece, so that progress shows and a stop is obeyed.

    The weights must not change meanwhile: they are read once. On a card rows come from the memory that is
    free (`rows_without_training`).

    Args:
        with_progress: yields the pieces and shows `description` (`RunFolder.with_progress`).
    """
    max_rows = rows_without_training(backbone, group_size, sampling)
    sampling = dataclasses.replace(sampling, max_rows=max_rows)
    size = max(1, (sampling.max_rows or MOST_ROWS) // group_size) * num_processes()
    pieces = [samples[start : start + size] for start in range(0, len(samples), size)]
    num_prompts = min(size, len(samples))
    decoder = decoder_for_sampling(backbone, num_prompts, group_size, sampling)
    return [
        group
        for piece in with_progress(pieces, description)
        for group in sample_with(backbone, decoder, piece, group_size, sampling, seed)
    ]


def rows_without_training(backbone: Backbone, group_size: int, sampling: SamplingConfig) -> int:
    """Return the rows for many prompts without an update: on a card more where memory is free.

    These are evaluations, panels, and what the SFT policy answers before a stage. `sampling.max_rows` is
    for a step's rollouts; a token costs nearly the same for more rows. Dense weights come first: they save
    more than rows do.
    """
    if backbone.device.type != "cuda" or sampling.max_rows == 0:
        return sampling.max_rows
    num_tokens = sampling.max_completion_tokens + backbone.config.max_prompt_tokens / group_size
    row_bytes = num_tokens * token_bytes(backbone)
    row_bytes += 4 * 4 * backbone.core.config.text_config.vocab_size
    room = placement.USED_SHARE * placement.free_bytes(backbone.device)
    if sampling.dense_weights != "never":
        room -= dense_bytes(backbone.core)
    _, multiple = check_schedule(backbone.device)
    num_rows = min(MOST_ROWS, int(room / row_bytes)) // multiple * multiple
    return max(sampling.max_rows, num_rows)
