"""Where tensors wait while the card does not need them: layer inputs, the vision tower, embeddings.

Checkpointing keeps each decoder layer's input and computes the rest again in the backward; offloaded, that
input waits in the CPU's memory. The frozen vision tower can live on the CPU and visit the card while it
encodes; so can untied input embeddings, of which a step reads a few rows.

Everything that leaves the card or comes back passes one of four functions below: `tensor_to_cpu`,
`tensor_to_card`, `modules_to_cpu`, `modules_to_card`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.families.qwen3_vl import Core


def tensor_to_cpu(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, made while the card goes on; on the CPU the tensor itself."""
    if tensor.device.type == "cpu":
        return tensor.detach()
    waiting = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    waiting.copy_(tensor.detach(), non_blocking=True)
    return waiting


def tensor_to_card(waiting: Tensor, device: torch.device) -> Tensor:
    """What `tensor_to_cpu` returned, on its device again."""
    return waiting.to(device, non_blocking=True)


def modules_to_cpu(modules: list[nn.Module]) -> None:
    """Move modules, their frozen weights with them, into the CPU's memory."""
    for module in modules:
        module.to("cpu")


def modules_to_card(modules: list[nn.Module], device: torch.device) -> None:
    """Move modules to a device."""
    for module in modules:
        module.to(device)


def enable_checkpointing(core: Core, *, offload: bool) -> None:
    """Switch gradient checkpointing on.

    Args:
        offload: layer inputs wait in the CPU's memory.
    """
    core.gradient_checkpointing_enable({"use_reentrant": False})
    if offload:
        for layer in family.decoder_layers(core):
            layer._gradient_checkpointing_func = offloaded_checkpoint


def offloaded_checkpoint(run: Callable[..., Tensor], hidden: Tensor, *rest: Any) -> Tensor:
    """`run(hidden, *rest)`, keeping only `hidden`, on the CPU, for the backward.

    `run` is called a second time there; it must do the same again (frozen weights, no dropout). Gradients
    reach its parameters, and `hidden`.
    """
    if not torch.is_grad_enabled():
        return run(hidden, *rest)
    # The first layer's input needs no gradient, its adapters do: something that does must go in.
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
        ValueError: they are tied to the head, which needs them on the card.
    """
    embedding: nn.Embedding = core.get_input_embeddings()
    if embedding.weight is core.get_output_embeddings().weight:
        raise ValueError(
            "model.embeddings_on_cpu: this model's embeddings are also its output head (2B and 4B are "
            "so), which works on the card. Leave it off; it helps the 8B, where they are apart."
        )
    device = embedding.weight.device
    modules_to_cpu([embedding])
    embedding.register_forward_pre_hook(lambda _module, args: (args[0].to("cpu"),))
    embedding.register_forward_hook(lambda _module, _args, rows: rows.to(device, non_blocking=True))


@contextmanager
def visiting(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    """Modules that live on the CPU are on `device` inside."""
    modules_to_card(modules, device)
    try:
        yield
    finally:
        modules_to_cpu(modules)
