"""Which experts each token of a part went to: the discriminator run on one group, written down.

The routing is worked out from public pieces (the hidden states that enter each adapted layer's MLP, the
router's weights, `tk.route_topk`) and not read out of the discriminator; the tests compare its load and
entropy with those that `Discriminator.score` reports.

Shape letters: G candidates, T tokens of one part, L adapted layers, E experts, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton_kernels as tk
from prism_lite.config import RunConfig
from prism_lite.discriminator.model import Discriminator
from prism_lite.models.backbone import Backbone
from prism_lite.models.prompts import Prompt
from prism_lite.parts import Parts, parse
from prism_lite.policy.advantages import alignment_advantages
from prism_lite.types import Group

DECIMALS = 3


def group_record(
    backbone: Backbone,
    discriminator: Discriminator,
    group: Group,
    config: RunConfig,
) -> dict[str, Any]:
    """Scores, margins, advantages and routing of a group and its teacher, as plain values.

    Rows come with the teacher first, then by falling advantage. A malformed candidate has no scores.

    Raises:
        ValueError: the prompt has no well-formed teacher completion to compare with.
    """
    sample = group.sample
    teacher = parse(sample.teacher or "")
    if not isinstance(teacher, Parts):
        raise ValueError(f"{sample.id} has no teacher completion: choose another prompt.")
    prompt = backbone.prompt(sample)
    judged = [
        (i, rollout.parts)
        for i, rollout in enumerate(group.rollouts)
        if rollout.is_well_formed and isinstance(rollout.parts, Parts)
    ]
    with torch.no_grad(), backbone.role("discriminator"):
        scores = discriminator.score(backbone, [(prompt, [teacher, *(p for _, p in judged)])])
        routings = [
            part_routing(backbone, discriminator, prompt, parts)
            for parts in (teacher, *(p for _, p in judged))
        ]
    pairs = torch.stack([scores.perception_K, scores.reasoning_K], 1).float().cpu()
    advantage_G = _advantages(pairs[1:], [i for i, _ in judged], len(group.rollouts), config)
    rows = [_row("teacher", teacher.render(), "end", pairs[0], None, None, routings[0])]
    place = {i: k for k, (i, _) in enumerate(judged, 1)}
    for i, rollout in enumerate(group.rollouts):
        k = place.get(i)
        score_2, routing = (pairs[k], routings[k]) if k is not None else (None, None)
        advantage = float(advantage_G[i])
        rows.append(
            _row("student", rollout.text, rollout.finish, score_2, pairs[0], advantage, routing)
        )
    rows[1:] = sorted(rows[1:], key=lambda row: -row["advantage"])
    return {
        "prompt_id": sample.id,
        "question": sample.question,
        "picture_ids": [picture.id for picture in sample.pictures],
        "gold": sample.answer,
        "routing_mode": config.discriminator.routing,
        "first_layer": discriminator.first_layer,
        "rows": rows,
    }


def part_routing(
    backbone: Backbone, discriminator: Discriminator, prompt: Prompt, parts: Parts
) -> dict[str, Any]:
    """Routing weights of both parts of one completion. Call it inside role "discriminator".

    Returns:
        {"perception": {"tokens": [T texts], "weights": [L][T][E]}, "reasoning": the same}
    """
    config = discriminator.config
    perception_T, reasoning_T = part_tokens(backbone, discriminator, parts)
    num_tokens = len(perception_T) + len(reasoning_T)
    inputs: list[Tensor] = []
    layers = backbone.core.model.language_model.layers[discriminator.first_layer :]
    handles = [
        layer.mlp.register_forward_pre_hook(
            # the parts are the last tokens of the only tree: nothing is padded behind them
            lambda _module, args: inputs.append(args[0].flatten(0, 1)[-num_tokens:])
        )
        for layer in layers
    ]
    try:
        discriminator.score(backbone, [(prompt, [parts])])
    finally:
        for handle in handles:
            handle.remove()
    is_reasoning_T = torch.arange(num_tokens) >= len(perception_T)
    weights_LTE = []
    for x_TD, expert in zip(inputs, discriminator.experts, strict=True):
        router_ED: Any = expert.router
        if config.routing == "dense":
            weights_LTE.append(torch.ones(num_tokens, 1))
            continue
        allowed_TE = _allowed(is_reasoning_T, config).to(x_TD.device)
        routed = tk.route_topk(x_TD.float() @ router_ED.T, config.top_k, allowed=allowed_TE)
        weights_LTE.append(routed.weights.float().cpu())
    split = len(perception_T)
    return {
        name: {
            "tokens": [backbone.tokenizer.decode([token]) for token in ids.tolist()],
            "weights": [_rounded(weights_TE[rows]) for weights_TE in weights_LTE],
        }
        for name, ids, rows in (
            ("perception", perception_T, slice(0, split)),
            ("reasoning", reasoning_T, slice(split, None)),
        )
    }


def part_tokens(
    backbone: Backbone, discriminator: Discriminator, parts: Parts
) -> tuple[Tensor, Tensor]:
    """Token ids of the perception and the reasoning part, each closed by the sentinel."""
    config = discriminator.config
    reasoning = parts.reasoning
    if config.reasoning_sees_caption:
        reasoning = f"{parts.perception}\n{reasoning}"
    end = torch.tensor([backbone.end_id])
    limit = config.max_part_tokens - 1
    perception_T, reasoning_T = (
        torch.cat([backbone.tokenize(text, end=False)[:limit], end])
        for text in (parts.perception, reasoning)
    )
    return perception_T, reasoning_T


def _allowed(is_reasoning_T: Tensor, config: Any) -> Tensor:
    if config.routing != "grouped":
        return torch.ones(len(is_reasoning_T), config.num_experts, dtype=torch.bool)
    is_reasoning_expert_E = torch.arange(config.num_experts) >= config.num_experts // 2
    return is_reasoning_T[:, None] == is_reasoning_expert_E


def _advantages(
    student_K2: Tensor, places: list[int], group_size: int, config: RunConfig
) -> Tensor:
    """advantage_G as in the alignment stage."""
    score_G2 = torch.zeros(group_size, 2)
    is_well_formed_G = torch.zeros(group_size, dtype=torch.bool)
    if places:
        score_G2[places] = student_K2
        is_well_formed_G[places] = True
    return alignment_advantages(
        score_G2[:, 0],
        score_G2[:, 1],
        group_size=group_size,
        well_formed_R=is_well_formed_G,
        alpha=config.align.alpha,
        malformed_penalty=config.align.malformed_penalty,
    )


def _row(
    who: str,
    completion: str,
    finish_reason: str,
    score_2: Tensor | None,
    teacher_2: Tensor | None,
    advantage: float | None,
    routing: dict[str, Any] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"who": who, "completion": completion, "finish_reason": finish_reason}
    if score_2 is not None:
        row |= {"perception": round(float(score_2[0]), 4), "reasoning": round(float(score_2[1]), 4)}
        if teacher_2 is not None:
            # how far the teacher is ahead, both channels; 0 is where the student fools it
            margin = float((teacher_2 - score_2).mean())
            row["margin"] = round(margin, 4)
    if advantage is not None:
        row["advantage"] = round(advantage, 4)
    if routing is not None:
        row["routing"] = routing
    return row


def _rounded(weights_TE: Tensor) -> list[list[float]]:
    return [[round(value, DECIMALS) for value in row] for row in weights_TE.tolist()]


MAX_GROUP_SIZE = 16  # of a group that is sampled anew
