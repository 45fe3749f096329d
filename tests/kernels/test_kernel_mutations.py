"""The list of mutations stays applicable (running them takes minutes: `mutations.py`)."""

import pytest

from tests.kernels.mutation import Mutation
from tests.kernels.mutations import MUTATIONS, REPOSITORY


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.file}: {m.what}")
def test_the_line_to_break_exists_once(mutation: Mutation) -> None:
    code = (REPOSITORY / "triton_kernels" / mutation.file).read_text()
    assert code.count(mutation.before) == 1
    assert mutation.before != mutation.after
