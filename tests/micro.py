"""Micro models and runs for the tests: nothing is downloaded, all is made in seconds.

`micro_recipe(...)` is the shipped recipe shrunk: two-digit comparisons, a 64-wide model with two
layers. Its base was trained for 100 small steps, because with random weights every completion is
malformed and the game could not be played; it is stored in tests/fixtures (make_micro_base.py), so that
tests see the same weights on every CPU.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from rich.console import Console

from prism_lite import load_recipe
from prism_lite.config import RunConfig

MICRO = {
    "save_every": 2,
    "tiny.hidden_size": 64,
    "tiny.num_layers": 2,
    "tiny.num_heads": 2,
    "tiny.num_key_value_heads": 1,
    "tiny.intermediate_size": 128,
    "tiny.vision_hidden_size": 32,
    "tiny.vision_depth": 2,
    "tiny.vocab_size": 384,
    "tiny.vision_steps": 0,
    "tiny.steps": 100,
    "tiny.batch_size": 4,
    "tiny.learning_rate": 3e-3,
    "data.digits.min_digits": 2,
    "data.digits.max_digits": 2,
    "data.digits.sft_kinds": ["compare"],
    "data.digits.kinds": ["compare"],
    "data.digits.transfer_kinds": ["compare"],
    "data.digits.drift": "random",
    "data.digits.demonstration_misread_rate": 0.2,
    "data.digits.demonstration_slip_rate": 0.35,
    "data.num_sft": 16,
    "data.num_align": 16,
    "data.num_rlvr": 16,
    "data.num_heldout": 8,
    "data.num_transfer": 4,
    "lora.rank": 4,
    "sampling.temperature": 0.7,
    "sampling.max_completion_tokens": 48,
    "sft.steps": 5,
    "sft.batch_size": 4,
    "discriminator.num_experts": 4,
    "discriminator.rank": 4,
    "warmup.steps": 5,
    "warmup.pairs_per_step": 4,
    "warmup.group_size": 2,
    "warmup.check_every": 2,
    "warmup.num_prompts": 16,
    "warmup.num_probe": 6,
    "align.steps": 5,
    "align.prompts_per_step": 2,
    "align.group_size": 3,
    "align.gate": "warn",
    "rlvr.game": "off",
    "rlvr.control": False,
    "rlvr.steps": 5,
    "rlvr.prompts_per_step": 2,
    "rlvr.group_size": 4,
    "eval.num_samples": 2,
}


def micro_recipe(**overrides: Any) -> RunConfig:
    """The micro settings; `align__steps=1` sets align.steps."""
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_recipe("tiny", MICRO | changed)


def quiet_console() -> Console:
    """A console that writes to memory: `console.file.getvalue()`."""
    return Console(file=io.StringIO(), width=200)


def fill_adapter(backbone: Any, *, seed: int = 0, scale: float = 0.05) -> None:
    """Give the policy's LoRA matrices random values (B starts at zero, so the adapter would do
    nothing)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.policy_parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
