"""Break the code in one line at a time and see that the tests notice.

    python -m tests.kernels.mutations           all of them (a few minutes)
    python -m tests.kernels.mutations routing   those of one file

Each mutation is made in a copy of the package; the tests of the operation run there, kernels in
Triton's interpreter. A mutation that survives is a hole in the tests: exit code 1.
`test_kernel_mutations.py` keeps this list in step with the code.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.kernels.mutation import Mutation
from tests.kernels.mutations_of_kernels import KERNEL_MUTATIONS
from tests.kernels.mutations_of_torch import TORCH_MUTATIONS

REPOSITORY = Path(__file__).parents[2]


MUTATIONS = KERNEL_MUTATIONS + TORCH_MUTATIONS
OPS = "tests/kernels/ops"
TESTS = {
    "logprob": [f"{OPS}/test_token_logprobs.py", f"{OPS}/test_token_logprobs_edges.py"],
    "routing": [f"{OPS}/test_route_topk.py"],
    "lora": [f"{OPS}/test_lora_experts.py"],
    "decoding": [f"{OPS}/test_decoding.py"],
}


def kill(mutation: Mutation, folder: Path) -> bool:
    """Whether the tests fail on the mutated copy in `folder` (restored afterwards)."""
    path = folder / "triton_kernels" / mutation.file
    original = path.read_text()
    path.write_text(original.replace(mutation.before, mutation.after))
    try:
        return run_tests(mutation.file, folder) != 0
    finally:
        path.write_text(original)


def operation(file: str) -> str:
    return file.removesuffix(".py").split("_")[0]


def run_tests(file: str, folder: Path) -> int:
    """pytest's exit code for the tests of `file`: kernels interpreted, else the torch path."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("TRITON_INTERPRET", None)
    if file.endswith("_triton.py"):
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"]
    command += TESTS[operation(file)]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode not in (0, 1):  # 1: a test failed; anything else: the run itself broke
        raise RuntimeError(result.stdout[-3000:] + result.stderr[-1000:])
    return result.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Break the kernels, run their tests.")
    parser.add_argument("operation", nargs="?", choices=sorted(TESTS), help="only this one")
    only = parser.parse_args().operation
    chosen = [m for m in MUTATIONS if only in (None, operation(m.file))]
    survivors = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(REPOSITORY / "triton_kernels", folder / "triton_kernels")
        shutil.copytree(REPOSITORY / "tests" / "kernels", folder / "tests" / "kernels")
        shutil.copy(REPOSITORY / "pyproject.toml", folder)
        for file in sorted({mutation.file for mutation in chosen}):
            if run_tests(file, folder):
                raise RuntimeError(f"the tests of {file} fail without any mutation")
        for mutation in chosen:
            started = time.perf_counter()
            is_killed = kill(mutation, folder)
            survivors += not is_killed
            verdict = "noticed " if is_killed else "SURVIVED"
            took_s = time.perf_counter() - started
            print(f"{verdict} {took_s:5.1f} s  {mutation.file}: {mutation.what}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutations noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
