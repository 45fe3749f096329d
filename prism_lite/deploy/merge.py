"""Merge a trained adapter into full weights, and measure what the merge changed.

Three models are compared on the same completions: the policy as it was trained (adapter on NF4), the
adapter on the full-precision base through plain PEFT, and the merged folder as plain transformers loads
it. The last two must agree to rounding. The first differs from them by what quantisation took from the
base, which training has partly made up for: that distance is reported and bounded, never assumed zero.

Shape letters: C completion tokens, V vocabulary.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForImageTextToText

from prism_lite.models.backbone import Backbone
from prism_lite.models.device import OLDEST_BFLOAT16
from prism_lite.models.families.qwen3_vl import Core
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.models.prompts import Prompt
from prism_lite.models.vision import pixel_inputs
from prism_lite.policy.logprobs import predicted_logprobs

Weights = Literal["original", "dequantised"]
# Largest difference of a token's log-prob between merged and unmerged, in nats. Float32 leaves summation
# order only; 16-bit weights round every merged entry once.
MERGE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}


@dataclass(frozen=True)
class Spoken:
    """A prompt and the token ids of a completion to judge."""

    prompt: Prompt
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Distance:
    """How far two models' token log-probs are apart, in nats."""

    mean: float
    largest: float
    num_tokens: int


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Distance:
    """Absolute differences of log-probs [C] of the same completions."""
    difference = (torch.cat(list(first)) - torch.cat(list(second))).abs()
    return Distance(float(difference.mean()), float(difference.max()), difference.numel())


@torch.no_grad()
def trained_logprobs(backbone: Backbone, spoken: Sequence[Spoken]) -> list[Tensor]:
    """Log-probs [C] of each completion under the backbone's active adapter, as training sees them."""
    result = []
    for item in spoken:
        tree = Tree(item.prompt, (torch.tensor(item.token_ids),))
        result.append(predicted_logprobs(backbone, pack_trees([tree])).cpu())
    return result


@torch.no_grad()
def plain_logprobs(model: Any, image_processor: Any, spoken: Sequence[Spoken]) -> list[Tensor]:
    """The same through transformers' own forward of an ordinary model, one completion at a time."""
    result = []
    for item in spoken:
        prompt, own_C = item.prompt, torch.tensor(item.token_ids)
        type_ids = torch.cat([prompt.is_picture_P.int(), torch.zeros(len(own_C), dtype=torch.int)])
        inputs = {
            "input_ids": torch.cat([prompt.token_ids_P, own_C])[None],
            "mm_token_type_ids": type_ids[None],
            **pixel_inputs(image_processor, prompt.pictures),
        }
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        logits_CV = model(**inputs, logits_to_keep=len(own_C) + 1).logits[0, :-1].float().cpu()
        result.append(logits_CV.log_softmax(-1).gather(1, own_C[:, None])[:, 0])
    return result


def dequantised_weights(core: Core) -> dict[str, Tensor]:
    """What the NF4 linears of a loaded backbone stand for, float32 on the CPU, by parameter name."""
    weights = {}
    for name, module in core.named_modules():
        if isinstance(module, Linear4bit):
            packed: Any = module.weight
            full = dequantize_4bit(packed.data, packed.quant_state)
            weights[f"{name.removesuffix('.base_layer')}.weight"] = full.float().cpu()
    return weights


def merge_policy(
    backbone: Backbone,
    base: str,
    spoken: Sequence[Spoken],
    *,
    weights: Weights,
    save: Callable[[Any], None],
) -> tuple[list[Tensor], torch.dtype]:
    """Merge the active policy into the base's own precision and hand the merged model to `save`.

    Args:
        base: hub id or folder of the base.
        spoken: completions to judge before the merge.
        weights: "original" merges into the base as published; "dequantised" into what its NF4 linears
            stand for, which is exactly the model that was trained.

    Returns:
        log-probs of base + adapter, unmerged; and the float type of the weights.
    """
    model: Any = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
    if weights == "dequantised":
        full = dequantised_weights(backbone.core)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in full:
                    parameter.copy_(full.pop(name))
        assert not full, f"weights without a place: {sorted(full)[:3]}"
    with tempfile.TemporaryDirectory() as folder:
        backbone.save_policy(folder)
        peft = PeftModel.from_pretrained(model, folder)
    peft = place(peft.eval())
    unmerged = plain_logprobs(peft, backbone.processor.image_processor, spoken)
    merged: Any = peft.merge_and_unload(safe_merge=True)
    save(merged)
    return unmerged, merged.dtype


def reload_logprobs(folder: Path, image_processor: Any, spoken: Sequence[Spoken]) -> list[Tensor]:
    """Log-probs of a saved folder as plain transformers loads it."""
    model = place(AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval())
    return plain_logprobs(model, image_processor, spoken)


def place(model: Any) -> Any:
    """A whole model on the card, if there is one that has room for it and computes in its type; else
    where it was, on the CPU, where judging 16 completions of a large one takes minutes."""
    if not torch.cuda.is_available():
        return model
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    needed = 1.2 * sum(p.numel() * p.element_size() for p in model.parameters())
    has_type = (
        model.dtype != torch.bfloat16 or torch.cuda.get_device_capability() >= OLDEST_BFLOAT16
    )
    return model.cuda() if has_type and needed <= free else model
