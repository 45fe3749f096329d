"""Run the numerical tests as other CPUs would: `make test-cpus`.

torch selects its vector instructions by `ATEN_CPU_CAPABILITY`, and sums depend on the number of threads.
Each combination is one run of pytest; one line per combination is printed. Exit code 1 if one fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
# Numerical tests: not the demo, data formats, planner, command line and compilation of kernels.
TESTS = (
    *(f"tests/unit/{room}" for room in ("digits", "discriminator", "models", "policy", "sampling")),
    "tests/unit/rewards/test_rewards_of_groups.py",
    "tests/parity",
    "tests/kernels/ops",
    "tests/pipeline/test_align_options.py",
    "tests/pipeline/test_cut_parts.py",
    "tests/pipeline/test_float16_run.py",
    "tests/pipeline/test_game_edges.py",
    "tests/pipeline/test_policy_options.py",
)  # fmt: skip
CAPABILITIES = ("default", "avx2", "avx512")
NUM_THREADS = (1, 2)


def main() -> int:
    num_failed = 0
    for capability in CAPABILITIES:
        if not is_available(capability):
            print(f"{capability}: not available on this CPU", flush=True)
            continue
        for threads in NUM_THREADS:
            num_failed += not passes(capability, threads)
    return int(num_failed > 0)


def is_available(capability: str) -> bool:
    """Check that torch uses the capability when it is requested: it falls back to a lower one."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().lower() == capability


def passes(capability: str, threads: int) -> bool:
    """Run the tests once, print one line and, of a failure, the end of pytest's output."""
    settings = {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": str(threads)}
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *TESTS],
        cwd=REPOSITORY,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    outcome = "passed" if done.returncode == 0 else "FAILED"
    seconds = time.monotonic() - started_s
    print(f"{capability}, {threads} threads: {outcome} in {seconds:.0f} s", flush=True)
    if done.returncode:
        print(done.stdout[-5000:], flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
