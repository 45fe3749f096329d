"""What is in memory, and where: layer inputs, vision tower, embeddings, dense weights of sampling.

Checkpointing stores each decoder layer's input and computes the rest again in the backward; offloaded, that
input is stored in the CPU's memory. The frozen vision tower can be kept on the CPU and moved to the card
while it encodes; so can untied input embeddings, of which a step reads a few rows.

All moves go through four functions, which the planner replaces: `tensor_to_cpu`, `tensor_to_card`,
`modules_to_cpu`, `modules_to_card`. It also replaces `free_bytes`, by the memory of the card that it plans
for: whether sampling holds dense weights there is then decided as in a run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.families.qwen3_vl import Core

USED_SHARE = 0.8  # of the free memory that sampling plans with


def free_bytes(device: torch.device) -> int:
    """Return the memory for new tensors; a card's includes what torch's allocator keeps unused."""
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def dense_weights_fit(dense_bytes: int, sampling_bytes: int, num_free_bytes: int) -> bool:
    """Return whether dense weights fit beside what sampling needs (keys, values and logits)."""
    return dense_bytes + sampling_bytes <= USED_SHARE * num_free_bytes


def frozen_weight(linear: Any) -> Tensor:
    """Return a frozen linear's weight [out, in], dequantised where it is stored in 4 bit."""
    weight = linear.weight
    if not hasattr(weight, "quant_state"):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def tensor_to_cpu(tensor: Tensor) -> Tensor:
    """Copy to pinned memory while the card continues; on the CPU return the tensor itself."""
    if tensor.device.type == "cpu":
        return tensor.detach()
    waiting = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    waiting.copy_(tensor.detach(), non_blocking=True)
    return waiting


def tensor_to_card(waiting: Tensor, device: torch.device) -> Tensor:
    """Copy what `tensor_to_cpu` returned back to a device."""
    return waiting.to(device, non_blocking=True)


def modules_to_cpu(modules: list[nn.Module]) -> None:
    """Move modules with their frozen weights to the CPU's memory."""
    for module in modules:
        module.to("cpu")


def modules_to_card(modules: list[nn.Module], device: torch.device) -> None:
    """Move modules to a device."""
    for module in modules:
        module.to(device)


def enable_checkpointing(core: Core, *, offload: bool) -> None:
    """Switch gradient checkpointing on.

    Args:
        offload: store layer inputs in the CPU's memory.
    """
    core.gradient_checkpointing_enable({"use_reentrant": False})
    if offload:
        for layer in family.decoder_layers(core):
            layer._gradient_checkpointing_func = offloaded_checkpoint


def offloaded_checkpoint(run: Callable[..., Tensor], hidden: Tensor, *rest: Any) -> Tensor:
    """Call `run(hidden, *rest)` and store only `hidden`, on the CPU, for the backward.

    `run` is called again there and must compute the same (frozen weights, no dropout). Its parameters and
    `hidden` get gradients.
    """
    if not torch.is_grad_enabled():
        return run(hidden, *rest)
    # autograd calls the backward only if an input needs a gradient; the first layer's does not.
    anchor = torch.empty((), requires_grad=True)
    return _Offloaded.apply(lambda states: run(states, *rest), hidden, anchor)


class _Offloaded(torch.autograd.Function):
    """Forward without a graph; the backward builds it from the returned input."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[[Tensor], Tensor], hidden: Tensor, _anchor: Tensor
    ) -> Tensor:
        ctx.run, ctx.device = run, hidden.device
        ctx.waiting = tensor_to_cpu(hidden)
        with torch.no_grad():
            return run(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, None]:
        hidden = tensor_to_card(ctx.waiting, ctx.device).detach()
        hidden.requires_grad_(ctx.needs_input_grad[1])
        del ctx.waiting
        with torch.enable_grad():
            output = ctx.run(hidden)
        torch.autograd.backward(output, gradients[0])
        return None, hidden.grad, None


def keep_embeddings_on_cpu(core: Core) -> None:
    """Look input embeddings up in the CPU's memory and send the rows to the card.

    Raises:
        ValueError: they are tied to the output head, which needs them on the card.
    """
    embedding: nn.Embedding = core.get_input_embeddings()
    if embedding.weight is core.get_output_embeddings().weight:
        raise ValueError(
            "model.embeddings_on_cpu: this model's embeddings are also its output head (as in "
            "the 2B and 4B), which is needed on the card. Leave it off; it helps the 8B, where they are "
            "separate."
        )
    device = embedding.weight.device
    modules_to_cpu([embedding])
    embedding.register_forward_pre_hook(lambda _module, args: (args[0].to("cpu"),))
    embedding.register_forward_hook(lambda _module, _args, rows: rows.to(device, non_blocking=True))


@contextmanager
def on_card(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    """Move modules from the CPU to `device` inside, and back afterwards."""
    modules_to_card(modules, device)
    try:
        yield
    finally:
        modules_to_cpu(modules)
