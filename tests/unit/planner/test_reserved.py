"""Reserved memory against a plain account of the allocator's rules."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from prism_lite.planner.reserved import Reserved

MIB = 2**20


def test_segments_grow_in_steps_and_keep_their_memory():
    reserved = Reserved()
    small = reserved.allocate(100)
    assert (small.size, reserved.num_bytes) == (512, 2 * MIB)
    large = reserved.allocate(21 * MIB)
    assert reserved.num_bytes == (2 + 40) * MIB
    reserved.allocate(19 * MIB)
    assert reserved.num_bytes == (2 + 40) * MIB, "the rest of the second step"
    reserved.free(small)
    reserved.free(large)
    assert reserved.num_bytes == (2 + 40) * MIB
    reserved.allocate(21 * MIB)
    assert reserved.num_bytes == (2 + 40) * MIB, "the freed block is taken again"


def test_a_gap_that_is_too_small_is_not_used():
    reserved = Reserved()
    first = reserved.allocate(30 * MIB)
    reserved.allocate(30 * MIB)
    reserved.free(first)
    reserved.allocate(40 * MIB)
    assert reserved.num_bytes == 100 * MIB


def test_the_smallest_block_that_holds_a_tensor_is_taken_and_neighbours_are_joined():
    reserved = Reserved()
    blocks = [reserved.allocate(size * MIB) for size in (10, 2, 20, 2, 30)]
    for number in (0, 2, 4):
        reserved.free(blocks[number])
    assert reserved.allocate(15 * MIB).start == blocks[2].start
    reserved.free(blocks[1])
    assert reserved.allocate(12 * MIB).start == 0, "joined with the block before it"


def test_blocks_never_overlap_and_everything_freed_is_one_block():
    reserved, random, live = Reserved(), Random(0), []
    for _ in range(3000):
        if live and random.random() < 0.5:
            reserved.free(live.pop(random.randrange(len(live))))
        else:
            live.append(reserved.allocate(int(2 ** random.uniform(5, 26))))
    for is_small in (True, False):
        spans = sorted((b.start, b.start + b.size) for b in live if b.is_small == is_small)
        assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))
    assert sum(block.size for block in live) <= reserved.num_bytes
    before = reserved.num_bytes
    for block in live:
        reserved.free(block)
    large = sum(s.num_bytes for small, s in reserved._segments.items() if not small)
    reserved.allocate(large)
    assert reserved.num_bytes == before
