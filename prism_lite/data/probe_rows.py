"""Pairs of the grounding probe from the rows of files: teacher parts and those of another picture."""

from __future__ import annotations

from collections.abc import Sequence

from prism_lite import parts
from prism_lite.data.split import picture_ids, split_by_picture
from prism_lite.parts import Parts
from prism_lite.types import ProbePair, Sample

# Of fewer pairs even all right ones are not above chance: Wilson's interval of 3 in 3 begins at 0.44.
FEWEST_PAIRS = 4
_SHARES = (10, 4)  # a tenth of the rows, or a quarter where a tenth makes too few pairs


def keep_pairs_aside(
    samples: Sequence[Sample], num_probe: int
) -> tuple[tuple[Sample, ...], tuple[ProbePair, ...]]:
    """Keep rows aside, by picture, and pair each with the teacher parts of another picture.

    Returns:
        The other rows, and at most `num_probe` pairs; of no row where not even a quarter of them makes
        `FEWEST_PAIRS`, as nothing could be told from fewer.
    """
    for share in _SHARES:
        kept, aside = split_by_picture(samples, min(num_probe, len(samples) // share))
        pairs = _mismatched([samples[row] for row in aside])
        if len(pairs) >= min(FEWEST_PAIRS, num_probe):
            return tuple(samples[row] for row in kept), pairs
    return tuple(samples), ()


def _mismatched(samples: Sequence[Sample]) -> tuple[ProbePair, ...]:
    """Pair a row's teacher parts with the next ones of another picture: wrong, of the same form."""
    parsed = [(sample, parts.parse(sample.teacher or "")) for sample in samples]
    teachers = [(sample, teacher) for sample, teacher in parsed if isinstance(teacher, Parts)]
    pairs = []
    for row, (sample, teacher) in enumerate(teachers):
        ids = picture_ids([sample])
        for other_sample, other in teachers[row + 1 :] + teachers[:row]:
            if other != teacher and not ids & picture_ids([other_sample]):
                pairs.append(ProbePair(sample, clean=teacher, corrupted=other))
                break
    return tuple(pairs)
