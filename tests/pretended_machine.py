"""A machine with a pretended card: torch.cuda, Module.to and the loaders answer as if it were there."""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map_only

from prism_lite.digits.base_model import base_folder
from prism_lite.models.backbone import Backbone, load_backbone
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.types import Group
from tests.pretended_card import (
    CUDA,
    RTX_4090,
    T4,
    DeviceInPython,
    PretendedCard,
    PretendedGraph,
    moved_tensor,
    shadow,
    without_mode,
)

CARDS = {"float16": T4, "bfloat16": RTX_4090}
# Paged states are managed memory, which is the driver's; 8-bit states of a T4, float32 ones of the other.
OPTIMIZER = {"float16": "adamw8bit", "bfloat16": "adamw"}
STAGES_WITH_OPTIMIZER = ("sft", "warmup", "discriminator", "align", "rlvr")
_OF_4BIT_WEIGHTS = (
    "quant_state", "compress_statistics", "quant_type", "bnb_quantized", "blocksize",
    "quant_storage",
)  # fmt: skip
# Each is one kernel on a card.
_KERNELS = ("add_rms_norm", "swiglu", "rotate_and_store", "merge_halves")


def _scales_of(weight: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """Return the states of a 4-bit weight with the names of their tensors."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return []
    return [(state, ("absmax", "code", "offset")), (state.state2, ("absmax", "code"))]


def move_module(card: PretendedCard, module: nn.Module, device: torch.device) -> None:
    """Move parameters, buffers and bitsandbytes' states to the card or back; shared ones stay shared."""
    moved: dict[int, Any] = {}
    originals: list[Any] = []  # kept, or a new tensor could get the id of one that is gone

    def move(value: Tensor) -> Tensor:
        if isinstance(value, FakeTensor) == (device.type == "cuda"):
            return value
        if id(value) not in moved:
            originals.append(value)
            cpu = shadow(value).detach()
            moved[id(value)] = card.pretend(cpu.contiguous()) if device.type == "cuda" else cpu
        return moved[id(value)]

    def move_parameter(parameter: nn.Parameter) -> nn.Parameter:
        if isinstance(parameter, FakeTensor) == (device.type == "cuda"):
            return parameter
        if id(parameter) not in moved:
            originals.append(parameter)
            data = move(parameter.data) if device.type == "cuda" else shadow(parameter).detach()
            made = nn.Parameter(data, requires_grad=parameter.requires_grad)
            if device.type == "cuda":
                made.pretended_values = shadow(data)  # nn.Parameter makes a new tensor object
            for name in _OF_4BIT_WEIGHTS:
                if hasattr(parameter, name):
                    setattr(made, name, getattr(parameter, name))
            for state, names in _scales_of(made):
                for name in names:
                    setattr(state, name, move(getattr(state, name)))
            moved[id(parameter)] = made
        return moved[id(parameter)]

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = move_parameter(parameter)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = move(buffer)
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor):
                setattr(part, name, move(value))


@contextlib.contextmanager
def pretended_card(capability: tuple[int, int], *, gib: float = 16.0) -> Iterator[PretendedCard]:
    """Let torch.cuda, Module.to and the loaders answer as if there were this card."""
    card = PretendedCard()
    total = int(gib * 2**30)
    properties = types.SimpleNamespace(
        name="pretended", major=capability[0], minor=capability[1], total_memory=total,
        multi_processor_count=64,
    )  # fmt: skip
    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "get_device_properties": properties, "get_device_capability": capability,
        "get_device_name": "pretended", "mem_get_info": (total // 2, total), "memory_reserved": 0,
        "memory_allocated": 0, "max_memory_allocated": 2**30, "max_memory_reserved": 2**30,
        "reset_peak_memory_stats": None, "synchronize": None, "empty_cache": None,
        "is_bf16_supported": capability >= (8, 0), "_lazy_init": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
        "current_stream": None, "set_stream": None,
    }  # fmt: skip
    module_to, run_engine = nn.Module.to, torch.autograd._engine_run_backward

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        given = [*args, *kwargs.values()]
        dtypes = [x for x in given if isinstance(x, torch.dtype)]
        devices = [torch.device(x) for x in given if isinstance(x, str | torch.device)]
        if dtypes:
            module_to(module, dtypes[0])
        if devices:
            move_module(card, module, devices[0])
        return module

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with card.in_backward(), DeviceInPython(card):  # `Tensor.backward` has left the mode
            return run_engine(*args, **kwargs)

    with contextlib.ExitStack() as patches:
        for name, answer in answers.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, lambda *_, a=answer, **__: a))
        patches.enter_context(mock.patch.object(nn.Module, "to", to))
        patches.enter_context(mock.patch.object(nn.Module, "cuda", lambda m: to(m, "cuda:0")))
        patches.enter_context(
            mock.patch.object(torch.autograd, "_engine_run_backward", run_backward)
        )
        # FakeTensor's own reads one number after another
        patches.enter_context(
            mock.patch.object(
                FakeTensor, "tolist", lambda x: moved_tensor(card, x.detach(), "cpu").tolist()
            )
        )
        patches.enter_context(mock.patch.object(torch.cuda, "CUDAGraph", PretendedGraph))
        patches.enter_context(mock.patch.object(torch.cuda, "graph", card.recording))
        for patch in _patches_of_product(card):
            patches.enter_context(patch)
        patches.enter_context(card)
        patches.enter_context(DeviceInPython(card))
        yield card


def _patches_of_product(card: PretendedCard) -> Iterator[Any]:
    """Replace what needs a card's driver or reads tensors' memory: loading weights, Triton, files."""
    from transformers import PreTrainedModel

    import triton_kernels
    from prism_lite.models import load_transformers
    from triton_kernels import _common, logprob

    load = load_transformers.AutoModelForImageTextToText.from_pretrained

    def load_on_cpu(path: str, **settings: Any) -> Any:
        place = settings.pop("device_map", None)
        with without_mode():
            model = load(path, device_map={"": "cpu"}, **settings)
        if place is not None and torch.device(place[""]).type == "cuda":
            move_module(card, model, CUDA)
        return model

    for module in (_common, logprob):
        yield mock.patch.object(module, "is_fake", lambda _tensor: False)
    for name in _KERNELS:
        yield mock.patch.object(triton_kernels, name, _as_kernel(card, triton_kernels, name))
    yield mock.patch.object(F, "rms_norm", _as_kernel(card, F, "rms_norm"))
    yield mock.patch.dict("os.environ", PRISM_KERNELS="torch")
    yield mock.patch.object(
        load_transformers.AutoModelForImageTextToText, "from_pretrained", load_on_cpu
    )
    save = torch.save

    def save_values(value: Any, *args: Any) -> None:
        save(tree_map_only(FakeTensor, lambda x: shadow(x).detach().clone(), value), *args)

    yield mock.patch.object(torch, "save", save_values)
    save_model = PreTrainedModel.save_pretrained

    def save_from_cpu(model: Any, *args: Any, **settings: Any) -> None:
        device = (
            model.device
        )  # shared weights are found by their storages, which pretended ones lack
        move_module(card, model, torch.device("cpu"))
        with without_mode():
            save_model(model, *args, **settings)
        move_module(card, model, device)

    yield mock.patch.object(PreTrainedModel, "save_pretrained", save_from_cpu)


def _as_kernel(card: PretendedCard, module: Any, name: str) -> Callable[..., Any]:
    """Return a function that is one kernel on a card, and counts as one."""
    function = getattr(module, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        with card.in_kernel(name):
            return function(*args, **kwargs)

    return run


def optimizers(dtype: str) -> dict[str, Any]:
    return {f"{stage}__optim__name": OPTIMIZER[dtype] for stage in STAGES_WITH_OPTIMIZER}


def load(config: Any) -> Backbone:
    return load_backbone(config.model, config.lora, base_folder(config), seed=0)


def groups_of(backbone: Backbone, config: Any, task: Any, **sampling: Any) -> list[Group]:
    settings = dataclasses.replace(config.sampling, max_completion_tokens=24, **sampling)
    return sample_groups(backbone, task.align[:2], group_size=3, sampling=settings, seed=(0,))
