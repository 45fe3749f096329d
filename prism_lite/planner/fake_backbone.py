"""A Backbone whose tensors are fake: the real modules, the real PEFT adapters, no data.

Used for planning only. The one module of our own is `StandInLinear4bit`: bitsandbytes cannot build its
weights under FakeTensorMode. It holds the storages of a double-quantised NF4 weight and runs
bitsandbytes' own forward and backward on them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prism_lite.config import RunConfig
from prism_lite.models.backbone import (
    Backbone,
    apply_model_settings,
)
from prism_lite.models.device import choose_precision
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.processor import MERGE, PATCH_PIXELS
from prism_lite.planner.architectures import Architecture

BLOCK, BLOCK_OF_SCALES = 64, 256  # weights per scale; scales per scale of the scales
SPECIAL = {
    "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645,
    "<|vision_start|>": 151652, "<|vision_end|>": 151653, "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655, "<|video_pad|>": 151656,
}  # fmt: skip
WORD_ID = 1000  # what every ordinary word becomes


class StandInLinear4bit(bnb.nn.Linear4bit):
    """A Linear4bit (no bias) whose packed weight and scales are tensors of the right size."""

    def __init__(self, out_features: int, in_features: int, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        num_weights = in_features * out_features
        num_scales = -(-num_weights // BLOCK)
        weight: Any = nn.Parameter(
            torch.empty((num_weights + 1) // 2, 1, dtype=torch.uint8), requires_grad=False
        )
        weight.quant_state = QuantState(
            absmax=torch.empty(num_scales, dtype=torch.uint8),
            shape=torch.Size([out_features, in_features]),
            code=torch.empty(16),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=torch.empty(()),
            state2=QuantState(
                absmax=torch.empty(-(-num_scales // BLOCK_OF_SCALES)),
                code=torch.empty(256),
                blocksize=BLOCK_OF_SCALES,
                dtype=torch.float32,
            ),
        )
        weight.compress_statistics, weight.quant_type = True, "nf4"
        weight.bnb_quantized = True
        self.weight = weight
        self.register_parameter("bias", None)
        self.compute_dtype, self.compute_type_is_set = dtype, True
        self.quant_state = None
        self.quant_storage = torch.uint8
        self.support_avx512bf16_for_cpu = False

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)  # no value to pack


class StandInTokenizer:
    """One token a word, Qwen's ids for its special tokens."""

    pad_token_id = SPECIAL["<|endoftext|>"]

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def __len__(self) -> int:
        return self._num_tokens

    def __call__(self, text: str, **_kwargs: Any) -> dict[str, list[int]]:
        words = re.findall(r"<\|[a-z_]+\|>|[^\s<]+|<", text)
        return {"input_ids": [SPECIAL.get(word, WORD_ID) for word in words]}

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join("word" for _ in token_ids)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        if isinstance(tokens, str):
            return SPECIAL.get(tokens, WORD_ID)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def apply_chat_template(self, messages: Sequence[Any], **_kwargs: Any) -> str:
        text = ""
        for message in messages:
            text += f" <|im_start|> {message['role']} "
            for block in message["content"]:
                picture = "<|vision_start|><|image_pad|><|vision_end|>"
                text += picture if block["type"] == "image" else f" {block['text']} "
            text += "<|im_end|>"
        return text + " <|im_start|> assistant "


def stand_in_processor() -> Any:
    """Picture processor as published, tokenizer of whole words."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pictures = Qwen2VLImageProcessorPil(
        patch_size=PATCH_PIXELS,
        temporal_patch_size=2,
        merge_size=MERGE,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 32 * 32, "longest_edge": 512 * 512},
    )
    return SimpleNamespace(tokenizer=StandInTokenizer(151669), image_processor=pictures)


def build_backbone(
    config: RunConfig,
    architecture: Architecture,
    dtype: torch.dtype,
    fake_mode: FakeTensorMode,
    *,
    num_layers: int,
    tower_depth: int,
) -> Backbone:
    """The backbone that `load_backbone` would give, without data, with so many layers.

    Args:
        num_layers: of the decoder.
        tower_depth: of the vision tower; where it is less than the architecture's, DeepStack's levels
            come from its first layers.
    """
    from transformers import Qwen3VLForConditionalGeneration

    model_config = copy.deepcopy(architecture.config)
    model_config.text_config.num_hidden_layers = num_layers
    vision_config = model_config.vision_config
    if tower_depth < vision_config.depth:
        vision_config.depth = tower_depth
        vision_config.deepstack_visual_indexes = [
            *range(len(vision_config.deepstack_visual_indexes))
        ]
    processor = architecture.processor or stand_in_processor()
    processor.image_processor.size = {
        "shortest_edge": config.model.min_pixels,
        "longest_edge": config.model.max_pixels,
    }
    with faking(fake_mode):
        model_class: Any = Qwen3VLForConditionalGeneration
        core = model_class._from_config(model_config, attn_implementation="sdpa", dtype=dtype)
        if config.model.quantization == "nf4":
            _quantise(core, dtype)
        planned = dataclasses.replace(config.model, compute_dtype=str(dtype).removeprefix("torch."))
        precision = choose_precision(planned, None)
        apply_model_settings(core, config.model, precision)
        _fill_up(core.model.visual.blocks, architecture.tower_depth)
        return Backbone(core, processor, config.model, config.lora, precision, "simulated")


def _quantise(core: Any, dtype: torch.dtype) -> None:
    for name, module in list(core.named_modules()):
        if isinstance(module, nn.Linear) and re.fullmatch(family.LANGUAGE_LINEARS, name):
            parent, _, leaf = name.rpartition(".")
            out_features, in_features = module.weight.shape
            stand_in = StandInLinear4bit(out_features, in_features, dtype)
            setattr(core.get_submodule(parent), leaf, stand_in)
    core.is_loaded_in_4bit = True  # what PEFT asks for


def tensors_of(backbone: Backbone) -> dict[str, list[Tensor]]:
    """What is in memory before a step: "weights" (frozen) and "adapters" (every LoRA adapter)."""
    found: dict[str, list[Tensor]] = {"weights": list(backbone.core.buffers()), "adapters": []}
    for name, parameter in backbone.core.named_parameters():
        found["adapters" if ".lora_" in name else "weights"].append(parameter)
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            found["weights"] += [state.absmax, state.code, state.offset]
            found["weights"] += [state.state2.absmax, state.state2.code]
    return found


def _fill_up(blocks: nn.ModuleList, depth: int) -> None:
    """Hold one tensor as large as the vision layers that the stand-in lacks."""
    weights = list(blocks[0].parameters())
    num_missing = (depth - len(blocks)) * sum(weight.numel() for weight in weights)
    blocks.register_buffer("missing_layers", torch.empty(num_missing, dtype=weights[0].dtype))


@contextlib.contextmanager
def faking(fake_mode: FakeTensorMode) -> Iterator[None]:
    """Modules built inside have fake parameters, all on the one simulated device.

    (`Module.to` would move them there by swapping, which fake tensors do not allow.)
    """
    original = nn.Module.to
    nn.Module.to = lambda self, *_args, **_kwargs: self
    try:
        with fake_mode:
            yield
    finally:
        nn.Module.to = original


@contextlib.contextmanager
def card_kernels() -> Iterator[None]:
    """The kernels' memory on a card, on tensors without data: what Triton's path allocates."""
    with patched_environment("PRISM_KERNELS", "triton"):
        yield


@contextlib.contextmanager
def patched_environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
