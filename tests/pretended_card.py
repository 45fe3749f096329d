"""A pretended card: tensors that say cuda:0, values computed on the CPU.

A pretended tensor is a FakeTensor on cuda:0 with a CPU tensor of the same layout, its shadow. Each
operation is computed on the shadows, after the rule of devices was checked. So the branches for a card run
with true values on any machine: devices that are mixed, types that a CUDA kernel refuses and reads of
device memory are found, launches and synchronisations are counted. A pretended CUDA graph records a step
and replays it; it refuses what waits for the card, and a shape that depends on data fails in a replay.

What it does not show: Triton's kernels (the torch path runs instead), managed memory, streams, the C++
formulas of torch's own backwards, speed.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from tests.pretended_kernels import computed_on_card

aten: Any = torch.ops.aten
CUDA = torch.device("cuda:0")
T4, RTX_4090 = (7, 5), (8, 9)
# CUDA takes indices that are on the CPU; they are copied, which synchronises.
_TAKES_CPU_INDICES = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)


class PretendedCard(TorchDispatchMode):
    """The mode under which tensors on cuda:0 have values.

    Attributes:
        launches: kernels by operation; views launch nothing, a kernel of triton_kernels and the replay
            of a graph are one.
        synchronisations: moments at which the host waits for the card, by kind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.launches: Counter[str] = Counter()
        self.synchronisations: Counter[str] = Counter()
        self._num_backwards = 0  # of torch's engine that are running
        self._num_kernels = 0  # of triton_kernels that are running, as their torch path
        self._tape: list[_Recorded] | None = None  # of the graph that is being recorded
        self.is_moving_to_cpu = False  # by `DeviceInPython`

        blank = FakeTensor(self.fake_mode, torch.empty(0, device="meta"), torch.device("cpu"))
        blank.fake_device = CUDA
        self._attributes = vars(blank)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard costs more than an operation

    @property
    def num_launches(self) -> int:
        return self.launches.total()

    def __enter__(self) -> PretendedCard:
        # As in FakeTensorMode: torch.tensor(..., device="cuda") is made on the CPU and moved.
        self._lifted_before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._lifted_before)
        super().__exit__(*error)

    def pretend(self, value: Tensor) -> FakeTensor:
        """Return a tensor on the card with this CPU tensor as its shadow."""
        meta = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return self._pair(meta, value)

    def count(self, name: str) -> None:
        """Count a launch; there is none while a graph is recorded, nor in another kernel."""
        if not self._num_kernels and self._tape is None:
            self.launches[name] += 1

    @contextlib.contextmanager
    def in_kernel(self, name: str) -> Iterator[None]:
        """Count all operations inside as one launch."""
        self.count(name)
        self._num_kernels += 1
        try:
            yield
        finally:
            self._num_kernels -= 1

    @contextlib.contextmanager
    def recording(self, graph: PretendedGraph, **_settings: Any) -> Iterator[None]:
        """Record the operations inside: `torch.cuda.graph`."""
        self._tape = graph.tape
        graph.card = self
        try:
            yield
        finally:
            self._tape = None

    @contextlib.contextmanager
    def in_backward(self) -> Iterator[None]:
        """Mark torch's engine as running: its C++ formulas make zeros on a device that is unknown here."""
        self._num_backwards += 1
        try:
            yield
        finally:
            self._num_backwards -= 1

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.ops.prim.device.default:
            # Torch's own C++ asks: for a card, autograd would look for its driver. Python code sees
            # cuda:0, and what depends on the device in C++ is in `DeviceInPython`.
            return torch.device("cpu")
        kwargs.pop("pin_memory", None)
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        pretended = [x for x in tensors if isinstance(x, FakeTensor)]
        device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if not pretended and (device is None or device.type != "cuda"):
            return function(*args, **kwargs)
        self._check_devices(function, args, tensors, device)
        self._count_synchronisation(function, args, device)
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        flat, spec = tree_flatten((args, kwargs))
        shadow_args, shadow_kwargs = tree_unflatten([shadow(x) for x in flat], spec)
        run = computed_on_card().get(function, function)
        result = run(*shadow_args, **shadow_kwargs)
        if self._tape is not None and not function.is_view:
            self._tape.append(_Recorded(run, shadow_args, shadow_kwargs, result))
        if self._is_to_cpu(function, device) or function is aten._local_scalar_dense.default:
            return result
        if function.is_view:
            with in_kernel_invocation_manager(self.fake_mode):
                fake = function(*args, **kwargs)
            return self._pair(fake, result)
        self.count(str(function))
        if function._schema.is_mutable:
            return self._written(args, tensors, result)
        return tree_map_only(Tensor, self.pretend, result)

    def _check_devices(
        self, function: Any, args: Any, tensors: list[Tensor], device: torch.device | None
    ) -> None:
        """Refuse tensors of both devices, as CUDA does; numbers (no dimension) may be on the CPU."""
        on_cpu = [x for x in tensors if not isinstance(x, FakeTensor) and x.dim() > 0]
        if not on_cpu or len(on_cpu) == len(tensors) or device is not None:
            return
        if function in (aten.copy_.default, aten._to_copy.default):
            return
        if function in _TAKES_CPU_INDICES and isinstance(args[0], FakeTensor):
            self.synchronisations["index on the CPU"] += 1
            return
        if self._num_backwards and function not in _TAKES_CPU_INDICES:
            return
        where = [(tuple(x.shape), "cuda" if isinstance(x, FakeTensor) else "cpu") for x in tensors]
        raise RuntimeError(f"Expected all tensors on the same device: {function} of {where}")

    def _count_synchronisation(self, function: Any, args: Any, device: torch.device | None) -> None:
        is_copy = function in (aten.copy_.default, aten._to_copy.default)
        to_cpu = self._is_to_cpu(function, device)
        if function is aten._local_scalar_dense.default:
            kind = "item"
        elif function is aten.equal.default:
            kind = "comparison"
        elif function in (aten.nonzero.default, aten.masked_select.default):
            kind = "shape that depends on data"
        elif to_cpu or (is_copy and device is None and not isinstance(args[0], FakeTensor)):
            kind = "copy to the CPU"
        elif is_copy and not isinstance(args[function is aten.copy_.default], FakeTensor):
            kind = "copy to the card"
        else:
            return
        if self._tape is not None:
            raise RuntimeError(f"a CUDA graph cannot hold this: {kind}, {function}")
        self.synchronisations[kind] += 1

    def _is_to_cpu(self, function: Any, device: torch.device | None) -> bool:
        """Check for a move that Python asks for: C++ names "cpu", as it sees the device, on its own."""
        return self.is_moving_to_cpu and function is aten._to_copy.default and device is not None

    def _written(self, args: Any, tensors: list[Tensor], result: Any) -> Any:
        """Return what an operation in place returns: the very tensors that it was given."""
        if not isinstance(result, Tensor):
            return result
        for tensor in tensors:
            if shadow(tensor) is result:
                return tensor
        return args[0] if shadow(args[0]).data_ptr() == result.data_ptr() else self.pretend(result)

    def _pair(self, fake: Any, value: Any) -> Any:
        if not isinstance(fake, Tensor):
            return type(fake)(self._pair(f, v) for f, v in zip(fake, value, strict=True))
        if not isinstance(fake, FakeTensor):
            # As `FakeTensor.__new__`, without its checks. With the dispatch keys of a card autograd's
            # engine would look for its driver.
            fake = Tensor._make_subclass(
                FakeTensor,
                fake,
                False,
                dispatch_device=True,
                device_for_backend_keys=torch.device("cpu"),
            )
            vars(fake).update(self._attributes)
        fake.pretended_values = value
        return fake


@dataclass(frozen=True, eq=False)
class _Recorded:
    """An operation of a recorded step, with its shadows."""

    run: Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]
    result: Any

    def run_again(self) -> None:
        """Compute again, into the memory of the first result."""
        again = self.run(*self.args, **self.kwargs)
        for old, new in zip(tree_flatten(self.result)[0], tree_flatten(again)[0], strict=True):
            if isinstance(old, Tensor) and old is not new:
                assert old.shape == new.shape, "the shape depends on data"
                old.copy_(new)


class PretendedGraph:
    """`torch.cuda.CUDAGraph`. Recording takes the step, so the first replay has nothing left to do."""

    def __init__(self) -> None:
        self.tape: list[_Recorded] = []
        self.card: PretendedCard | None = None
        self._num_replays = 0

    def replay(self) -> None:
        assert self.card is not None and self.tape, "nothing was recorded"
        self.card.count("replay of a graph")
        self._num_replays += 1
        if self._num_replays > 1:
            with without_mode():
                for operation in self.tape:
                    operation.run_again()


class DeviceInPython(TorchFunctionMode):
    """The methods of a tensor that look at its device in C++, where a pretended one says "cpu"."""

    def __init__(self, card: PretendedCard) -> None:
        super().__init__()
        self._card = card

    def __torch_function__(
        self, function: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor:  # a list of tensors is read number by number
            return torch.tensor(tree_map_only(FakeTensor, lambda x: x.item(), args[0]), **kwargs)
        if not args or not isinstance(args[0], FakeTensor):
            return function(*args, **kwargs)
        tensor = args[0]
        if function in (torch.Tensor.to, torch.Tensor.type_as):
            return moved_tensor(self._card, tensor, *args[1:], **kwargs)
        if function is torch.Tensor.cpu:
            return moved_tensor(self._card, tensor, "cpu")
        if function is torch.Tensor.cuda:
            return tensor
        if function == torch.Tensor.is_cuda.__get__:
            return True
        if function == torch.Tensor.data.__set__:
            tensor.pretended_values = shadow(args[1])
        return function(*args, **kwargs)


def moved_tensor(card: PretendedCard, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return `tensor.to(...)`: itself where it has the device and the type already."""
    device, dtype = torch.device("cuda:0"), tensor.dtype
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, str | torch.device):
            device = torch.device(value)
    if device.type == "cpu":
        card.is_moving_to_cpu = True
        try:
            return aten._to_copy.default(tensor, dtype=dtype, device=device)
        finally:
            card.is_moving_to_cpu = False
    if dtype != tensor.dtype or kwargs.get("copy"):
        return aten._to_copy.default(tensor, dtype=dtype)
    return tensor


def shadow(value: Any) -> Any:
    """Return the CPU tensor of a pretended one; anything else as it is."""
    return value.pretended_values if isinstance(value, FakeTensor) else value


@contextlib.contextmanager
def without_mode() -> Iterator[None]:
    """Leave the mode for a while."""
    with _disable_current_modes():
        yield
