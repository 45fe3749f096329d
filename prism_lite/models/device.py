"""Number types and attention by card, decided in one place.

| | compute | residual stream | loss scaler | vision attention | optimizer "auto" |
|---|---|---|---|---|---|
| CPU | float32 | as computed | no | SDPA | AdamW |
| sm75 (T4) | float16 | float32 | yes | SDPA | paged 8-bit AdamW |
| sm80 and newer | bfloat16 | as computed | no | flash-attn where installed, else SDPA | paged 8-bit AdamW |

LoRA weights and their gradients, losses, log-probs and norms' statistics are float32 everywhere; LoRA's
products are computed in the compute type (fused.py). On sm80 and newer the float32 products that are left
beside 16-bit ones (the router's) are TF32. The attention of packs is chosen in tree_attention.py, that of
a token step in packed_attention.py. Matrix products are the libraries' own, so no card needs one of
Triton's.

On a card some operations add in an order that varies: `index_add`, `cumsum`, the backward of
`repeat_interleave` and that of fused attention. Two runs with the same seed, or a run and its resumed copy,
agree there to rounding; on the CPU they agree to the byte.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import triton_kernels as tk
from prism_lite.config import ModelConfig, RunConfig
from prism_lite.processes import local_rank

_OLDEST_FLOAT16 = (7, 0)  # tensor cores; older cards compute float16 more slowly than float32
OLDEST_BFLOAT16 = (8, 0)
_OLDEST_SUPPORTED = (7, 5)  # of bitsandbytes' and torch's builds for CUDA 13, and of our kernels
_MOST_UNUSED_GIB = 1.0  # that torch's allocator may keep between two phases of a step


@dataclass(frozen=True)
class Card:
    """An NVIDIA card: its name, compute capability and memory."""

    name: str
    capability: tuple[int, int]
    gib: float

    @property
    def sm(self) -> str:
        return f"sm{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class Precision:
    """Number types and attention that were chosen, and why.

    Attributes:
        device: "cpu", or "cuda:N" of the process's card.
        compute_dtype: of activations and of the matrix products.
        scales_loss: the loss is scaled before the backward: gradients would vanish in float16.
        float32_residual: the residual stream is float32; in Qwen models it exceeds float16.
        vision_attention: transformers' name for the vision tower's attention.
        reason: one sentence for the user.
    """

    device: str
    compute_dtype: torch.dtype
    scales_loss: bool
    float32_residual: bool
    vision_attention: str
    reason: str


@functools.cache
def has_flash_attn() -> bool:
    """Return whether flash-attn is installed and can be imported beside this torch."""
    if importlib.util.find_spec("flash_attn") is None:
        return False
    try:
        from flash_attn import (  # noqa: F401  # pyright: ignore[reportMissingImports]
            flash_attn_varlen_func,
        )
    except ImportError as error:  # built for another torch, or an edition without this function
        warnings.warn(f"flash-attn is installed and not used: {error}", stacklevel=2)
        return False
    return True


def choose_precision(model: ModelConfig, card: Card | None) -> Precision:
    """Choose for a card, or for the CPU if `card` is None. Settings other than "auto" take precedence.

    Raises:
        ValueError: the settings name a type that the card does not have.
    """
    if model.compute_dtype != "auto":
        dtype, why = getattr(torch, model.compute_dtype), "model.compute_dtype"
    elif card is None:
        # Even if the CPU has bfloat16, so that results are the same on every machine.
        dtype, why = torch.float32, "CPU"
    elif card.capability >= OLDEST_BFLOAT16:
        dtype, why = torch.bfloat16, f"{card.name}, {card.sm}"
    elif card.capability >= _OLDEST_FLOAT16:
        dtype, why = torch.float16, f"{card.name}, {card.sm}: no bfloat16"
    else:
        dtype, why = torch.float32, f"{card.name}, {card.sm}: no tensor cores"
    if card is not None and dtype == torch.bfloat16 and card.capability < OLDEST_BFLOAT16:
        raise ValueError(
            f"model.compute_dtype = bfloat16: {card.name} ({card.sm}) does not have it; use auto or "
            "float16."
        )
    is_half = dtype == torch.float16
    uses_flash = (
        card is not None
        and card.capability >= OLDEST_BFLOAT16
        and dtype != torch.float32
        and not model.float32_vision
        and has_flash_attn()
    )
    facts = [f"compute {str(dtype).removeprefix('torch.')} ({why})"]
    facts += ["loss scaler and float32 residual"] if is_half else []
    facts += ["flash-attn in the vision tower"] if uses_flash else []
    if card is None and dtype == torch.bfloat16 and not has_native_bfloat16():
        facts.append("slow: this CPU has no bfloat16 instructions")
    return Precision(
        device="cpu" if card is None else f"cuda:{local_rank()}",
        compute_dtype=dtype,
        scales_loss=is_half,
        float32_residual=is_half,
        vision_attention="flash_attention_2" if uses_flash else "sdpa",
        reason=", ".join(facts),
    )


def card_of(model: ModelConfig) -> Card | None:
    """Return the card that a model will use: None without one, or if the settings name the CPU.

    Raises:
        ValueError: there are fewer cards than processes.
    """
    if model.device == "cpu" or not torch.cuda.is_available():
        return None
    number, num_cards = local_rank(), torch.cuda.device_count()
    if number >= num_cards:
        raise ValueError(
            f"process {number} has no card of its own, torch finds {num_cards}: start {num_cards} "
            "processes, or give model.device=cpu."
        )
    properties = torch.cuda.get_device_properties(number)
    return Card(
        properties.name, (properties.major, properties.minor), properties.total_memory / 2**30
    )


def use_tensor_cores(precision: Precision, card: Card | None) -> None:
    """Let float32 products use TF32 beside 16-bit ones, on cards that have it; for the whole process."""
    has_tf32 = card is not None and card.capability >= OLDEST_BFLOAT16
    if has_tf32 and precision.compute_dtype != torch.float32:
        torch.set_float32_matmul_precision("high")


@contextlib.contextmanager
def without_tensor_cores() -> Iterator[None]:
    """Compute float32 products in float32 inside: what `use_tensor_cores` allows rounds them to 10 bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def warnings_of(card: Card | None) -> list[str]:
    """Return a sentence for each thing that the user's card lacks: Triton's kernels, a supported age."""
    if card is None:
        return []
    sentences = []
    if card.capability < _OLDEST_SUPPORTED:
        sentences.append(
            f"{card.name} ({card.sm}) is older than sm75, the oldest that bitsandbytes and torch are built "
            "for with CUDA 13: 4-bit weights may fail with a missing kernel (use builds for CUDA 12, or "
            "model.quantization=none)"
        )
    if reason := tk.why_no_triton(local_rank()):
        sentences.append(f"no Triton kernels, the slower torch path instead: {reason}")
    return sentences


def release_unused(device: torch.device) -> None:
    """Return a card's memory that torch's allocator keeps unused, if it is more than 1 GiB.

    Called between the phases of a step, whose tensors have other sizes: sampling, the discriminator's
    step, the policy's.
    """
    if device.type != "cuda":
        return
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if unused > _MOST_UNUSED_GIB * 2**30:
        torch.cuda.empty_cache()


def has_native_bfloat16() -> bool:
    """Check for bfloat16 products in hardware; without, a backward is 60 times slower than float32's."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    )


def check_machine(config: RunConfig) -> None:
    """Reject a recipe that this machine cannot run, before anything is written.

    Raises:
        ValueError: the recipe needs a GPU, and there is none or it is too small.
    """
    needed, card = config.model.min_gpu_gib, card_of(config.model)
    if config.model.device == "cuda" and card is None:
        raise ValueError(
            f"recipe {config.recipe!r} needs an NVIDIA GPU"
            + (f" with {needed:g} GiB" if needed else "")
            + ", and torch finds none here. Use --recipe tiny-files on a CPU, or check the driver "
            "(nvidia-smi) and that torch is a CUDA build."
        )
    if needed and card is not None and card.gib < 0.9 * needed:
        raise ValueError(
            f"recipe {config.recipe!r} is for {needed:g} GiB, this card has {card.gib:.1f} GiB. "
            f"Use a smaller recipe, or see what `prism-lite plan --recipe {config.recipe} --card "
            f"{card.gib:.0f}` says to lower, and set model.min_gpu_gib=0."
        )
