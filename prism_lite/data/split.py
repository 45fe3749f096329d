"""Rows kept aside by picture: what is measured on them was not learned from the same picture."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from prism_lite.types import Sample


def picture_ids(samples: Collection[Sample]) -> set[str]:
    """Return the ids of all pictures of some rows."""
    return {picture.id for sample in samples for picture in sample.pictures}


def split_by_picture(samples: Sequence[Sample], num_aside: int) -> tuple[list[int], list[int]]:
    """Choose up to `num_aside` rows that share no picture with the others, the last ones first.

    Rows that share a picture, directly or through other rows, stay together; a set of them that is too
    large to be kept aside is passed over.

    Returns:
        Numbers of the other rows and of those aside, both in order.
    """
    aside: list[int] = []
    for rows in reversed(_rows_by_picture(samples)):
        if len(aside) + len(rows) <= num_aside:
            aside += rows
    others = sorted(set(range(len(samples))) - set(aside))
    return others, sorted(aside)


def _rows_by_picture(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the sets of rows that are connected by pictures, in the order of their last rows."""
    row_of_picture: dict[str, int] = {}
    root = list(range(len(samples)))

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = root[root[row]]
            row = root[row]
        return row

    for row, sample in enumerate(samples):
        for picture in sample.pictures:
            root[find(row_of_picture.setdefault(picture.id, row))] = find(row)
    sets: dict[int, list[int]] = {}
    for row in range(len(samples)):
        sets.setdefault(find(row), []).append(row)
    return sorted(sets.values(), key=lambda rows: rows[-1])
