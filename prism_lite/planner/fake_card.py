"""A card that is not there, as the code of a step finds it while the planner simulates it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from prism_lite.models import placement, vision
from prism_lite.planner.cards import Card
from prism_lite.planner.cpu_memory import separate_cpu_memory
from prism_lite.planner.tracker import Tracker
from prism_lite.types import Picture

_BUFFER = 4  # argument of `_rotate_and_store`


@contextlib.contextmanager
def simulated_card(tracker: Tracker, card: Card) -> Iterator[None]:
    """Let code find this card: its capability, its free memory, Triton's kernels, a CPU beside it."""

    def launch(kernel: Any, _grid: Any, on: Tensor, *args: Any, **_config: Any) -> None:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if kernel is triton_kernels.decoding_triton._rotate_and_store:
            # it writes one slot of each row: the buffer is as long as all completions may be
            tensors = [t[: len(on)] if t is args[_BUFFER] else t for t in tensors]
        tracker.launch_kernel(tensors)

    def pixel_inputs(image_processor: Any, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """Process one picture: all are equal (workload.py)."""
        one = encode_pixels(image_processor, pictures[:1])
        return {name: torch.cat([tensor] * len(pictures)) for name, tensor in one.items()}

    def free_bytes(_device: torch.device) -> int:
        assert tracker.free_bytes is not None
        return tracker.free_bytes

    properties = SimpleNamespace(
        name=card.name,
        major=card.capability[0],
        minor=card.capability[1],
        total_memory=int(card.gib * 2**30),
        multi_processor_count=64,
    )
    import triton_kernels.decoding_triton
    import triton_kernels.logprob_triton
    import triton_kernels.lora_triton
    import triton_kernels.routing_triton

    kernels = [
        module
        for name, module in sys.modules.items()
        if name.startswith("triton_kernels.") and name.endswith("_triton")
    ]
    with contextlib.ExitStack() as stack:
        for module in kernels:
            stack.enter_context(mock.patch.object(module, "launch", launch))
        stack.enter_context(mock.patch.dict(os.environ, PRISM_KERNELS="triton"))
        stack.enter_context(mock.patch.object(placement, "free_bytes", free_bytes))
        encode_pixels = vision.pixel_inputs
        stack.enter_context(mock.patch.object(vision, "pixel_inputs", pixel_inputs))
        stack.enter_context(
            mock.patch.multiple(
                torch.cuda,
                get_device_capability=lambda *_: card.capability,
                get_device_properties=lambda *_: properties,
                synchronize=lambda *_: None,
                empty_cache=lambda: None,
                _lazy_init=lambda: None,
            )
        )
        stack.enter_context(mock.patch.object(F, "rms_norm", _one_kernel_norm(tracker)))
        # it would find small tensors, which keep their values (fake_tensors.py), on the CPU
        stack.enter_context(mock.patch("bitsandbytes.functional.is_on_gpu", lambda _tensors: True))
        stack.enter_context(separate_cpu_memory(tracker))
        yield


def _one_kernel_norm(tracker: Tracker) -> Callable[..., Tensor]:
    """Return an `rms_norm` of one kernel forward and one backward, as a card's is; a CPU's is many."""

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight_D):
            out, inverse = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
            tracker.launch_kernel([x, out])
            ctx.save_for_backward(x, weight_D, inverse)
            return out

        @staticmethod
        def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
            x, _, _ = ctx.saved_tensors
            grad_x = torch.empty_like(x)
            tracker.launch_kernel([*grad_outputs, x, grad_x])
            return grad_x, None

    return lambda x, _shape, weight_D=None, _eps=None: Norm.apply(x, weight_D)
