"""Sampling groups of completions: each prompt is encoded once, its rows decode side by side.

Rows of all prompts decode together; a finished row leaves the batch. Every rollout draws from its
own random numbers, fixed before decoding starts, so it does not depend on its neighbours.

Shape letters: R rows (rollouts), V vocabulary, S cached positions, C completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from prism_lite import parts
from prism_lite.config import SamplingConfig
from prism_lite.models.backbone import Backbone
from prism_lite.models.prompts import Prompt
from prism_lite.seeding import generator_for
from prism_lite.types import Group, Rollout, Sample


def sample_groups(
    backbone: Backbone,
    samples: Sequence[Sample],
    *,
    group_size: int,
    sampling: SamplingConfig,
    system_prompt: str,
    seed: tuple[object, ...],
) -> list[Group]:
    """Draw `group_size` completions of every prompt under the active role.

    Args:
        samples: the prompts, one group each.
        sampling: temperature (0 is greedy), longest completion, rows decoded side by side.
        seed: names the draw; with the prompt's id and the rollout's number it fixes each rollout.

    Returns:
        One Group per sample, in order.
    """
    prompts = [backbone.prompt(sample, system_prompt) for sample in samples]
    prompts_at_once = max(1, sampling.max_rows // group_size)
    rollouts: list[Rollout] = []
    for start in range(0, len(prompts), prompts_at_once):
        chunk = prompts[start : start + prompts_at_once]
        uniform_RC = torch.stack(
            [
                torch.rand(
                    sampling.max_completion_tokens,
                    generator=generator_for(*seed, prompt.id, number),
                    dtype=torch.float64,
                )
                for prompt in chunk
                for number in range(group_size)
            ]
        )
        rollouts += _decode(backbone, chunk, group_size, sampling.temperature, uniform_RC)
    return [
        Group(sample, tuple(rollouts[i * group_size : (i + 1) * group_size]))
        for i, sample in enumerate(samples)
    ]


def sample_in_pieces(
    backbone: Backbone,
    samples: Sequence[Sample],
    *,
    each: Callable[[Sequence[Sequence[Sample]], str], Iterable[Sequence[Sample]]],
    doing: str,
    group_size: int,
    sampling: SamplingConfig,
    system_prompt: str,
    seed: tuple[object, ...],
) -> list[Group]:
    """`sample_groups` for many prompts: piece by piece, so that progress shows and a stop is obeyed.

    Args:
        each: goes through the pieces and shows `doing` (`RunFolder.each`).
    """
    size = max(1, sampling.max_rows // group_size)
    pieces = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [
        group
        for piece in each(pieces, doing)
        for group in sample_groups(
            backbone,
            piece,
            group_size=group_size,
            sampling=sampling,
            system_prompt=system_prompt,
            seed=seed,
        )
    ]


@torch.no_grad()  # not inference_mode: cached picture features are used in training too
def _decode(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    group_size: int,
    temperature: float,
    uniform_RC: Tensor,
) -> list[Rollout]:
    device = backbone.device
    backbone.core.eval()  # training mode with checkpointing would switch the cache off
    num_rows, max_tokens = uniform_RC.shape
    uniform_RC = uniform_RC.to(device)
    logits_RV, cache, mask_RS = _prefill(backbone, prompts)
    logits_RV = logits_RV.repeat_interleave(group_size, 0)
    mask_RS = mask_RS.repeat_interleave(group_size, 0)
    cache.batch_repeat_interleave(group_size)
    next_position_R = torch.tensor([prompt.next_position for prompt in prompts], device=device)
    next_position_R = next_position_R.repeat_interleave(group_size)

    token_RC = torch.full((num_rows, max_tokens), backbone.pad_id, device=device)
    logprob_RC = torch.zeros(num_rows, max_tokens, device=device)
    length_R = torch.full((num_rows,), max_tokens, device=device)
    row_R = torch.arange(num_rows, device=device)  # rows still decoding
    for step in range(max_tokens):
        token_R, logprob_R = draw_tokens(
            logits_RV, uniform_RC[row_R, step], temperature, backbone.suppressed_ids
        )
        token_RC[row_R, step], logprob_RC[row_R, step] = token_R, logprob_R
        is_ended_R = token_R == backbone.end_id
        length_R[row_R[is_ended_R]] = step + 1
        if is_ended_R.any():
            kept = (~is_ended_R).nonzero()[:, 0]
            row_R, token_R, mask_RS = row_R[kept], token_R[kept], mask_RS[kept]
            if len(row_R) and step + 1 < max_tokens:
                cache.batch_select_indices(kept)
        if not len(row_R) or step + 1 == max_tokens:
            break
        mask_RS = torch.cat([mask_RS, mask_RS.new_ones(len(row_R), 1)], 1)
        position_R = next_position_R[row_R] + step
        hidden_R1D = backbone.core.model.language_model(
            input_ids=token_R[:, None],
            position_ids=position_R[None, :, None].expand(3, -1, 1),
            attention_mask=mask_RS,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits_RV = backbone.core.lm_head(hidden_R1D[:, 0])
    return [
        _rollout(backbone, tokens[:length], logprobs[:length].clone())
        for tokens, logprobs, length in zip(
            token_RC.tolist(), logprob_RC.cpu(), length_R.tolist(), strict=True
        )
    ]


def _prefill(backbone: Backbone, prompts: Sequence[Prompt]) -> tuple[Tensor, DynamicCache, Tensor]:
    """Encode prompts of different lengths together, padded on the left.

    Returns:
        next-token logits [R, V], the cache, and its attention mask [R, S], a row per prompt.
    """
    device, core = backbone.device, backbone.core
    length = max(len(prompt) for prompt in prompts)
    token_ids = torch.full((len(prompts), length), backbone.pad_id)
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    positions = torch.zeros(3, len(prompts), length, dtype=torch.long)
    is_picture = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        start = length - len(prompt)
        token_ids[row, start:] = prompt.token_ids_P
        mask[row, start:] = 1
        positions[:, row, start:] = prompt.position_ids_3P
        is_picture[row, start:] = prompt.is_picture_P
    token_ids, mask, is_picture = (t.to(device) for t in (token_ids, mask, is_picture))
    features = backbone.vision.features([p for prompt in prompts for p in prompt.pictures])
    visual: dict[str, Any] = {}
    embeds = core.get_input_embeddings()(token_ids)
    if features:
        merged = torch.cat([picture.merged_ND for picture in features]).to(embeds.dtype)
        embeds = embeds.masked_scatter(is_picture[..., None].expand_as(embeds), merged)
        levels = zip(*(picture.deepstack_ND for picture in features), strict=True)
        visual = {
            "visual_pos_masks": is_picture,
            "deepstack_visual_embeds": [torch.cat(level) for level in levels],
        }
    cache = DynamicCache(config=core.config.text_config)
    output = core.model.language_model(
        inputs_embeds=embeds,
        position_ids=positions.to(device),
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        **visual,
    )
    return core.lm_head(output.last_hidden_state[:, -1]), cache, mask


def draw_tokens(
    logits_RV: Tensor, uniform_R: Tensor, temperature: float, suppressed_ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """One token per row by inverting the distribution function at a given uniform number.

    Args:
        logits_RV: next-token logits.
        uniform_R: float64 in [0, 1), one per row.
        temperature: 0 takes the most likely token.
        suppressed_ids: never drawn.

    Returns:
        token_R: int64. logprob_R: float32, under the distribution drawn from; for greedy rows the
        log-prob at temperature 1.
    """
    logits_RV = logits_RV.float()
    if suppressed_ids:
        logits_RV = logits_RV.clone()
        logits_RV[:, list(suppressed_ids)] = -torch.inf
    logprob_RV = (logits_RV / (temperature or 1.0)).log_softmax(-1)
    if temperature == 0:
        token_R = logprob_RV.argmax(-1)
    else:
        cumulative_RV = logprob_RV.double().exp().cumsum(-1)
        threshold_R1 = uniform_R[:, None] * cumulative_RV[:, -1:]
        # right=True skips tokens of probability zero, whose cumulative value equals their left one
        token_R = torch.searchsorted(cumulative_RV, threshold_R1, right=True)[:, 0]
    return token_R, logprob_RV.gather(-1, token_R[:, None])[:, 0]


def _rollout(backbone: Backbone, token_ids: list[int], logprob_C: Tensor) -> Rollout:
    is_ended = token_ids[-1] == backbone.end_id
    text = backbone.tokenizer.decode(token_ids[:-1] if is_ended else token_ids)
    return Rollout(
        token_ids=tuple(token_ids),
        text=text,
        parts=parts.parse(text),
        finish="end" if is_ended else "length",
        sampling_logprob_C=logprob_C,
    )
