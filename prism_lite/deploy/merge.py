"""Merge a trained adapter into full weights, and measure what the merge changed.

Three models are compared on the same completions: the policy as it was trained (adapter on NF4), the
adapter on the full-precision base through plain PEFT, and the merged folder as plain transformers loads
it. The last two must agree up to rounding. The first differs from them by the error of quantisation, for
which training has partly compensated: that distance is measured and bounded, not assumed to be zero.

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

from prism_lite.files import make_cache_folder
from prism_lite.models.backbone import Backbone
from prism_lite.models.device import OLDEST_BFLOAT16, without_tensor_cores
from prism_lite.models.families.qwen3_vl import Core
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.models.prompts import Prompt
from prism_lite.models.vision import pixel_inputs
from prism_lite.policy.logprobs import predicted_logprobs

Weights = Literal["original", "dequantised"]
# Largest difference of a token's log-prob between merged and unmerged, in nats. In float32 only the order
# of sums differs; 16-bit weights round every merged entry once.
MERGE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}


@dataclass(frozen=True)
class Completion:
    """A prompt and the token ids of a completion, on which models are compared."""

    prompt: Prompt
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Distance:
    """Absolute differences of two models' token log-probs, in nats."""

    mean: float
    largest: float
    num_tokens: int


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Distance:
    """Compare the log-probs [C] of the same completions under two models."""
    difference = (torch.cat(list(first)) - torch.cat(list(second))).abs()
    return Distance(float(difference.mean()), float(difference.max()), difference.numel())


@torch.no_grad()
def trained_logprobs(backbone: Backbone, completions: Sequence[Completion]) -> list[Tensor]:
    """Compute log-probs [C] of each completion under the active adapter, as training computes them."""
    result = []
    for completion in completions:
        tree = Tree(completion.prompt, (torch.tensor(completion.token_ids),))
        result.append(predicted_logprobs(backbone, pack_trees([tree])).cpu())
    return result


@torch.no_grad()
@without_tensor_cores()
def plain_logprobs(
    model: Any, image_processor: Any, completions: Sequence[Completion]
) -> list[Tensor]:
    """Compute the same with the forward pass of transformers, one completion at a time."""
    result = []
    for completion in completions:
        prompt, ids_C = completion.prompt, torch.tensor(completion.token_ids)
        type_ids = torch.cat([prompt.is_picture_P.int(), torch.zeros(len(ids_C), dtype=torch.int)])
        inputs = {
            "input_ids": torch.cat([prompt.token_ids_P, ids_C])[None],
            "mm_token_type_ids": type_ids[None],
            **pixel_inputs(image_processor, prompt.pictures),
        }
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        # The logits at a position predict the next token: those of the last prompt token come first,
        # those of the last completion token are not needed.
        logits_CV = model(**inputs, logits_to_keep=len(ids_C) + 1).logits[0, :-1].float().cpu()
        result.append(logits_CV.log_softmax(-1).gather(1, ids_C[:, None])[:, 0])
    return result


def _dequantised_weights(core: Core) -> dict[str, Tensor]:
    """Dequantise the NF4 linears of a loaded backbone: float32 on the CPU, by parameter name."""
    weights = {}
    for name, module in core.named_modules():
        if isinstance(module, Linear4bit):
            packed: Any = module.weight
            full = dequantize_4bit(packed.data, packed.quant_state)
            weights[f"{name.removesuffix('.base_layer')}.weight"] = full.float().cpu()
    return weights


@without_tensor_cores()  # the weights that are written, too
def merge_policy(
    backbone: Backbone,
    base: str,
    completions: Sequence[Completion],
    *,
    weights: Weights,
    save: Callable[[Any], None],
) -> tuple[list[Tensor], torch.dtype]:
    """Merge the active policy into the base in the base's precision; pass the merged model to `save`.

    Args:
        base: hub id or folder of the base.
        completions: evaluated before the merge.
        weights: "original" merges into the base as published; "dequantised" into the values of its NF4
            linears, which is exactly the model that was trained.

    Returns:
        log-probs of base + adapter, unmerged; and the float type of the weights.
    """
    model: Any = AutoModelForImageTextToText.from_pretrained(
        base, dtype="auto", revision=backbone.config.revision or "main"
    )
    if weights == "dequantised":
        full = _dequantised_weights(backbone.core)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in full:
                    parameter.copy_(full.pop(name))
        assert not full, f"weights that the base does not have: {sorted(full)[:3]}"
    with tempfile.TemporaryDirectory(dir=make_cache_folder()) as folder:
        backbone.save_policy(f"{folder}/policy")
        peft = PeftModel.from_pretrained(model, f"{folder}/policy")
    peft = place(peft.eval())
    unmerged = plain_logprobs(peft, backbone.processor.image_processor, completions)
    merged: Any = peft.merge_and_unload(safe_merge=True)
    save(merged)
    return unmerged, merged.dtype


def reload_logprobs(
    folder: Path, image_processor: Any, completions: Sequence[Completion]
) -> list[Tensor]:
    """Compute log-probs of a saved folder as plain transformers loads it."""
    model = place(AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval())
    return plain_logprobs(model, image_processor, completions)


def place(model: Any) -> Any:
    """Move a model to the GPU if it fits there and the GPU computes in its type.

    On the CPU, comparing 16 completions of a large model takes minutes.
    """
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
