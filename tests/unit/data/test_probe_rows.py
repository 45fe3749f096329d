"""Pairs of the grounding probe: as many as can tell anything, also where rows share few pictures."""

from __future__ import annotations

import pytest
from scipy import stats

from prism_lite.data.probe_rows import FEWEST_PAIRS, keep_pairs_aside
from prism_lite.data.split import picture_ids
from prism_lite.types import Picture, Sample, Turn
from tests.file_rows import completion


def rows(num_pictures: int, per_picture: int) -> list[Sample]:
    """Rows whose teacher reads another text in each."""
    return [
        Sample(
            f"{picture}-{number}",
            (Turn("user", "?"),),
            (Picture(f"picture {picture}", b""),),
            teacher=completion(f"{picture},{number}"),
        )
        for picture in range(num_pictures)
        for number in range(per_picture)
    ]


def test_the_fewest_pairs_are_the_fewest_that_can_be_above_chance():
    def lowest(num: int) -> float:
        return stats.binomtest(num, num).proportion_ci(0.95, method="wilson").low

    assert lowest(FEWEST_PAIRS - 1) < 0.5 < lowest(FEWEST_PAIRS)


@pytest.mark.parametrize(
    ("num_pictures", "per_picture", "num_aside"),
    [
        (60, 1, 6),  # a tenth
        (20, 5, 10),
        (10, 5, 10),  # a tenth would be one picture: no other one to take the wrong parts from
        (8, 3, 6),
        (20, 1, 5),
        (5, 5, 0),  # two of five pictures are more than a quarter
        (15, 1, 0),
    ],
)
def test_a_tenth_of_the_rows_or_a_quarter(num_pictures, per_picture, num_aside):
    samples = rows(num_pictures, per_picture)
    kept, pairs = keep_pairs_aside(samples, 200)
    assert (len(kept), len(pairs)) == (len(samples) - num_aside, num_aside)
    assert not picture_ids(kept) & picture_ids([pair.sample for pair in pairs])
    for pair in pairs:
        owner = next(s for s in samples if s.teacher_parts == pair.corrupted)
        assert not picture_ids([owner]) & picture_ids([pair.sample])


@pytest.mark.parametrize("num_pictures", range(8, 40))
@pytest.mark.parametrize("per_picture", [1, 2, 3, 5, 8])
def test_what_the_message_asks_for_is_enough(num_pictures, per_picture):
    """At least 20 rows and 8 pictures, none in more than an eighth of the rows."""
    samples = rows(num_pictures, per_picture)
    if len(samples) >= 20:
        assert len(keep_pairs_aside(samples, 200)[1]) >= FEWEST_PAIRS


def test_at_most_as_many_as_are_asked_for():
    kept, pairs = keep_pairs_aside(rows(100, 1), 6)
    assert (len(kept), len(pairs)) == (94, 6)
