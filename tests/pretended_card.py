"""A pretended card: tensors that say cuda:0, values computed on the CPU.

A pretended tensor is a FakeTensor on cuda:0 with a CPU tensor of the same layout, its shadow. Each
operation is computed on the shadows, after the rule of devices was checked. So the branches for a card run
with true values on any machine: devices that are mixed, types that a CUDA kernel refuses and reads of
device memory are found, launches and synchronisations are counted. A pretended CUDA graph records a step
and replays it; it refuses what waits for the card, and a shape that depends on data fails in a replay.

What it does not show: Triton's kernels (the torch path runs instead), managed memory, streams, the C++
formulas of torch's own backwards, speed.

Shape letters: A batch, H heads, Q queries, K keys, d head size.
"""

from __future__ import annotations

import contextlib
import math
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

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
_OF_4BIT_WEIGHTS = (
    "quant_state", "compress_statistics", "quant_type", "bnb_quantized", "blocksize",
    "quant_storage",
)  # fmt: skip


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
        self.is_moving_to_cpu = False  # by `_DeviceInPython`

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
            # cuda:0, and what depends on the device in C++ is in `_DeviceInPython`.
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
        run = _on_card().get(function, function)
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
            with _without(self.card):
                for operation in self.tape:
                    operation.run_again()


class _DeviceInPython(TorchFunctionMode):
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
            return _moved(self._card, tensor, *args[1:], **kwargs)
        if function is torch.Tensor.cpu:
            return _moved(self._card, tensor, "cpu")
        if function is torch.Tensor.cuda:
            return tensor
        if function == torch.Tensor.is_cuda.__get__:
            return True
        if function == torch.Tensor.data.__set__:
            tensor.pretended_values = shadow(args[1])
        return function(*args, **kwargs)


def _moved(card: PretendedCard, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
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


def _efficient_attention(
    q_AHQd: Tensor, k_AHKd: Tensor, v_AHKd: Tensor, bias: Tensor | None,
    compute_log_sumexp: bool, dropout: float = 0.0, is_causal: bool = False, *, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute what the CUDA kernel computes, in its layout, and refuse what it refuses."""
    assert q_AHQd.dtype == k_AHKd.dtype == v_AHKd.dtype and compute_log_sumexp and not dropout
    assert all(x.stride(-1) == 1 for x in (q_AHQd, k_AHKd, v_AHKd)), "d must be contiguous"
    assert q_AHQd.shape[0] <= 65535 and q_AHQd.shape[1] <= 65535
    score_AHQK = _scores(q_AHQd, k_AHKd, is_causal, scale)
    if bias is not None:
        assert bias.dtype == q_AHQd.dtype and bias.shape == score_AHQK.shape
        assert bias.stride(-1) == 1
        # the kernel reads the bias in aligned chunks of eight
        assert all(bias.shape[i] == 1 or bias.stride(i) % 8 == 0 for i in range(3)), bias.stride()
        score_AHQK = score_AHQK + bias.float()
    out_AHQd = (score_AHQK.softmax(-1) @ v_AHKd.float()).to(q_AHQd.dtype)
    out_AHQd = out_AHQd.transpose(1, 2).contiguous().transpose(1, 2)  # stored as [A, Q, H, d]
    lse_AHQ = score_AHQK.logsumexp(-1)
    padded = nn.functional.pad(lse_AHQ, (0, -lse_AHQ.shape[2] % 32), value=math.inf)
    zero = torch.zeros((), dtype=torch.long)  # seed and offset of dropout
    return out_AHQd, padded, zero, zero.clone()


def _efficient_attention_backward(
    grad_AHQd: Tensor, q_AHQd: Tensor, k_AHKd: Tensor, v_AHKd: Tensor, bias: Tensor | None,
    out_AHQd: Tensor, lse_AHQ: Tensor, _seed: Tensor, _offset: Tensor, _dropout: float,
    _needed: list[bool], is_causal: bool = False, *, scale: float,
) -> tuple[Tensor, Tensor, Tensor, None]:  # fmt: skip
    """Differentiate, from output and log-sum as they are given (the merged ones of a tree)."""
    assert bias is None and lse_AHQ.shape[2] % 32 == 0
    assert grad_AHQd.stride(-1) == 1 and out_AHQd.stride(-1) == 1
    num_queries, grad = q_AHQd.shape[2], grad_AHQd.float()
    score_AHQK = _scores(q_AHQd, k_AHKd, is_causal, scale)
    weight_AHQK = torch.exp(score_AHQK - lse_AHQ[:, :, :num_queries, None])
    delta_AHQ1 = (grad * out_AHQd.float()).sum(-1, keepdim=True)
    d_score = weight_AHQK * (grad @ v_AHKd.float().transpose(-1, -2) - delta_AHQ1) * scale
    d_q = d_score @ k_AHKd.float()
    d_k = d_score.transpose(-1, -2) @ q_AHQd.float()
    d_v = weight_AHQK.transpose(-1, -2) @ grad
    dtype = q_AHQd.dtype
    return d_q.to(dtype), d_k.to(dtype), d_v.to(dtype), None


def _scores(q_AHQd: Tensor, k_AHKd: Tensor, is_causal: bool, scale: float) -> Tensor:
    score_AHQK = (q_AHQd.float() @ k_AHKd.float().transpose(-1, -2)) * scale
    if not is_causal:
        return score_AHQK
    is_hidden = torch.ones(score_AHQK.shape[-2:], dtype=torch.bool).triu(1)
    return score_AHQK.masked_fill(is_hidden, -math.inf)


def _product_in_float32(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    assert a.dtype == b.dtype and a.dtype in (torch.float16, torch.bfloat16)
    assert out_dtype == torch.float32
    return a.float() @ b.float()


def _packed_attention(
    q_NJd: Tensor, k_KJd: Tensor, v_KJd: Tensor, begin_q: Tensor, begin_k: Tensor,
    most_queries: int, most_keys: int, *_others: Any, **_settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Attend within sequences end to end; flash attention's variable-length call."""
    assert q_NJd.dtype in (torch.float16, torch.bfloat16) and begin_k.dtype == torch.int32
    out_NJd = torch.zeros_like(q_NJd)
    lse_JN = torch.full((q_NJd.shape[1], len(q_NJd)), -math.inf)
    begins = (list(pairwise(begin.tolist())) for begin in (begin_q, begin_k))
    for (first_q, stop_q), (first_k, stop_k) in zip(*begins, strict=True):
        assert stop_q - first_q <= most_queries and stop_k - first_k <= most_keys
        if first_q == stop_q or first_k == stop_k:
            continue
        q, k, v = q_NJd[first_q:stop_q], k_KJd[first_k:stop_k], v_KJd[first_k:stop_k]
        score = torch.einsum("qjd,kjd->jqk", q.float(), k.float()) * q.shape[2] ** -0.5
        out = torch.einsum("jqk,kjd->qjd", score.softmax(-1), v.float())
        out_NJd[first_q:stop_q], lse_JN[:, first_q:stop_q] = out.to(q.dtype), score.logsumexp(-1)
    return out_NJd, lse_JN, torch.zeros(0)


@cache
def _on_card() -> dict[Any, Callable[..., Any]]:
    """Return what computes the operations that only CUDA has."""
    import torch.nn.attention.varlen  # its operator is registered here

    return {
        aten._scaled_dot_product_efficient_attention.default: _efficient_attention,
        aten._scaled_dot_product_efficient_attention_backward.default: _efficient_attention_backward,
        aten.mm.dtype: _product_in_float32,
        torch.ops.torch_attn._varlen_attn.default: _packed_attention,
    }


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
        with card.in_backward(), _DeviceInPython(card):  # `Tensor.backward` has left the mode
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
                FakeTensor, "tolist", lambda x: _moved(card, x.detach(), "cpu").tolist()
            )
        )
        patches.enter_context(mock.patch.object(torch.cuda, "CUDAGraph", PretendedGraph))
        patches.enter_context(mock.patch.object(torch.cuda, "graph", card.recording))
        for patch in _patches_of_product(card):
            patches.enter_context(patch)
        patches.enter_context(card)
        patches.enter_context(_DeviceInPython(card))
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
        with _without(card):
            model = load(path, device_map={"": "cpu"}, **settings)
        if place is not None and torch.device(place[""]).type == "cuda":
            move_module(card, model, CUDA)
        return model

    for module in (_common, logprob):
        yield mock.patch.object(module, "is_fake", lambda _tensor: False)
    for name in _KERNELS:
        yield mock.patch.object(triton_kernels, name, _as_kernel(card, name))
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
        with _without(card):
            save_model(model, *args, **settings)
        move_module(card, model, device)

    yield mock.patch.object(PreTrainedModel, "save_pretrained", save_from_cpu)


def _as_kernel(card: PretendedCard, name: str) -> Callable[..., Any]:
    import triton_kernels

    function = getattr(triton_kernels, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        with card.in_kernel(name):
            return function(*args, **kwargs)

    return run


@contextlib.contextmanager
def _without(card: PretendedCard) -> Iterator[None]:
    """Leave the mode for a while."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        yield
