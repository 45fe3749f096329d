"""Sampling groups of completions: each prompt is encoded once, its rows decode side by side.

A prompt's keys and values are stored once and shared by its rows (kv_cache.py). Rows of all prompts decode
together, whatever the prompts' lengths, and finished rows leave the batch. Every rollout draws from its own
random numbers, fixed before decoding starts, so its tokens do not depend on its neighbours. (Its logits do
in the last float32 digits: other batch shapes sum in another order.)

Shape letters: R rows (rollouts), B prompts, V vocabulary, F prompt tokens end to end, C completion tokens,
L positions, d head size, D hidden.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_lite import parts
from prism_lite.config import SamplingConfig
from prism_lite.models.backbone import Backbone
from prism_lite.models.packing import greedy_batches
from prism_lite.models.prompts import Prompt
from prism_lite.sampling.decoder import (
    LeanDecoder,
    dense_bytes,
    lean_decoder,
    prefill,
    run_lean_decoder,
)
from prism_lite.sampling.draw import draw_tokens
from prism_lite.sampling.kv_cache import GroupCache, PromptBucket, bucket_prompts, pad_prompts
from prism_lite.seeding import generator_for
from prism_lite.types import Group, NotFiniteError, Rollout, Sample

MOST_ROWS = 512  # decoded side by side if nothing else limits them
_DROP_SHARE = 1 / 8  # finished rows are dropped when they are this share of the batch


@dataclass(frozen=True)
class RowSpan:
    """Rollouts `first` to `first + count - 1` of one prompt."""

    prompt: int
    first: int
    count: int


def sample_groups(
    backbone: Backbone,
    samples: Sequence[Sample],
    *,
    group_size: int,
    sampling: SamplingConfig,
    seed: tuple[object, ...],
) -> list[Group]:
    """Draw `group_size` completions of every prompt under the active role.

    Args:
        samples: the prompts, one group each.
        sampling: temperature (0 is greedy), truncation, longest completion, rows decoded side by side.
        seed: with the prompt's id and the rollout's number it determines each rollout; a prompt that
            comes again continues the numbers.

    Returns:
        One Group per sample, in order. Sampling log-probs and entropies are of the distribution drawn
        from (see `draw_tokens`).
    """
    prompts = [backbone.prompt(sample) for sample in samples]
    backbone.core.eval()
    dense = _holds_dense_weights(backbone, sampling)
    decoder = lean_decoder(
        backbone.core, dense=dense, float32_residual=backbone.precision.float32_residual
    )
    max_rows = sampling.max_rows or rows_that_fit(backbone, prompts, sampling)
    ids = [prompt.id for prompt in prompts]
    first_number = [group_size * ids[:i].count(name) for i, name in enumerate(ids)]
    rollouts: list[list[Rollout]] = [[] for _ in prompts]
    for spans in split_rows(len(prompts), group_size, max_rows):
        batch = [prompts[span.prompt] for span in spans]
        uniforms = [
            [
                _uniform(sampling, *seed, prompt.id, first_number[span.prompt] + number)
                for number in range(span.first, span.first + span.count)
            ]
            for span, prompt in zip(spans, batch, strict=True)
        ]
        decoded = _decode(backbone, decoder, batch, uniforms, sampling)
        for span, rows in zip(spans, decoded, strict=True):
            rollouts[span.prompt] += rows
    return [Group(sample, tuple(group)) for sample, group in zip(samples, rollouts, strict=True)]


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

    Args:
        with_progress: yields the pieces and shows `description` (`RunFolder.with_progress`).
    """
    size = max(1, (sampling.max_rows or MOST_ROWS) // group_size)
    pieces = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [
        group
        for piece in with_progress(pieces, description)
        for group in sample_groups(
            backbone, piece, group_size=group_size, sampling=sampling, seed=seed
        )
    ]


def split_rows(num_prompts: int, group_size: int, max_rows: int) -> list[list[RowSpan]]:
    """Split into batches of at most `max_rows` rollouts; only a group larger than that is split."""
    spans = (
        RowSpan(prompt, first, min(max_rows, group_size - first))
        for prompt in range(num_prompts)
        for first in range(0, group_size, max_rows)
    )
    return greedy_batches(spans, lambda span: span.count, max_rows)


def rows_that_fit(backbone: Backbone, prompts: Sequence[Prompt], sampling: SamplingConfig) -> int:
    """Return how many rows decode side by side in 80 % of the free memory; 512 at most.

    A row needs its own keys and values up to the longest completion, twice while finished rows leave,
    and four float32 rows of logits. A prompt's are counted for every row, as if each group were one row.
    """
    if backbone.device.type != "cuda":
        return MOST_ROWS
    text = backbone.core.config.text_config
    token_bytes = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    token_bytes *= backbone.precision.compute_dtype.itemsize
    longest = max(map(len, prompts), default=0)
    row_bytes = token_bytes * (2 * sampling.max_completion_tokens + longest)
    row_bytes += 4 * 4 * text.vocab_size
    free, _ = torch.cuda.mem_get_info(backbone.device)
    free += torch.cuda.memory_reserved(backbone.device) - torch.cuda.memory_allocated(
        backbone.device
    )
    return max(1, min(MOST_ROWS, int(0.8 * free / row_bytes)))


def _holds_dense_weights(backbone: Backbone, sampling: SamplingConfig) -> bool:
    """Decide on dequantised, merged weights: if set, or on a CPU with twice the memory they take."""
    if sampling.dense_weights != "auto":
        return sampling.dense_weights == "always"
    if backbone.device.type != "cpu":
        return False
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return dense_bytes(backbone.core) < free / 2


def _uniform(sampling: SamplingConfig, *name: object) -> Tensor:
    """Draw a rollout's random numbers, float64 [C]."""
    return torch.rand(
        sampling.max_completion_tokens, generator=generator_for(*name), dtype=torch.float64
    )


@torch.no_grad()  # not inference_mode: cached picture features are used in training too
def _decode(
    backbone: Backbone,
    decoder: LeanDecoder,
    prompts: Sequence[Prompt],
    uniforms: Sequence[Sequence[Tensor]],
    sampling: SamplingConfig,
) -> list[list[Rollout]]:
    """Return the rollouts of each prompt, one per row of random numbers."""
    device, max_tokens = backbone.device, sampling.max_completion_tokens
    embedding = backbone.core.get_input_embeddings()
    logits_BV, cache, order = _prefilled(backbone, decoder, prompts, uniforms, max_tokens)
    prompt_R = torch.tensor(order, device=device)
    prompts_in_order = dict.fromkeys(order)  # each prompt once
    uniform_RC = torch.stack([row for p in prompts_in_order for row in uniforms[p]]).to(device)
    next_position_R = torch.tensor([prompts[p].next_position for p in order], device=device)
    num_positions = max(prompt.next_position for prompt in prompts) + max_tokens
    cos_Ld, sin_Ld = _rotary(decoder, num_positions)
    logits_RV = logits_BV[prompt_R]

    num_rows = len(order)
    token_RC = torch.zeros(num_rows, max_tokens, dtype=torch.long, device=device)
    logprob_RC = torch.zeros(num_rows, max_tokens, device=device)
    entropy_RC = torch.zeros(num_rows, max_tokens, device=device)
    row_R = torch.arange(num_rows, device=device)  # rows still in the batch; R shrinks
    is_ended_R = torch.zeros(num_rows, dtype=torch.bool, device=device)
    suppressed = torch.tensor(backbone.suppressed_ids, device=device)
    for step in range(max_tokens):
        logits_RV.index_fill_(1, suppressed, -torch.inf)
        drawn = draw_tokens(logits_RV, uniform_RC[row_R, step], sampling)
        token_RC[row_R, step] = drawn.token_R
        logprob_RC[row_R, step] = drawn.logprob_R
        entropy_RC[row_R, step] = drawn.entropy_R
        is_ended_R |= drawn.token_R == backbone.end_id
        if step + 1 == max_tokens:
            break
        token_R = drawn.token_R
        unfinished = (~is_ended_R).nonzero()[:, 0]
        if len(unfinished) == 0:
            break
        if len(row_R) - len(unfinished) >= _DROP_SHARE * len(row_R):
            cache.keep(unfinished.tolist())
            row_R, token_R = row_R[unfinished], token_R[unfinished]
            is_ended_R = is_ended_R[unfinished]
        position_R = next_position_R[row_R] + step
        hidden_RD = run_lean_decoder(
            decoder,
            embedding(token_R),
            cos_Ld[position_R][:, None],
            sin_Ld[position_R][:, None],
            lambda layer, q, k, v: cache.attend(layer, q, k, v, decoder.scale),
        )
        cache.length += 1
        logits_RV = backbone.next_logits(hidden_RD)
    rows = zip(token_RC.tolist(), logprob_RC.cpu(), entropy_RC.cpu(), strict=True)
    groups: list[list[Rollout]] = [[] for _ in prompts]
    for prompt, row in zip(order, rows, strict=True):
        groups[prompt].append(_rollout(backbone, prompts[prompt], *row))
    return groups


def _prefilled(
    backbone: Backbone,
    decoder: LeanDecoder,
    prompts: Sequence[Prompt],
    uniforms: Sequence[Sequence[Tensor]],
    max_tokens: int,
) -> tuple[Tensor, GroupCache, list[int]]:
    """Encode the prompts and share them out to their rows.

    Returns:
        next-token logits [B, V], the cache, and each row's prompt. Rows are ordered by bucket, since the
        rows of a bucket attend in one call.
    """
    logits_BV, layers, spans = prefill(backbone, decoder, prompts)
    members = bucket_prompts([len(prompt) for prompt in prompts])
    padded = pad_prompts(layers, [[spans[p] for p in bucket] for bucket in members])
    buckets = [
        PromptBucket(
            padded.pop(0), [len(prompts[p]) for p in bucket], [len(uniforms[p]) for p in bucket]
        )
        for bucket in members
    ]
    order = [p for bucket in members for p in bucket for _ in uniforms[p]]
    return logits_BV, GroupCache(buckets, max_tokens), order


def _rotary(decoder: LeanDecoder, num_positions: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [L, d] of the positions 0 .. L - 1, the same on all three axes."""
    like = decoder.norm_D  # on the layers' device, which may not be the embeddings'
    position_ids = torch.arange(num_positions, device=like.device).expand(3, 1, -1)
    cos_1Ld, sin_1Ld = decoder.rotary(like, position_ids)
    return cos_1Ld[0], sin_1Ld[0]


def _rollout(
    backbone: Backbone, prompt: Prompt, token_ids: list[int], logprob_C: Tensor, entropy_C: Tensor
) -> Rollout:
    """Build the rollout of a row, up to its end token if it has one.

    Raises:
        NotFiniteError: the model's logits were NaN or infinite. Tokens are drawn all the same; the
            log-probs show it.
    """
    is_ended = backbone.end_id in token_ids
    length = token_ids.index(backbone.end_id) + 1 if is_ended else len(token_ids)
    if not torch.isfinite(logprob_C[:length]).all():
        raise NotFiniteError(
            f"sampling prompt {prompt.id}: the model's logits are not finite. Weights that diverged, or "
            "numbers beyond float16: try an earlier checkpoint, model.compute_dtype=float32 or "
            "model.float32_vision=true."
        )
    text = backbone.tokenizer.decode(token_ids[: length - 1 if is_ended else length])
    return Rollout(
        token_ids=tuple(token_ids[:length]),
        text=text,
        parts=parts.parse(text),
        finish="end" if is_ended else "length",
        sampling_logprob_C=logprob_C[:length].clone(),
        sampling_entropy_C=entropy_C[:length].clone(),
    )
