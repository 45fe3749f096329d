"""A Backbone whose tensors are fake: the real modules, the real PEFT adapters, no data.

The only replaced module is the 4-bit linear layer: bitsandbytes cannot build its weights under
FakeTensorMode. `StandInLinear4bit` has the storages of a double-quantised NF4 weight and runs
bitsandbytes' own forward and backward on them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from prism_lite.config import RunConfig
from prism_lite.models.backbone import Backbone, apply_model_settings
from prism_lite.models.device import choose_precision
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.processor import MERGE, PATCH_PIXELS
from prism_lite.planner.architectures import Architecture
from prism_lite.planner.fake_tensors import relabelled

_BLOCK, _BLOCK_OF_SCALES = 64, 256  # weights per scale; scales per scale of the scales
_SPECIAL = {
    "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645,
    "<|vision_start|>": 151652, "<|vision_end|>": 151653,
    "<|image_pad|>": 151655, "<|video_pad|>": 151656,
}  # fmt: skip
_WORD_ID = 1000  # what every ordinary word becomes
_NUM_TOKENS = 151669  # of Qwen's tokenizer; the head has some rows more


class StandInLinear4bit(bnb.nn.Linear4bit):
    """A Linear4bit (no bias) whose packed weight and scales are tensors of the right size."""

    def __init__(self, out_features: int, in_features: int, dtype: torch.dtype) -> None:
        with unset_fake_temporarily():
            super().__init__(1, 1, bias=False, compute_dtype=dtype, quant_type="nf4")
        self.in_features, self.out_features = in_features, out_features
        num_weights = in_features * out_features
        num_scales = -(-num_weights // _BLOCK)
        weight: Any = nn.Parameter(
            torch.empty((num_weights + 1) // 2, 1, dtype=torch.uint8), requires_grad=False
        )
        weight.quant_state = QuantState(
            absmax=torch.empty(num_scales, dtype=torch.uint8),
            shape=torch.Size([out_features, in_features]),
            code=torch.empty(16),
            blocksize=_BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=torch.empty(()),
            state2=QuantState(
                absmax=torch.empty(-(-num_scales // _BLOCK_OF_SCALES)),
                code=torch.empty(256),
                blocksize=_BLOCK_OF_SCALES,
                dtype=torch.float32,
            ),
        )
        weight.compress_statistics, weight.quant_type = True, "nf4"
        weight.bnb_quantized = True
        self.weight = weight
        self.support_avx512bf16_for_cpu = False

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)  # no value to pack


class _StandInTokenizer:
    """One token a word, Qwen's ids for its special tokens."""

    pad_token_id = _SPECIAL["<|endoftext|>"]

    def __len__(self) -> int:
        return _NUM_TOKENS

    def __call__(self, text: str, **_kwargs: Any) -> dict[str, list[int]]:
        words = re.findall(r"<\|[a-z_]+\|>|[^\s<]+|<", text)
        return {"input_ids": [_SPECIAL.get(word, _WORD_ID) for word in words]}

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join("word" for _ in token_ids)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        if isinstance(tokens, str):
            return _SPECIAL.get(tokens, _WORD_ID)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def apply_chat_template(self, messages: Sequence[Any], **_kwargs: Any) -> str:
        """One user turn."""
        picture = "<|vision_start|><|image_pad|><|vision_end|>"
        blocks = [block.get("text", picture) for block in messages[0]["content"]]
        return f"<|im_start|> user {' '.join(blocks)} <|im_end|> <|im_start|> assistant"


def _stand_in_processor() -> Any:
    """Return the picture processor as published, and a tokenizer of words."""
    pictures = Qwen2VLImageProcessorPil(
        patch_size=PATCH_PIXELS, temporal_patch_size=2, merge_size=MERGE
    )
    return SimpleNamespace(tokenizer=_StandInTokenizer(), image_processor=pictures)


def build_backbone(
    config: RunConfig,
    architecture: Architecture,
    dtype: torch.dtype,
    fake_mode: FakeTensorMode,
    device: torch.device,
) -> Backbone:
    """Return the backbone that `load_backbone` would return, without data."""
    processor = architecture.processor or _stand_in_processor()
    processor.image_processor.size = {
        "shortest_edge": config.model.min_pixels,
        "longest_edge": config.model.max_pixels,
    }
    model_config = copy.deepcopy(architecture.config)  # transformers writes the attention into it
    with faking(fake_mode, device):
        model_class: Any = Qwen3VLForConditionalGeneration
        core = model_class._from_config(model_config, attn_implementation="sdpa", dtype=dtype)
        if config.model.quantization == "nf4":
            _quantise(core, dtype)
        model = dataclasses.replace(config.model, compute_dtype=str(dtype).removeprefix("torch."))
        precision = choose_precision(model, None)
        core.to(device)
        apply_model_settings(core, config.model, precision)
        backbone = Backbone(core, processor, config.model, config.lora, precision, "simulated")
        core.to(device)  # the adapters
        return backbone


def _quantise(core: Any, dtype: torch.dtype) -> None:
    for name, module in list(core.named_modules()):
        if isinstance(module, nn.Linear) and re.fullmatch(family.LANGUAGE_LINEARS, name):
            parent, _, leaf = name.rpartition(".")
            stand_in = StandInLinear4bit(module.out_features, module.in_features, dtype)
            setattr(core.get_submodule(parent), leaf, stand_in)
    core.is_loaded_in_4bit = True  # PEFT asks for it


def tensors_of_module(module: nn.Module) -> Iterator[Tensor]:
    """Iterate over a module's parameters, buffers and the scales of its 4-bit weights."""
    yield from module.buffers()
    for parameter in module.parameters():
        yield parameter
        yield from _scales_of(parameter)


def _scales_of(parameter: Tensor) -> list[Tensor]:
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return []
    return [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]


def tensors_of(backbone: Backbone) -> dict[str, list[Tensor]]:
    """Return what is in memory before a step: "weights" (frozen) and "adapters" (every LoRA adapter)."""
    tensors: dict[str, list[Tensor]] = {"weights": list(backbone.core.buffers()), "adapters": []}
    for name, parameter in backbone.core.named_parameters():
        tensors["adapters" if ".lora_" in name else "weights"].append(parameter)
        tensors["weights"] += _scales_of(parameter)
    return tensors


@contextlib.contextmanager
def faking(fake_mode: FakeTensorMode, device: torch.device) -> Iterator[None]:
    """Give modules that are built inside fake parameters, all on one simulated device.

    (`Module.to` would move them there by swapping, which fake tensors do not allow.)
    """

    def to(module: nn.Module, *args: Any, **_kwargs: Any) -> nn.Module:
        to_cpu = args and str(args[0]) == "cpu"
        for tensor in tensors_of_module(module):
            relabelled(tensor, torch.device("cpu") if to_cpu else device)
        return module

    with mock.patch.object(nn.Module, "to", to), fake_mode:
        yield
