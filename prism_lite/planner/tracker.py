"""Count live bytes: every storage that a torch operation returns, until it is freed.

`fake_tensors.Simulation` shows it every operation. A mode that shows it those on real tensors lets the two
be compared to the byte (tests/planning.py). Peaks are kept by region: the time between two marks.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from prism_lite.planner.cards import Card, seconds_on
from prism_lite.planner.reserved import Block, Reserved

CATEGORIES = (
    "weights", "adapters", "optimizer", "gradients", "activations", "kv_cache", "logits", "pictures",
)  # fmt: skip
# Operations that return memory, or another view of it, and start no kernel.
_WITHOUT_KERNEL = (
    "aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.detach", "aten.lift", "aten.alias",
    "aten.set_", "aten.resize", "aten._local_scalar_dense", "aten._efficientzerotensor",
)  # fmt: skip
OFF_CARD = "off card"  # the category of what waits in the CPU's memory: not part of a peak
# Whose code asks for memory decides what it is for; what none of this code asks for is an activation.
# (Part of a file's path, the function or None for any, the category.) A test checks that they exist.
_BY_CODE = (
    ("/torch/optim/", None, "optimizer"),
    ("/bitsandbytes/optim/", None, "optimizer"),
    ("/prism_lite/digits/muon.py", None, "optimizer"),
    ("/triton_kernels/logprob.py", None, "logits"),
    ("/triton_kernels/logprob_torch.py", None, "logits"),
    ("/triton_kernels/logprob_triton.py", None, "logits"),
    ("/transformers/cache_utils.py", None, "kv_cache"),
    ("/prism_lite/sampling/kv_cache.py", "_empty", "kv_cache"),
    ("/prism_lite/sampling/kv_cache.py", "_rows", "kv_cache"),
    ("/prism_lite/sampling/kv_cache.py", "keep", "kv_cache"),
    ("/prism_lite/sampling/packed_cache.py", "keep", "kv_cache"),
    ("/prism_lite/sampling/decoder.py", "empty_buffers", "kv_cache"),
    ("/prism_lite/sampling/decoder.py", "_merged", "weights"),
    ("/prism_lite/models/packing.py", "_run", "activations"),
    ("/prism_lite/models/packing.py", "prompt_states", "kv_cache"),
)
_MAX_FRAMES = 24

Key = tuple[str | int, ...]


@functools.cache
def _category_of_code(path: str, function: str) -> str | None:
    for part, name, category in _BY_CODE:
        if part in path and name in (None, function):
            return category
    return None


@dataclass
class Peak:
    """The most bytes that were live in a region, what they were for, and the work done in it.

    Attributes:
        total: bytes on the card.
        by_category: the same, by what they were for.
        off_card: bytes in the CPU's memory at that moment (`cpu_memory.py`).
        busy_s: seconds of arithmetic and memory traffic on the card (`cards.py`), attention without.
        attention_s: the same of attention.
        num_launches: operations that start a kernel on the card.
    """

    total: int
    by_category: dict[str, int]
    off_card: int = 0
    busy_s: float = 0.0
    attention_s: float = 0.0
    num_launches: int = 0


@dataclass
class _Account:
    num_bytes: int
    category: str
    reference: weakref.ref[Any]
    block: Block | None = None  # of reserved memory


class Tracker:
    """Live bytes now, by category, and the peaks of each region.

    Args:
        vocab_size: tensors whose last dimension has this size are logits.
        card: where to estimate the time of operations, or None.
    """

    def __init__(self, *, vocab_size: int, card: Card | None = None) -> None:
        self.now = 0
        self.regions: dict[Key, Peak] = {}
        self._by_category: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        self._off_card_now = 0
        self._is_off_card = False
        self._accounts: dict[int, _Account] = {}
        self._vocab_size = vocab_size
        self._card = card
        self._reserved = Reserved() if card is not None else None
        self.mark(("start",))

    def mark(self, key: Key) -> None:
        """Begin a region; one that was marked before continues from its peak so far."""
        if key not in self.regions:
            self.regions[key] = Peak(self.now, dict(self._by_category), self._off_card_now)
        self._region = self.regions[key]
        self.note_peak()

    @property
    def free_bytes(self) -> int | None:
        """The card's memory that is free now; None without a card."""
        return None if self._card is None else int(self._card.gib * 2**30) - self.now

    @property
    def peak(self) -> Peak:
        """The highest of all regions."""
        return max(self.regions.values(), key=lambda peak: peak.total)

    def seed(self, tensors: Iterable[Tensor], category: str) -> None:
        """Count tensors that exist already, or change the category of counted ones.

        What waits in the CPU's memory stays there.
        """
        for tensor in tensors:
            account = self._accounts.get(tensor.untyped_storage()._cdata)
            if account is None or account.category != OFF_CARD:
                self._assign(tensor, category)
        self.note_peak()

    def move(self, tensors: Iterable[Tensor], category: str) -> None:
        """Move tensors to the CPU's memory (`OFF_CARD`), or onto the card into a category."""
        for tensor in tensors:
            self._assign(tensor, category)
        self.note_peak()

    @contextlib.contextmanager
    def off_card(self) -> Iterator[None]:
        """Count what is made inside as stored in the CPU's memory."""
        self._is_off_card = True
        try:
            yield
        finally:
            self._is_off_card = False

    def record(
        self, function: Any, args: Any, inputs: list[Tensor], outputs: Any, workspace: int = 0
    ) -> None:
        """Count what an operation returned.

        Args:
            workspace: bytes that the operation needs while it runs and frees itself.
        """
        tensors = tensors_in(outputs)
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._accounts:
                self._open(storage, self._category(tensor))
        self.note_peak()
        if workspace:
            self.note_peak(workspace)
            if self._reserved is not None:
                self._reserved.free(self._reserved.allocate(workspace))
        if self._card is None or not _starts_kernel(function):
            return
        used = [*inputs, *tensors]
        if any(
            isinstance(tensor, FakeTensor) and tensor.fake_device.type == "cuda" for tensor in used
        ):
            self.launch(seconds_on(self._card, function, args, used), _is_attention(function))

    def launch(self, seconds: float, is_attention: bool = False) -> None:
        """Count a kernel on the card."""
        self._region.num_launches += 1
        if is_attention:
            self._region.attention_s += seconds
        else:
            self._region.busy_s += seconds

    def launch_kernel(self, tensors: Iterable[Tensor]) -> None:
        """Count a kernel of triton_kernels, which reads or writes its tensors once."""
        if self._card is not None:
            num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.launch(num_bytes / (self._card.gb_per_s * 1e9))

    @property
    def reserved_bytes(self) -> int:
        """What torch's allocator has reserved of the card so far, if nothing was given back."""
        return 0 if self._reserved is None else self._reserved.num_bytes

    def note_peak(self, extra_bytes: int = 0, category: str = "activations") -> None:
        """Raise the region's peak to what is live now, and `extra_bytes` that are live for a moment."""
        if self.now + extra_bytes > self._region.total:
            self._region.total = self.now + extra_bytes
            self._region.by_category = dict(self._by_category)
            self._region.by_category[category] += extra_bytes
            self._region.off_card = self._off_card_now

    def _assign(self, tensor: Tensor, category: str) -> None:
        storage = tensor.untyped_storage()
        account = self._accounts.get(storage._cdata)
        if account is None:
            self._open(storage, category)
            return
        self._count(account.category, -account.num_bytes)
        self._count(category, account.num_bytes)
        if (account.category == OFF_CARD) != (category == OFF_CARD):
            self._release(account)
            account.block = self._reserve(category, account.num_bytes)
        account.category = category

    def _count(self, category: str, num_bytes: int) -> None:
        if category == OFF_CARD:
            self._off_card_now += num_bytes
        else:
            self.now += num_bytes
            self._by_category[category] += num_bytes

    def _open(self, storage: Any, category: str) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if num_bytes == 0:
            return
        reference = weakref.ref(storage, functools.partial(self._close, key))
        block = self._reserve(category, num_bytes)
        self._accounts[key] = _Account(num_bytes, category, reference, block)
        self._count(category, num_bytes)

    def _close(self, key: int, _reference: Any) -> None:
        account = self._accounts.pop(key)
        self._count(account.category, -account.num_bytes)
        self._release(account)

    def _reserve(self, category: str, num_bytes: int) -> Block | None:
        if self._reserved is None or category == OFF_CARD:
            return None
        return self._reserved.allocate(num_bytes)

    def _release(self, account: _Account) -> None:
        if self._reserved is not None and account.block is not None:
            self._reserved.free(account.block)

    def _category(self, tensor: Tensor) -> str:
        is_off_card = self._is_off_card
        if self._card is not None and isinstance(tensor, FakeTensor):
            is_off_card = is_off_card or tensor.fake_device.type == "cpu"
        if is_off_card:
            return OFF_CARD
        if tensor.dim() > 0 and tensor.shape[-1] == self._vocab_size:
            return "logits"
        frame: Any = sys._getframe(2)  # past `_category` and `record`
        for _ in range(_MAX_FRAMES):
            category = _category_of_code(frame.f_code.co_filename, frame.f_code.co_name)
            if category is not None:
                return category
            frame = frame.f_back
            if frame is None:
                break
        return "activations"


@functools.cache
def _starts_kernel(function: Any) -> bool:
    return not (function.is_view or str(function).startswith(_WITHOUT_KERNEL))


@functools.cache
def _is_attention(function: Any) -> bool:
    return "attention" in str(function) or "_varlen_attn" in str(function)


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors of an operation's arguments or results: alone, in a list, or in lists of it."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (tuple, list)):
        return [tensor for value in values for tensor in tensors_in(value)]
    return []
