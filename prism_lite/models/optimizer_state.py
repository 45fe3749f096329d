"""Optimizer states as safetensors: the tensors, and a JSON text that says where each one belongs.

A state is nested dicts, lists and tuples of tensors and plain values (torch and bitsandbytes alike; the
keys of parameters are integers, which JSON does not have). No pickle is written or read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_PLAIN = (bool, int, float, str, type(None))


def split_state(state: Any) -> tuple[dict[str, Tensor], str]:
    """Split a state into tensors by name, on the CPU, and the JSON text of everything else.

    Tensors that share memory (the code books of bitsandbytes) become copies.
    """
    tensors: dict[str, Tensor] = {}
    layout = _layout(state, "state", tensors)
    return tensors, json.dumps(layout)


def join_state(tensors: Mapping[str, Tensor], layout: str) -> Any:
    """Return the state that `split_state` has split."""
    return _value(json.loads(layout), tensors)


def _layout(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return what JSON stores of a value; its tensors are added to `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = [[key, _layout(part, f"{name}.{key}", tensors)] for key, part in value.items()]
        assert all(isinstance(key, int | str) for key, _ in items)
        return {"items": items}
    if isinstance(value, list | tuple):
        parts = [_layout(part, f"{name}.{i}", tensors) for i, part in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": parts}
    assert isinstance(value, _PLAIN), f"{name} is a {type(value).__name__}, which JSON cannot store"
    return {"value": value}


def _value(layout: Any, tensors: Mapping[str, Tensor]) -> Any:
    [(kind, content)] = layout.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: _value(part, tensors) for key, part in content}
    if kind in ("list", "tuple"):
        parts = [_value(part, tensors) for part in content]
        return tuple(parts) if kind == "tuple" else parts
    return content


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with NaN or infinity, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None
