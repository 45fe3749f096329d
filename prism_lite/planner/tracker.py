"""Counts live bytes: every storage that a torch operation returns, until it is freed.

The same tracker watches real tensors (`Watch`) and simulated ones (`simulate.Simulation`), so that the
two can be compared to the byte. Peaks are kept by region, the time between two marks; a mark stands
before each decoder layer, forward and backward, and before each drawn token. Regions of the same name
in runs with more layers are what `extrapolate.py` fits.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CATEGORIES = (
    "weights", "adapters", "optimizer", "gradients", "activations", "kv_cache", "logits", "pictures",
)  # fmt: skip
# Whose code asks for memory decides what it is for; what nobody here asks for is an activation.
# (The end of a file's path, the function or None for any, the category.)
_BY_CODE = (
    ("/triton_kernels/logprob.py", None, "logits"),
    ("/triton_kernels/logprob_torch.py", None, "logits"),
    ("/triton_kernels/logprob_triton.py", None, "logits"),
    ("/transformers/cache_utils.py", None, "kv_cache"),
    ("/prism_lite/sampling/kv_cache.py", "_empty", "kv_cache"),
    ("/prism_lite/sampling/kv_cache.py", "_rows", "kv_cache"),
    ("/prism_lite/sampling/kv_cache.py", "keep", "kv_cache"),
    ("/prism_lite/sampling/decoder.py", "_contiguous", "kv_cache"),
    ("/prism_lite/sampling/decoder.py", "_join_chunks", "kv_cache"),
    ("/prism_lite/models/packing.py", "_run", "activations"),
    ("/prism_lite/models/packing.py", "prompt_states", "kv_cache"),
)
_OPTIMIZERS = ("/torch/optim/", "/bitsandbytes/optim/", "/prism_lite/digits/muon.py")
_MAX_FRAMES = 24
_OFF_CARD = "off card"  # the category of what waits in the CPU's memory: no part of a peak

Key = tuple[str | int, ...]


@functools.cache
def _category_of_code(path: str, function: str) -> str | None:
    path = path.replace("\\", "/")
    if any(part in path for part in _OPTIMIZERS):
        return "optimizer"
    for end, name, category in _BY_CODE:
        if path.endswith(end) and name in (None, function):
            return category
    return None


@dataclass
class Peak:
    """The most bytes that lived in a region, what they were for, and the work done in it.

    Attributes:
        total: bytes on the card.
        by_category: the same, by what they were for.
        off_card: bytes in the CPU's memory at that moment (`host.py`).
        seconds: at the card's stated peaks: see `hardware.py`.
    """

    total: int
    by_category: dict[str, int]
    off_card: int = 0
    seconds: float = 0.0


@dataclass
class _Account:
    num_bytes: int
    category: str
    refs: list[Any] = field(default_factory=list)


class Tracker:
    """Live bytes now, by category, and the peaks of each region.

    Args:
        vocab_size: tensors that end in it are logits.
        seconds_of: rough time of one operation on the card, or None.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        seconds_of: Callable[[Any, tuple[Any, ...], Iterable[Tensor]], float] | None = None,
    ) -> None:
        self.now = 0
        self.off_card_now = 0
        self._is_off_card = False
        self.by_category: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        self.regions: dict[Key, Peak] = {}
        self._accounts: dict[int, _Account] = {}
        self._vocab_size = vocab_size
        self._seconds_of = seconds_of
        self.mark(("start",))

    def mark(self, key: Key) -> None:
        """Begin a region; one of the same name goes on from its peak so far."""
        if key not in self.regions:
            self.regions[key] = Peak(self.now, dict(self.by_category), self.off_card_now)
        self._region = self.regions[key]
        self._note_peak()

    @property
    def peak(self) -> Peak:
        """The highest of all regions."""
        return max(self.regions.values(), key=lambda peak: peak.total)

    def seed(self, tensors: Iterable[Tensor], category: str) -> None:
        """Count tensors that were there before, or name anew what is counted already.

        What waits in the CPU's memory stays there.
        """
        for tensor in tensors:
            account = self._accounts.get(tensor.untyped_storage()._cdata)
            if account is None or account.category != _OFF_CARD:
                self._name(tensor, category)
        self._note_peak()

    def leave(self, tensors: Iterable[Tensor]) -> None:
        """Tensors move into the CPU's memory."""
        for tensor in tensors:
            self._name(tensor, _OFF_CARD)

    def arrive(self, tensors: Iterable[Tensor], category: str) -> None:
        """Tensors come from the CPU's memory onto the card, one after another."""
        for tensor in tensors:
            self._name(tensor, category)
        self._note_peak()

    @contextlib.contextmanager
    def off_card(self) -> Iterator[None]:
        """What is made inside lies in the CPU's memory."""
        self._is_off_card = True
        try:
            yield
        finally:
            self._is_off_card = False

    def record(self, function: Any, args: tuple[Any, ...], outputs: Any) -> None:
        """Count what an operation returned."""
        tensors = [outputs] if isinstance(outputs, Tensor) else _tensors_of(outputs)
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._accounts:
                self._open(storage, _OFF_CARD if self._is_off_card else self._category(tensor))
        self._note_peak()
        if self._seconds_of is not None:
            self._region.seconds += self._seconds_of(function, args, tensors)

    def workspace(self, num_bytes: int, category: str = "activations") -> None:
        """Bytes that an operation needs while it runs and frees itself."""
        if self.now + num_bytes > self._region.total:
            self._region.total = self.now + num_bytes
            self._region.by_category = dict(self.by_category)
            self._region.by_category[category] += num_bytes
            self._region.off_card = self.off_card_now

    def _note_peak(self) -> None:
        if self.now > self._region.total:
            self._region.total = self.now
            self._region.by_category = dict(self.by_category)
            self._region.off_card = self.off_card_now

    def _name(self, tensor: Tensor, category: str) -> None:
        storage = tensor.untyped_storage()
        account = self._accounts.get(storage._cdata)
        if account is None:
            self._open(storage, category)
            return
        self._count(account.category, -account.num_bytes)
        self._count(category, account.num_bytes)
        account.category = category

    def _count(self, category: str, num_bytes: int) -> None:
        if category == _OFF_CARD:
            self.off_card_now += num_bytes
        else:
            self.now += num_bytes
            self.by_category[category] += num_bytes

    def _open(self, storage: Any, category: str) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if num_bytes == 0:
            return
        account = _Account(num_bytes, category)
        account.refs.append(weakref.ref(storage, functools.partial(self._close, key)))
        self._accounts[key] = account
        self._count(category, num_bytes)

    def _close(self, key: int, _ref: Any) -> None:
        account = self._accounts.pop(key)
        self._count(account.category, -account.num_bytes)

    def _category(self, tensor: Tensor) -> str:
        if tensor.dim() > 0 and tensor.shape[-1] == self._vocab_size:
            return "logits"
        frame = sys._getframe(2)
        for _ in range(_MAX_FRAMES):
            found = _category_of_code(frame.f_code.co_filename, frame.f_code.co_name)
            if found is not None:
                return found
            if frame.f_back is None:
                break
            frame = frame.f_back
        return "activations"


def _tensors_of(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


class Watch(TorchDispatchMode):
    """Let a tracker see every operation on real tensors."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        self._tracker.record(func, args, outputs)
        return outputs


def watch_layers(tracker: Tracker, layers: Iterable[torch.nn.Module]) -> list[Any]:
    """Mark each decoder layer's forward, what follows the last, and each layer's backward.

    Region names: ("forward" | "backward", pass, layer) and ("head", pass); a pass is one forward over
    all layers. Take the hooks off with `handle.remove()`.
    """
    layers = list(layers)
    passes = 0
    has_graph: set[int] = set()  # layers whose output had one

    def before(number: int, _layer: Any, _args: Any) -> None:
        nonlocal passes
        if torch._C._current_graph_task_id() >= 0:
            if number not in has_graph:  # an offloaded layer: its backward begins with this
                tracker.mark(("backward", passes, number))
            return  # checkpointing runs the layer again: a part of its backward
        passes += number == 0
        tracker.mark(("forward", passes, number))

    def after(number: int, _layer: Any, _args: Any, output: Any) -> None:
        if torch._C._current_graph_task_id() >= 0:
            return
        hidden = output[0] if isinstance(output, tuple) else output
        if number == len(layers) - 1:
            tracker.mark(("head", passes))
        if hidden.requires_grad:
            has_graph.add(number)
            key = ("backward", passes, number)
            hidden.register_hook(lambda _grad: tracker.mark(key))

    handles = []
    for number, layer in enumerate(layers):
        handles += [
            layer.register_forward_pre_hook(functools.partial(before, number)),
            layer.register_forward_hook(functools.partial(after, number)),
        ]
    return handles


def watch_tower(tracker: Tracker, tower: torch.nn.Module) -> list[Any]:
    """Mark the vision tower's work as regions ("tower",) and ("after tower",)."""
    return [
        tower.register_forward_pre_hook(lambda *_: tracker.mark(("tower",))),
        tower.register_forward_hook(lambda *_: tracker.mark(("after tower",))),
    ]
