"""Loading a Qwen3-VL with transformers and bitsandbytes, and a fix that both loaders need."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from prism_lite.config import ModelConfig
from prism_lite.models.device import Precision
from prism_lite.models.families.qwen3_vl import NOT_QUANTISED, Core


def load_with_transformers(path: str, model: ModelConfig, precision: Precision) -> Any:
    """Load a Qwen3-VL, its language model in NF4 with double quantisation if the settings say so."""
    quantisation = None
    if model.quantization == "nf4":
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=precision.compute_dtype,
            llm_int8_skip_modules=NOT_QUANTISED,
        )
    return AutoModelForImageTextToText.from_pretrained(
        path,
        revision=model.revision or "main",
        quantization_config=quantisation,
        dtype=precision.compute_dtype,
        attn_implementation={"text_config": "sdpa", "vision_config": precision.vision_attention},
        device_map={"": precision.device},
    )


def keep_cpu_weights_unpacked(core: Core) -> None:
    """Keep bitsandbytes from repacking weights for AVX512, after which its backward is wrong."""
    for module in core.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - a Linear4bit
