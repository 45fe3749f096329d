"""Sampling groups of completions: each prompt is encoded once, its rows decode side by side.

A prompt's keys and values are kept once and shared by its rows (kv_cache.py); rows of all
prompts decode together, whatever the prompts' lengths, and finished rows leave the batch. Every rollout
draws from its own random numbers, fixed before decoding starts, so its tokens do not depend on its
neighbours. (Its logits do in the last float32 digits: other batch shapes sum in another order.)

Shape letters: R rows (rollouts), B prompts, V vocabulary, F prompt tokens end to end, C completion tokens.
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
from prism_lite.sampling.decoder import LeanDecoder, dense_bytes, lean_decoder, run
from prism_lite.sampling.draw import draw_tokens
from prism_lite.sampling.kv_cache import Bucket, GroupCache, bucket_prompts, pad_prompts
from prism_lite.sampling.prefill import prefill
from prism_lite.seeding import generator_for
from prism_lite.types import Group, Rollout, Sample

MOST_ROWS = 512  # decoded side by side where nothing else limits them
LEAVE_WHEN = 1 / 8  # finished share of the rows from which on they are dropped


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
        seed: names the draw; with the prompt's id and the rollout's number it fixes each rollout.

    Returns:
        One Group per sample, in order. Sampling log-probs and entropies are those of the distribution
        drawn from (`sampling.draw_tokens` says which where it is cut).
    """
    prompts = [backbone.prompt(sample) for sample in samples]
    backbone.core.eval()
    dense = holds_dense_weights(backbone, sampling)
    decoder = lean_decoder(
        backbone.core, dense=dense, float32_residual=backbone.precision.float32_residual
    )
    max_rows = sampling.max_rows or rows_that_fit(backbone, prompts, sampling)
    rollouts: list[list[Rollout]] = [[] for _ in prompts]
    for spans in split_rows(len(prompts), group_size, max_rows):
        chunk = [prompts[span.prompt] for span in spans]
        uniforms = [
            [
                _uniform(sampling, *seed, prompt.id, number)
                for number in range(span.first, span.first + span.count)
            ]
            for span, prompt in zip(spans, chunk, strict=True)
        ]
        decoded = _decode(backbone, decoder, chunk, uniforms, sampling)
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
            backbone,
            piece,
            group_size=group_size,
            sampling=sampling,
            seed=seed,
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
    """Rows that decode side by side in 80 % of the memory that is free now; 512 at most.

    A row needs its own keys and values up to the longest completion, twice while finished rows leave,
    and four float32 rows of logits; a prompt's are counted with every row, as if groups were of one.
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


def holds_dense_weights(backbone: Backbone, sampling: SamplingConfig) -> bool:
    """Whether sampling keeps dequantised, merged weights: where set, or on a CPU with memory to spare."""
    if sampling.dense_weights != "auto":
        return sampling.dense_weights == "always"
    if backbone.device.type != "cpu":
        return False
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return dense_bytes(backbone.core) < free / 2


def _uniform(sampling: SamplingConfig, *name: object) -> Tensor:
    """A rollout's random numbers, float64 [C]."""
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
    """Rollouts of each prompt, one per row of random numbers."""
    device, max_tokens = backbone.device, sampling.max_completion_tokens
    embedding = backbone.core.get_input_embeddings()
    logits_BV, layers, spans = prefill(backbone, decoder, prompts)
    order, buckets = [], []
    grouped = bucket_prompts([len(prompt) for prompt in prompts])
    padded = pad_prompts(layers, [[spans[prompt] for prompt in members] for members in grouped])
    for members in grouped:
        lengths = [len(prompts[prompt]) for prompt in members]
        rows = [len(uniforms[prompt]) for prompt in members]
        buckets.append(Bucket(padded.pop(0), lengths, rows))
        order += [prompt for prompt in members for _ in uniforms[prompt]]
    cache = GroupCache(buckets, max_tokens)
    prompt_R = torch.tensor(order, device=device)
    in_order = dict.fromkeys(order)  # each prompt once
    uniform_RC = torch.stack([row for prompt in in_order for row in uniforms[prompt]]).to(device)
    next_position_R = torch.tensor([prompts[p].next_position for p in order], device=device)
    num_positions = max(prompt.next_position for prompt in prompts) + max_tokens
    cos_Ld, sin_Ld = _rotary(decoder, num_positions)
    logits_RV = logits_BV[prompt_R]

    num_rows = len(order)
    token_RC = torch.zeros(num_rows, max_tokens, dtype=torch.long, device=device)
    logprob_RC = torch.zeros(num_rows, max_tokens, device=device)
    entropy_RC = torch.zeros(num_rows, max_tokens, device=device)
    row_R = torch.arange(num_rows, device=device)  # rows still in the batch
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
        kept = (~is_ended_R).nonzero()[:, 0]
        if len(kept) == 0:
            break
        if len(row_R) - len(kept) >= LEAVE_WHEN * len(row_R):
            cache.keep(kept.tolist())
            row_R, token_R, is_ended_R = row_R[kept], token_R[kept], is_ended_R[kept]
        position_R = next_position_R[row_R] + step
        hidden_RD = run(
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
        rollout = _rollout(backbone, *row)
        _require_finite(rollout, prompts[prompt])
        groups[prompt].append(rollout)
    return groups


def _rotary(decoder: LeanDecoder, num_positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [L, d] of the positions 0 .. L - 1, the same on all three axes."""
    like = decoder.norm_D  # lies where the layers do, which the embeddings need not
    position_ids = torch.arange(num_positions, device=like.device).expand(3, 1, -1)
    cos_1Ld, sin_1Ld = decoder.rotary(like, position_ids)
    return cos_1Ld[0], sin_1Ld[0]


def _rollout(
    backbone: Backbone, token_ids: list[int], logprob_C: Tensor, entropy_C: Tensor
) -> Rollout:
    """A row up to its end token, or whole."""
    is_ended = backbone.end_id in token_ids
    length = token_ids.index(backbone.end_id) + 1 if is_ended else len(token_ids)
    token_ids = token_ids[:length]
    text = backbone.tokenizer.decode(token_ids[:-1] if is_ended else token_ids)
    return Rollout(
        token_ids=tuple(token_ids),
        text=text,
        parts=parts.parse(text),
        finish="end" if is_ended else "length",
        sampling_logprob_C=logprob_C[:length].clone(),
        sampling_entropy_C=entropy_C[:length].clone(),
    )


def _require_finite(rollout: Rollout, prompt: Prompt) -> None:
    """Logits that are NaN or infinite draw tokens all the same: the log-probs tell."""
    if not torch.isfinite(rollout.sampling_logprob_C).all():
        raise RuntimeError(
            f"sampling prompt {prompt.id}: the model's logits are not finite. Weights that diverged, or "
            "numbers beyond float16: try an earlier checkpoint, model.compute_dtype=float32 or "
            "model.float32_vision=true."
        )
