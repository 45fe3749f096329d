"""The table of first places against a plain dictionary, and its memory."""

from __future__ import annotations

import tracemalloc
from random import Random

from prism_lite.data.checks.first_places import FirstPlaces


def test_it_answers_as_a_dictionary_over_several_files():
    rng, table, plain = Random(0), FirstPlaces(), {}
    for file in ("a, b.jsonl, line", "part 2.parquet, row"):
        for number in range(1, 12_000):
            key, place = str(rng.randrange(15_000)).encode(), f"{file} {number}"
            assert table.first(key, place) == plain.setdefault(key, place)
    assert 10_000 < len(plain) < 15_000


def test_it_grows_by_less_than_fifty_bytes_a_row():
    """Half-used slots of 16 bytes; three times that while it grows."""
    tracemalloc.start()
    table = FirstPlaces()
    for number in range(100_000):
        table.first(number.to_bytes(12, "big"), f"train.jsonl, line {number}")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 50 * 100_000
    assert peak < 100 * 100_000
