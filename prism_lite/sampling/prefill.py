"""Prompts through the lean decoder, end to end: their keys, values and next-token logits.

Shape letters: B prompts, F their tokens, V vocabulary, H query heads, J key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prism_lite.models.backbone import Backbone
from prism_lite.models.packing import Tree, embed_pack, greedy_batches, pack_trees
from prism_lite.models.prompts import Prompt
from prism_lite.models.tree_attention import TreeCall, attend_pack
from prism_lite.sampling.decoder import LeanDecoder, run


def prefill(
    backbone: Backbone, decoder: LeanDecoder, prompts: Sequence[Prompt]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], list[tuple[int, int]]]:
    """Encode prompts end to end, at most `model.max_pack_tokens` tokens at a time.

    Returns:
        next-token logits [B, V]; per layer keys and values [F, J, d]; each prompt's start and stop in F.
    """
    core, logits, spans, start = backbone.core, [], [], 0
    chunks: list[list[tuple[Tensor, Tensor]]] = []
    for chunk in greedy_batches(prompts, len, backbone.config.max_pack_tokens):
        pack = pack_trees([Tree(prompt, ()) for prompt in chunk])
        features = backbone.vision.features([p for prompt in chunk for p in prompt.pictures])
        embeds_FD, deepstack = embed_pack(core, pack, features)
        cos_1Fd, sin_1Fd = decoder.rotary(embeds_FD, pack.position_ids_3F[:, None].to(core.device))
        stored: list[tuple[Tensor, Tensor]] = []
        call = TreeCall(pack.layout, "parts")

        def attend(
            layer: int, q_FHd: Tensor, k_FJd: Tensor, v_FJd: Tensor, stored=stored, call=call
        ) -> Tensor:
            stored.append(_kept(k_FJd, v_FJd))
            q, k, v = (x.transpose(0, 1) for x in (q_FHd, k_FJd, v_FJd))
            return attend_pack(q, k, v, call, layer, decoder.scale).transpose(0, 1).flatten(1)

        hidden_FD = run(
            decoder,
            embeds_FD,
            cos_1Fd[0][:, None],
            sin_1Fd[0][:, None],
            attend,
            is_picture_T=pack.is_picture_F.to(core.device),
            deepstack=deepstack,
        )
        last_B = torch.tensor([stop - 1 for _, stop in pack.layout.prompts], device=core.device)
        logits.append(backbone.next_logits(hidden_FD[last_B]))
        chunks.append(stored)
        spans += [(start + a, start + b) for a, b in pack.layout.prompts]
        start = spans[-1][1]
    if len(chunks) == 1:
        return logits[0], chunks[0], spans
    return torch.cat(logits), _joined(chunks), spans


def _kept(k_FJd: Tensor, v_FJd: Tensor) -> tuple[Tensor, Tensor]:
    """Copies, so that the queries beside them can go."""
    return k_FJd.contiguous(), v_FJd.contiguous()


def _joined(chunks: list[list[tuple[Tensor, Tensor]]]) -> list[tuple[Tensor, Tensor]]:
    """Layers of all chunks, which are emptied on the way: there are never two copies of all of it."""
    layers = []
    while chunks[0]:
        pairs = [stored.pop(0) for stored in chunks]
        keys, values = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
        layers.append((keys, values))
    return layers
