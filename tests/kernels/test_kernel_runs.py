"""The kernels themselves, on a machine without a GPU: interpreted, and compiled for cards.

Both need a say in how triton is imported, so each has a process of its own and nothing that another
test imports can disturb or be disturbed.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run_python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PRISM_KERNELS")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**kept, "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="this process runs them itself")
def test_every_operation_test_passes_in_the_interpreter() -> None:
    result = run_python("-m", "pytest", "-rs", "tests/kernels/ops", TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    assert "checks Triton's interpreter" not in result.stdout, "the interpreter was not on"


@pytest.mark.slow
def test_every_launch_compiles_within_budget_for_every_target() -> None:
    """... and RESOURCES.md and the README's block say what the compiler says now."""
    result = run_python("-m", "tests.kernels.aot")
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
