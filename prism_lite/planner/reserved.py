"""What torch's allocator reserves of a card for a sequence of tensors.

Its rules with expandable segments (c10/cuda/CUDACachingAllocator.cpp, PyTorch 2.8 to 2.13): sizes are
rounded up to 512 bytes; tensors up to 1 MiB have a segment, larger ones another; a tensor takes the least
free block that holds it, else the segment grows, by 2 or 20 MiB at a time. A segment that has grown keeps
its memory. One stream is assumed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

_ROUNDING = 512
_LARGEST_SMALL = 2**20
_SMALL_GROWTH, _LARGE_GROWTH = 2 * 2**20, 20 * 2**20


@dataclass(frozen=True)
class Block:
    """A part of a segment, in bytes."""

    start: int
    size: int
    is_small: bool


class Reserved:
    """The two segments, empty at first."""

    def __init__(self) -> None:
        self._segments = {True: _Segment(_SMALL_GROWTH), False: _Segment(_LARGE_GROWTH)}

    @property
    def num_bytes(self) -> int:
        return sum(segment.num_bytes for segment in self._segments.values())

    def allocate(self, num_bytes: int) -> Block:
        """Take memory for a tensor."""
        size = -(-num_bytes // _ROUNDING) * _ROUNDING
        is_small = size <= _LARGEST_SMALL
        return Block(self._segments[is_small].allocate(size), size, is_small)

    def free(self, block: Block) -> None:
        """Return the memory of a tensor to its segment."""
        self._segments[block.is_small].free(block.start, block.size)


class _Segment:
    def __init__(self, growth: int) -> None:
        self.num_bytes = 0
        self._growth = growth
        self._by_size: list[tuple[int, int]] = []  # free blocks: size and start, ascending
        self._size_at: dict[int, int] = {}  # of the free block that starts here
        self._start_before: dict[int, int] = {}  # of the free block that stops here

    def allocate(self, size: int) -> int:
        index = bisect_left(self._by_size, (size, 0))
        if index == len(self._by_size):
            self._grow(size)
            index = bisect_left(self._by_size, (size, 0))
        free_size, start = self._by_size[index]
        self._remove(start, free_size)
        if free_size > size:
            self._add(start + size, free_size - size)
        return start

    def free(self, start: int, size: int) -> None:
        """Add a free block, joined with its free neighbours."""
        if start in self._start_before:
            before = self._start_before[start]
            self._remove(before, start - before)
            start, size = before, size + start - before
        after = self._size_at.get(start + size)
        if after is not None:
            self._remove(start + size, after)
            size += after
        self._add(start, size)

    def _grow(self, size: int) -> None:
        """Map memory after the last block, which counts if it is free."""
        last = self._start_before.get(self.num_bytes)
        missing = size if last is None else size - (self.num_bytes - last)
        added = -(-missing // self._growth) * self._growth
        start = self.num_bytes
        self.num_bytes += added
        self.free(start, added)

    def _add(self, start: int, size: int) -> None:
        insort(self._by_size, (size, start))
        self._size_at[start] = size
        self._start_before[start + size] = start

    def _remove(self, start: int, size: int) -> None:
        del self._by_size[bisect_left(self._by_size, (size, start))]
        del self._size_at[start]
        del self._start_before[start + size]
