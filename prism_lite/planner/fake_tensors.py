"""Run real code on tensors without data: large and learned tensors are fake, small ones real.

Torch's FakeTensorMode knows the shape of every operation's result. Token ids, positions and masks stay
real where they are small, so that code that looks at values takes the path that it takes in a run. A value
that depends on a fake tensor is 1.0 for a float, otherwise 0 or False; but `all()` is True, so that checks
for finite numbers pass.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prism_lite.planner.tracker import Tracker, tensors_in

_LARGEST_REAL = 2**20  # elements: the tokens of all rows are real
_CPU, CARD = torch.device("cpu"), torch.device("cuda:0")
_aten = torch.ops.aten
_INDEXING = {
    _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default,
    _aten._index_put_impl_.default,
}  # fmt: skip
_MADE_FROM_NOTHING = {
    _aten.empty.memory_format, _aten.zeros.default, _aten.ones.default, _aten.full.default,
    _aten.rand.default, _aten.rand.generator, _aten.randn.default, _aten.randn.generator,
}  # fmt: skip

_IS_TRUE = "_prism_is_true"  # set on the fake results of `all()`


_FORMS: dict[Any, Any] = {}  # of results, by operation and forms of its arguments


class _TensorForm(NamedTuple):
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class Simulation(TorchDispatchMode):
    """The dispatch mode that decides what is real and lets a tracker see both kinds.

    On a card fake tensors say cuda:0 to Python, so that code which asks takes a card's branches. To torch's
    C++ code they are a CPU's: it would look for a driver. Of what we run it is only the kernel of
    scaled_dot_product_attention that C++ chooses by device: the vision tower's is a CPU's, as large.
    """

    def __init__(self, tracker: Tracker, fake_mode: FakeTensorMode, *, on_card: bool) -> None:
        super().__init__()
        self._tracker = tracker
        self._fake_mode = fake_mode
        self._on_card = on_card
        self._device = CARD if on_card else _CPU
        blank = FakeTensor(fake_mode, torch.empty(0, device="meta"), _CPU)
        self._attributes = vars(relabelled(blank, self._device))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard costs more than an operation

    def __enter__(self) -> Self:
        # torch.tensor(values, device="cuda") then asks this mode for the copy, not a driver
        self._lifted_before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._lifted_before)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return _CPU  # asked in C++, where a card's name makes torch look for its driver
        if func is _aten._to_copy.default and self._is_there(args[0], kwargs or {}):
            return self._computed(_aten.alias.default, args, {})
        inputs = tensors_in(args)
        outputs = self._run(func, args, kwargs or {}, inputs)
        if func is _aten.all.default and isinstance(outputs, FakeTensor):
            setattr(outputs, _IS_TRUE, True)
        workspace = _workspace_bytes(func, args) if self._on_card else 0
        self._tracker.record(func, args, inputs, outputs, workspace)
        return outputs

    def _is_there(self, tensor: Tensor, kwargs: dict[str, Any]) -> bool:
        """Whether a copy would not be made on a card, where the tensor is on the device already."""
        if not isinstance(tensor, FakeTensor) or kwargs.get("device") is None:
            return False
        is_same = torch.device(kwargs["device"]).type == tensor.fake_device.type
        return is_same and kwargs.get("dtype") in (None, tensor.dtype)

    def _run(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor]
    ) -> Any:
        tensors = [*inputs, *tensors_in(tuple(kwargs.values()))] if kwargs else inputs
        num_fake = sum(isinstance(tensor, FakeTensor) for tensor in tensors)
        if num_fake == 0 and not _is_large(func, args, tensors):
            if (
                kwargs.get("device") is not None
            ):  # small tensors keep their values, so the CPU has them
                kwargs = {**kwargs, "device": _CPU}
            return func(*args, **kwargs)
        if func is _aten._local_scalar_dense.default:
            return _unknown_value(args[0])
        if num_fake and not isinstance(tensors[0], FakeTensor) and func._schema.is_mutable:
            return args[0]  # a real tensor that is written from a fake one keeps its values
        if func is _aten.mm.dtype:  # has no kernel for tensors without data
            shape = torch.Size((args[0].shape[0], args[1].shape[1]))
            return self._made(_TensorForm(shape, (shape[1], 1), args[2]))
        if func in _INDEXING:
            args = (args[0], _as_positions(args[1]), *args[2:])
        if func in _INDEXING or num_fake < len(tensors):
            args, kwargs = tree_map_only(Tensor, self._as_fake, (args, kwargs))
        if not tensors or kwargs.get("device") is not None:
            return self._made_for_device(func, args, kwargs)
        if func.is_view or func._schema.is_mutable:
            return self._computed(func, args, kwargs)
        # Layers repeat: an operation on arguments of the same forms returns tensors of the same forms.
        key = (func, _form(args), _form(tuple(kwargs.values())))
        if key not in _FORMS:
            outputs = self._computed(func, args, kwargs)
            _FORMS[key] = _form(outputs) if _are_new_tensors(outputs, tensors) else None
            return outputs
        form = _FORMS[key]
        return self._computed(func, args, kwargs) if form is None else self._made(form)

    def _made_for_device(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that names a device: a factory, or a copy from one device to another."""
        device = torch.device(kwargs.get("device") or "cpu")
        with self._fake_mode:
            outputs = func(*args, **{**kwargs, "device": _CPU})
        return relabelled(outputs, CARD if device.type == "cuda" else _CPU)

    def _faked(self, meta: Tensor) -> Tensor:
        """Return a fake tensor in the memory of one on the meta device.

        Without `FakeTensor.__new__`, whose checks take longer than everything else of an operation.
        """
        fake = Tensor._make_subclass(
            FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=_CPU
        )
        torch._C._set_throw_on_mutable_data_ptr(fake)
        vars(fake).update(self._attributes)
        return fake

    def _computed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do what FakeTensorMode does, without its checks and caches: they double a plan's time."""
        with in_kernel_invocation_manager(self._fake_mode):
            outputs = func(*args, **kwargs)
        return self._wrapped(outputs)

    def _made(self, form: Any) -> Any:
        """Return a new tensor, or a tuple of them, of this form."""
        if isinstance(form, _TensorForm):
            meta = torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")
            return self._faked(meta)
        return tuple(map(self._made, form))

    def _as_fake(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        return relabelled(self._fake_mode.from_tensor(tensor, static_shapes=True), self._device)

    def _wrapped(self, outputs: Any) -> Any:
        if isinstance(outputs, Tensor) and not isinstance(outputs, FakeTensor):
            return self._faked(outputs)
        if isinstance(outputs, (tuple, list)):
            return type(outputs)(self._wrapped(output) for output in outputs)
        return outputs


def relabelled(tensor: Any, device: torch.device) -> Any:
    """Let a fake tensor say that it is on a device.

    It keeps the dispatch keys of a CPU's tensor: with a card's, torch would look for a driver.
    """
    tensor.fake_device = device
    return tensor


def _is_large(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> bool:
    if not tensors:
        return func in _MADE_FROM_NOTHING and math.prod(args[0]) > _LARGEST_REAL
    return not func.is_view and max(tensor.numel() for tensor in tensors) > _LARGEST_REAL


def _form(values: Any) -> Any:
    """Return what of an operation's arguments decides the form of its results."""
    if isinstance(values, Tensor):
        return _TensorForm(values.shape, values.stride(), values.dtype)
    if isinstance(values, (tuple, list)):
        return tuple(map(_form, values))
    return type(values), values


def _are_new_tensors(outputs: Any, inputs: list[Tensor]) -> bool:
    """Whether an operation returned only tensors, none in the memory of an argument."""
    results = outputs if isinstance(outputs, tuple) else (outputs,)
    used = {tensor.untyped_storage()._cdata for tensor in inputs}
    return all(
        isinstance(result, Tensor) and result.untyped_storage()._cdata not in used
        for result in results
    )


def _unknown_value(tensor: Tensor) -> float | int | bool:
    if tensor.dtype == torch.bool:
        return getattr(tensor, _IS_TRUE, False)
    return 1.0 if tensor.dtype.is_floating_point else 0


def _as_positions(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Replace real bool masks by the positions of their True values: their number decides the shape."""
    positions: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            positions += list(index.nonzero(as_tuple=True))
        else:
            positions.append(index)
    return positions


def _workspace_bytes(func: Any, args: tuple[Any, ...]) -> int:
    """Return what a 4-bit product of many rows needs on a card: the weight in 16 bit, scales in 32."""
    if func is not torch.ops.bitsandbytes.gemm_4bit.default:
        return 0
    num_rows, shape = args[0].numel() // args[0].shape[-1], args[2]
    if num_rows <= 4:  # few rows go through a kernel that reads the packed weight
        return 0
    num_weights = math.prod(shape)
    return num_weights * args[0].element_size() + num_weights // 64 * 4  # a scale for 64 weights
