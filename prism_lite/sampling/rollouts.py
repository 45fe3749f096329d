"""Sampling groups of completions: each prompt is encoded once, its rows decode side by side.

A prompt's keys and values are stored once and shared by its rows (kv_cache.py; packed_cache.py on a
card). Rows of all prompts decode together, whatever the prompts' lengths (token_step.py), and finished
rows leave the batch. Every rollout draws from its own random numbers, fixed before decoding starts, so its
tokens do not depend on its neighbours. (Its logits do in the last float32 digits: other batch shapes sum in
another order.)

Shape letters: R rows (rollouts), B prompts, V vocabulary, F prompt tokens end to end, C completion tokens,
L positions, d head size, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from prism_lite import parts
from prism_lite.config import SamplingConfig
from prism_lite.models import placement
from prism_lite.models.backbone import Backbone
from prism_lite.models.packed_attention import PackedAttention, packed_attention
from prism_lite.models.packing import greedy_batches
from prism_lite.models.prompts import Prompt
from prism_lite.processes import num_processes, share_work
from prism_lite.sampling.decoder import (
    LeanDecoder,
    dense_bytes,
    empty_buffers,
    lean_decoder,
    prefill,
)
from prism_lite.sampling.kv_cache import GroupCache, PromptBucket, bucket_prompts, pad_prompts
from prism_lite.sampling.packed_cache import PackedCache
from prism_lite.sampling.token_step import (
    Drawings,
    Rows,
    StepRunner,
    check_schedule,
    draw_next,
    rows_to_keep,
    take_step,
)
from prism_lite.seeding import generator_for
from prism_lite.types import Group, NotFiniteError, Rollout, Sample

MOST_ROWS = 512  # decoded side by side if nothing else limits them


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
    most_shared = -(-len(samples) // num_processes())
    decoder = decoder_for_sampling(backbone, most_shared, group_size, sampling)
    return sample_with(backbone, decoder, samples, group_size, sampling, seed)


def decoder_for_sampling(
    backbone: Backbone, num_prompts: int, group_size: int, sampling: SamplingConfig
) -> LeanDecoder:
    """Read the decoder under the active role; dense weights are merged here."""
    backbone.core.eval()
    return lean_decoder(
        backbone.core,
        dense=_holds_dense_weights(backbone, num_prompts, group_size, sampling),
        float32_residual=backbone.precision.float32_residual,
    )


def sample_with(
    backbone: Backbone,
    decoder: LeanDecoder,
    samples: Sequence[Sample],
    group_size: int,
    sampling: SamplingConfig,
    seed: tuple[object, ...],
) -> list[Group]:
    ids = [backbone.prompt(sample).id for sample in samples]
    first_number = [group_size * ids[:i].count(name) for i, name in enumerate(ids)]

    def decode(numbers: Sequence[int]) -> list[list[Rollout]]:
        prompts = [backbone.prompt(samples[number]) for number in numbers]
        max_rows = sampling.max_rows or rows_that_fit(backbone, prompts, sampling)
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        for spans in split_rows(len(prompts), group_size, max_rows):
            batch = [prompts[span.prompt] for span in spans]
            uniforms = [
                [
                    _uniform(
                        sampling, *seed, prompt.id, first_number[numbers[span.prompt]] + number
                    )
                    for number in range(span.first, span.first + span.count)
                ]
                for span, prompt in zip(spans, batch, strict=True)
            ]
            decoded = _decode(backbone, decoder, batch, uniforms, sampling)
            for span, rows in zip(spans, decoded, strict=True):
                rollouts[span.prompt] += rows
        return rollouts

    rollouts = share_work(range(len(samples)), decode)
    return [Group(sample, tuple(group)) for sample, group in zip(samples, rollouts, strict=True)]


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

    A row needs its own keys and values up to the longest completion and four float32 rows of logits. A
    prompt's are counted for every row, as if each group were one row. A row's own are counted twice: it
    leaves room for the forward of the prompts and for gaps in what torch's allocator holds.
    """
    if backbone.device.type != "cuda":
        return MOST_ROWS
    longest = max(map(len, prompts), default=0)
    row_bytes = token_bytes(backbone) * (2 * sampling.max_completion_tokens + longest)
    row_bytes += 4 * 4 * backbone.core.config.text_config.vocab_size
    free = placement.free_bytes(backbone.device)
    return max(1, min(MOST_ROWS, int(placement.USED_SHARE * free / row_bytes)))


def _holds_dense_weights(
    backbone: Backbone, num_prompts: int, group_size: int, sampling: SamplingConfig
) -> bool:
    """Decide on dequantised, merged weights: if set, or where they fit beside what sampling needs."""
    if sampling.dense_weights != "auto":
        return sampling.dense_weights == "always"
    return placement.dense_weights_fit(
        dense_bytes(backbone.core),
        _sampling_bytes(backbone, num_prompts, group_size, sampling),
        placement.free_bytes(backbone.device),
    )


def _sampling_bytes(
    backbone: Backbone, num_prompts: int, group_size: int, sampling: SamplingConfig
) -> int:
    """Return the memory of rows decoded side by side: keys, values, and four float32 rows of logits.

    Prompts count as if each were as long as it may be: the answer does not vary from step to step.
    """
    num_rows = min(num_prompts * group_size, sampling.max_rows or MOST_ROWS)
    num_prompts = min(num_prompts, -(-num_rows // group_size))
    num_tokens = num_rows * sampling.max_completion_tokens
    num_tokens += num_prompts * backbone.config.max_prompt_tokens
    vocab_size = backbone.core.config.text_config.vocab_size
    return num_tokens * token_bytes(backbone) + num_rows * 4 * 4 * vocab_size


def token_bytes(backbone: Backbone) -> int:
    """Return the size of a token's keys and values in all layers."""
    text = backbone.core.config.text_config
    num_numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return num_numbers * backbone.precision.compute_dtype.itemsize


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
    logits_BV, cache, order = _prefilled(backbone, decoder, prompts, uniforms, max_tokens)
    prompt_R = torch.tensor(order, device=device)
    rows = Rows(
        row_R=torch.arange(len(order), device=device),
        token_R=torch.zeros_like(prompt_R),
        position_R=torch.tensor([prompts[p].next_position for p in order], device=device),
        is_ended_R=torch.zeros_like(prompt_R, dtype=torch.bool),
    )
    prompts_in_order = dict.fromkeys(order)  # each prompt once
    uniform_RC = torch.stack([row for p in prompts_in_order for row in uniforms[p]]).to(device)
    drawings = Drawings.of(uniform_RC, backbone.suppressed_ids)
    rotary_Ld = _rotary(decoder, max(prompt.next_position for prompt in prompts) + max_tokens)
    draw_next(rows, drawings, logits_BV[prompt_R], sampling, backbone.end_id)
    runner = StepRunner(backbone, sampling)
    interval, multiple = check_schedule(device)
    for first in range(1, max_tokens, interval):
        is_ended = rows.is_ended_R.tolist()  # waits for the card
        kept = rows_to_keep(is_ended, multiple=multiple)
        if not kept:
            break
        if len(kept) < len(is_ended):
            cache.keep(kept)
            rows = rows.keep(kept)
            runner.forget()
        step = partial(take_step, backbone, decoder, cache, rows, drawings, rotary_Ld, sampling)
        runner.take(step, min(interval, max_tokens - first))
    tensors = drawings.token_NC.tolist(), drawings.logprob_NC.cpu(), drawings.entropy_NC.cpu()
    groups: list[list[Rollout]] = [[] for _ in prompts]
    for prompt, token_ids, logprob_C, entropy_C in zip(order, *tensors, strict=True):
        groups[prompt].append(_rollout(backbone, prompts[prompt], token_ids, logprob_C, entropy_C))
    return groups


def _prefilled(
    backbone: Backbone,
    decoder: LeanDecoder,
    prompts: Sequence[Prompt],
    uniforms: Sequence[Sequence[Tensor]],
    max_tokens: int,
) -> tuple[Tensor, GroupCache | PackedCache, list[int]]:
    """Encode the prompts and share them out to their rows.

    Returns:
        next-token logits [B, V], the cache, and each row's prompt. In buckets rows are ordered by bucket,
        since the rows of a bucket attend in one call.
    """
    lengths, rows = [len(prompt) for prompt in prompts], [len(drawn) for drawn in uniforms]
    attention = _attention_on_card(backbone, decoder)
    if attention is not None:
        buffers = empty_buffers(decoder, sum(lengths) + sum(rows) * max_tokens)
        logits_BV = prefill(backbone, decoder, prompts, buffers)
        num_shared = decoder.num_heads // decoder.num_kv_heads
        cache = PackedCache(
            buffers,
            lengths,
            rows,
            max_tokens=max_tokens,
            num_shared=num_shared,
            attention=attention,
        )
        return logits_BV, cache, [p for p, count in enumerate(rows) for _ in range(count)]
    buffers = empty_buffers(decoder, sum(lengths))
    logits_BV = prefill(backbone, decoder, prompts, buffers)
    spans = list(pairwise((0, *accumulate(lengths))))
    members = bucket_prompts(lengths)
    padded = pad_prompts(buffers, [[spans[p] for p in bucket] for bucket in members])
    buckets = [
        PromptBucket(padded.pop(0), [lengths[p] for p in bucket], [rows[p] for p in bucket])
        for bucket in members
    ]
    order = [p for bucket in members for p in bucket for _ in range(rows[p])]
    return logits_BV, GroupCache(buckets, max_tokens), order


def _attention_on_card(backbone: Backbone, decoder: LeanDecoder) -> PackedAttention | None:
    """Return the attention of a token step, or None on a CPU."""
    if backbone.device.type != "cuda":
        return None
    dtype = backbone.precision.compute_dtype
    return packed_attention(backbone.device, dtype, decoder.head_size, decoder.scale)


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
