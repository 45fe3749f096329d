"""The tests in this folder run every operation, through every path that this process can run.

- On the CPU: the torch path.
- With TRITON_INTERPRET=1: the kernels, in Triton's interpreter. The variable must be set before
  anybody imports triton, so `test_kernel_runs.py` starts a process of its own for that.
- On a GPU, where there is one: the kernels; each test a second time, marked `gpu`.
"""

import os
from typing import Any

import pytest
import torch

from tests.kernels import interpreter

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if IS_INTERPRETED:
    interpreter.repair()


def pytest_configure(config: pytest.Config) -> None:
    # The interpreter computes both sides of `where`: 0 * -inf on the side that is not taken.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


DEVICES: list[Any] = ["cpu"]
if torch.cuda.is_available() and not IS_INTERPRETED:
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def path(device: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The implementation under test."""
    name = "triton" if IS_INTERPRETED or device == "cuda" else "torch"
    monkeypatch.setenv("PRISM_KERNELS", name)
    return name


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20260)
