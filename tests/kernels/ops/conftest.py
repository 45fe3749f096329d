"""The tests in this folder run every operation, through whichever path this process can run.

- On a GPU: the kernels.
- With TRITON_INTERPRET=1: the kernels, in Triton's interpreter. The variable must be set before
  anybody imports triton, so `test_kernel_runs.py` starts a process of its own for that.
- Otherwise: the torch path.
"""

import os

import pytest
import torch

from tests.kernels import interpreter

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if IS_INTERPRETED:
    interpreter.repair()


def pytest_configure(config: pytest.Config) -> None:
    # The interpreter computes both sides of `where`: 0 * -inf on the side that is not taken.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> str:
    """The implementation under test."""
    name = "triton" if IS_INTERPRETED or torch.cuda.is_available() else "torch"
    monkeypatch.setenv("PRISM_KERNELS", name)
    return name


@pytest.fixture
def device() -> str:
    return "cpu" if IS_INTERPRETED or not torch.cuda.is_available() else "cuda"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20260)
