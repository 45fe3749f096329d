"""Run real code on tensors without data: large and learned tensors are fake, small ones real.

Torch's FakeTensorMode knows the result's shape of every operation. Token ids, positions and masks stay
real where they are small, so that code that looks at values goes the way it goes in a run. A value that
hangs on a fake tensor is 1.0 for a float, 0 or False else; but `all()` holds, so that numbers that are not
there pass for finite.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prism_lite.planner.tracker import Tracker

_LARGEST_REAL = 2**18  # elements
_CPU = torch.device("cpu")
_aten = torch.ops.aten
_INDEXING = {
    _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default,
    _aten._index_put_impl_.default,
}  # fmt: skip
_MADE_FROM_NOTHING = {
    _aten.empty.memory_format, _aten.zeros.default, _aten.ones.default, _aten.full.default,
    _aten.rand.default, _aten.rand.generator, _aten.randn.default, _aten.randn.generator,
}  # fmt: skip

_HOLDS = "_prism_holds"  # set on the fake results of `all()`
_FORMS: dict[Any, Any] = {}  # of results, by operation and forms of its arguments


class Simulation(TorchDispatchMode):
    """The dispatch mode that decides what is real and lets a tracker see both kinds."""

    def __init__(self, tracker: Tracker, fake_mode: FakeTensorMode, *, on_card: bool) -> None:
        super().__init__()
        self._tracker = tracker
        self._fake_mode = fake_mode
        self._on_card = on_card

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard costs more than an operation

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        outputs = self._run(func, args, kwargs or {})
        if func is _aten.all.default and isinstance(outputs, FakeTensor):
            setattr(outputs, _HOLDS, True)
        self._tracker.record(func, args, outputs)
        if self._on_card:
            self._tracker.workspace(_workspace_of(func, args))
        return outputs

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = _tensors_in((*args, *kwargs.values()))
        num_fake = sum(isinstance(tensor, FakeTensor) for tensor in tensors)
        if num_fake == 0 and not self._is_large(func, args, tensors):
            return func(*args, **kwargs)
        if func is _aten._local_scalar_dense.default:
            return _unknown_value(args[0])
        is_real_written = tensors and not isinstance(tensors[0], FakeTensor) and num_fake > 0
        if is_real_written and func._schema.is_mutable:
            return args[0]  # a real tensor that is written from a fake one keeps its values
        if func in _INDEXING:
            args = (args[0], _whole_numbers(args[1]), *args[2:])
            num_fake = -1
        if num_fake != len(tensors):
            args, kwargs = tree_map_only(Tensor, self._as_fake, (args, kwargs))
        if not tensors or kwargs.get("device") is not None:
            with self._fake_mode:
                return func(*args, **kwargs)
        if func.is_view or func._schema.is_mutable:
            return self._computed(func, args, kwargs)
        key = (func, _form(args), _form(tuple(kwargs.values())))
        if key not in _FORMS:
            outputs = self._computed(func, args, kwargs)
            _FORMS[key] = _form_of_results(outputs, tensors)
            return outputs
        form = _FORMS[key]
        return self._computed(func, args, kwargs) if form is None else self._remade(form)

    def _computed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What FakeTensorMode does in the end, without its caches and checks."""
        with in_kernel_invocation_manager(self._fake_mode):
            outputs = func(*args, **kwargs)
        return self._wrapped(outputs)

    def _remade(self, form: Any) -> Any:
        """Results of an operation that had arguments of this form before: layers repeat."""
        made = [
            None
            if one is None
            else torch.empty_strided(one[0], one[1], dtype=one[2], device="meta")
            for one in form
        ]
        outputs = [None if one is None else FakeTensor(self._fake_mode, one, _CPU) for one in made]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _is_large(self, func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> bool:
        if not tensors:
            return func in _MADE_FROM_NOTHING and math.prod(args[0]) > _LARGEST_REAL
        if func.is_view:
            return False
        return max(tensor.numel() for tensor in tensors) > _LARGEST_REAL

    def _as_fake(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        return self._fake_mode.from_tensor(tensor, static_shapes=True)

    def _wrapped(self, outputs: Any) -> Any:
        if isinstance(outputs, FakeTensor):
            return outputs
        if isinstance(outputs, Tensor):
            return FakeTensor(self._fake_mode, outputs, _CPU)
        if isinstance(outputs, (tuple, list)):
            return type(outputs)(self._wrapped(output) for output in outputs)
        return outputs


def _tensors_in(values: tuple[Any, ...] | list[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


def _form(values: tuple[Any, ...] | list[Any]) -> tuple[Any, ...]:
    """What decides the form of an operation's results."""
    return tuple(
        (value.shape, value.stride(), value.dtype)
        if isinstance(value, Tensor)
        else _form(value)
        if isinstance(value, (tuple, list))
        else (type(value), value)
        for value in values
    )


def _form_of_results(outputs: Any, inputs: list[Tensor]) -> Any:
    """Forms of new tensors; None where a result is no tensor or shares an argument's memory."""
    results = [outputs] if isinstance(outputs, Tensor) else outputs
    if not isinstance(results, (list, tuple)) or isinstance(outputs, list):
        return None
    taken = {tensor.untyped_storage()._cdata for tensor in inputs}
    form = []
    for result in results:
        if result is None:
            form.append(None)
        elif isinstance(result, Tensor) and result.untyped_storage()._cdata not in taken:
            form.append((tuple(result.shape), result.stride(), result.dtype))
        else:
            return None
    return form


def _unknown_value(tensor: Tensor) -> float | int | bool:
    if tensor.dtype == torch.bool:
        return getattr(tensor, _HOLDS, False)
    return 1.0 if tensor.dtype.is_floating_point else 0


def _whole_numbers(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Real bool masks as the positions of their True values: how many decides the shape."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            found += list(index.nonzero(as_tuple=True))
        else:
            found.append(index)
    return found


def _workspace_of(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that bitsandbytes' 4-bit product needs on a card for many rows: the 16-bit weight."""
    if func is not torch.ops.bitsandbytes.gemm_4bit.default:
        return 0
    rows, shape = args[0].numel() // args[0].shape[-1], args[2]
    if rows <= 4:
        return 0
    num_weights = math.prod(shape)
    return num_weights * args[0].element_size() + num_weights // 64 * 4
