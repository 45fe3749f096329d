"""Watch what a piece of code allocates: does anybody make a [T, vocab] tensor?

    with Allocations() as seen:
        loss = step(batch)
        loss.backward()
    assert not seen.with_size(vocabulary, at_least=num_tokens * vocabulary)
    assert seen.largest_bytes < 100 * 2**20

Sees every tensor that any torch operation returns, in forward and backward, real or fake; views do
not count.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Context manager that records new storages while it is active.

    Attributes:
        tensors: (operation, shape, bytes) of every tensor with a storage of its own, in order.
        largest_bytes: size of the largest single storage.
        peak_bytes: the most that was alive at once, of what was allocated inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[tuple[str, tuple[int, ...], int]] = []
        self.largest_bytes = 0
        self.peak_bytes = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {
            tensor.untyped_storage()._cdata
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, Tensor)
        }
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self._record(str(func), tensor)
        return result

    def _record(self, operation: str, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self.tensors.append((operation, tuple(tensor.shape), size))
        self.largest_bytes = max(self.largest_bytes, size)
        self._alive[key] = size
        self.peak_bytes = max(self.peak_bytes, sum(self._alive.values()))
        weakref.finalize(storage, self._alive.pop, key, None)

    def with_size(self, size: int, *, at_least: int = 0) -> list[tuple[str, tuple[int, ...], int]]:
        """Recorded tensors with a dimension of `size` and at least `at_least` elements."""
        return [
            row for row in self.tensors if size in row[1] and torch.Size(row[1]).numel() >= at_least
        ]
