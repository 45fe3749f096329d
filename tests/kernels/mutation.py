"""A one-line mistake that the tests must notice; `mutations.py` makes them."""

from typing import NamedTuple


class Mutation(NamedTuple):
    """`before` occurs exactly once in `triton_kernels/<file>` and becomes `after`."""

    file: str
    what: str
    before: str
    after: str
