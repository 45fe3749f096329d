"""Compile every launch of the public functions for cards that are not here, and read the resources.

    python -m tests.kernels.aot            compile, check budgets and written tables, print
    python -m tests.kernels.aot --write    ... and write triton_kernels/RESOURCES.md and the README

The production wrappers run on small CPU tensors. A stand-in driver names the target, and each
`kernel[grid](...)` is compiled with the specialisation that a real launch would get, not run. Needs
a process in which Triton was imported without TRITON_INTERPRET.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # today's default, made explicit
os.environ["PRISM_KERNELS"] = "triton"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.runtime.driver import driver

import triton_kernels as tk
from tests.kernels import aot_report
from tests.kernels.aot_report import Resources
from triton_kernels import _common


class _StandInDriver:
    """As much of a driver as compiling needs."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        if self.target.startswith("gfx"):
            return GPUTarget("hip", self.target, 64)
        return GPUTarget("cuda", int(self.target.removeprefix("sm")), 32)

    def get_current_device(self) -> str:
        return f"stand-in-{self.target}"  # only a cache key

    def get_current_stream(self, device: object = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def captured_launches(target: str) -> Iterator[list]:
    """Inside, launches on CPU tensors compile for `target` and are collected instead of run."""
    compiled: list = []

    def getitem(kernel, grid):
        return lambda *args, **kwargs: compiled.append(kernel.warmup(*args, grid=grid, **kwargs))

    before = driver._active
    driver.set_active(_StandInDriver(target))
    try:
        with (
            mock.patch.object(triton.KernelInterface, "__getitem__", getitem),
            mock.patch.object(_common, "_runs_on_cpu", lambda: True),
        ):
            yield compiled
    finally:
        driver._active = before


def _run_token_logprobs(dtype: torch.dtype, vocabulary: int) -> None:
    hidden = torch.zeros(4, 16, dtype=dtype, requires_grad=True)
    head = torch.zeros(vocabulary, 16, dtype=dtype)
    ids = torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        tk.token_logprobs(hidden, head, ids)
    tk.token_logprobs(hidden, head, ids).sum().backward()
    logprob, entropy = tk.token_logprobs(hidden, head, ids, return_entropy=True)
    (logprob.sum() + entropy.sum()).backward()


def _run_route(num_experts: int, top_k: int, *, has_groups: bool) -> None:
    logits = torch.zeros(64, num_experts, requires_grad=True)
    allowed = torch.ones(64, num_experts, dtype=torch.bool) if has_groups else None
    routing = tk.route_topk(logits, top_k, allowed=allowed)
    (routing.weights.sum() + routing.balance_loss).backward()


def _run_lora(dtype: torch.dtype, num_experts: int, rank: int) -> None:
    x = torch.zeros(64, 32, dtype=dtype, requires_grad=True)
    A = torch.zeros(num_experts, rank, 32, requires_grad=True)
    B = torch.zeros(num_experts, 48, rank, requires_grad=True)
    weights = torch.zeros(64, num_experts, requires_grad=True)
    tk.lora_experts(x, A, B, weights, scale=2.0).sum().backward()


def _run_decoding(dtype: torch.dtype, stream: torch.dtype, hidden_size: int, size: int) -> None:
    """A token step's operations: 2 rows, 4 query heads and 2 key heads."""
    hidden, weight = (
        torch.zeros(2, hidden_size, dtype=stream),
        torch.zeros(hidden_size, dtype=dtype),
    )
    _, x = tk.add_rms_norm(hidden, None, weight, 1e-6, dtype)
    tk.add_rms_norm(hidden, x, weight, 1e-6, dtype)
    tk.swiglu(torch.zeros(2, 2 * hidden_size, dtype=dtype))
    heads, table = torch.zeros(2, 8, size, dtype=dtype), torch.zeros(2, 1, size, dtype=dtype)
    norms, buffer = torch.zeros(6, size, dtype=dtype), torch.zeros(16, 4, size, dtype=dtype)
    slots = torch.zeros(2, dtype=torch.int64)
    q = tk.rotate_and_store(heads, norms, 1e-6, table, table, buffer, slots)
    slots = torch.arange(2 * q.shape[0]).view(q.shape[0], 2)
    tk.merge_halves(q, torch.zeros(2, q.shape[0]), slots, 2)


def cases(target: str) -> dict[str, Callable[[], None]]:
    """The shapes of real models: Qwen3-VL's vocabulary, a small odd one, the default experts."""
    half = torch.float16 if target == "sm75" else torch.bfloat16
    return {
        "V=151936 16-bit": lambda: _run_token_logprobs(half, 151_936),
        "V=151936 fp32": lambda: _run_token_logprobs(torch.float32, 151_936),
        "V=1001 16-bit": lambda: _run_token_logprobs(half, 1_001),
        "E=8 k=2": lambda: _run_route(8, 2, has_groups=False),
        "E=8 k=2 groups": lambda: _run_route(8, 2, has_groups=True),
        "E=6 k=6 groups": lambda: _run_route(6, 6, has_groups=True),
        "E=8 r=16 16-bit": lambda: _run_lora(half, 8, 16),
        "E=8 r=16 fp32": lambda: _run_lora(torch.float32, 8, 16),
        "E=3 r=5 16-bit": lambda: _run_lora(half, 3, 5),
        "D=4096 d=128 16-bit": lambda: _run_decoding(half, half, 4096, 128),
        "D=2560 d=128 fp32 stream": lambda: _run_decoding(half, torch.float32, 2560, 128),
    }


def _nvidia_resources(kernel) -> tuple[int, int]:
    """(registers, spilled bytes), from the assembler's own report."""
    capability = int(kernel.metadata.target.arch)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel.asm["ptx"])
        file.flush()
        command = [get_ptxas(capability).path, "-v", "--regAllocOptLevel=2", file.name]
        command += [f"--gpu-name={sm_arch_from_capability(capability)}", "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", report)]
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill (?:stores|loads)", report)]
    return max(registers), sum(spills)


def _amd_resources(kernel) -> tuple[int, int]:
    """(vector registers, spilled registers)."""
    text = kernel.asm["amdgcn"]
    counts = {
        name: [int(count) for count in re.findall(rf"\.{name}:\s+(\d+)", text)]
        for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
    }
    return max(counts["vgpr_count"]), sum(counts["vgpr_spill_count"] + counts["sgpr_spill_count"])


def _resources(target: str, case: str, kernel) -> Resources:
    is_nvidia = "ptx" in kernel.asm
    registers, spills = (_nvidia_resources if is_nvidia else _amd_resources)(kernel)
    wide = r"ld\.global[^;]*\.v[48]\." if is_nvidia else r"(?:global|buffer)_load_dwordx4"
    assembly = kernel.asm["ptx" if is_nvidia else "amdgcn"]
    has_wide_loads = re.search(wide, assembly) is not None
    name, shared = kernel.metadata.name, kernel.metadata.shared
    return Resources(target, case, name, registers, spills, shared, has_wide_loads)


def compile_all(targets: list[str]) -> list[Resources]:
    """Every distinct launch of every case, compiled for every target."""
    rows: dict[Resources, None] = {}
    for target in targets:
        for case, run in cases(target).items():
            with captured_launches(target) as compiled:
                run()
            assert compiled, f"{case} launched nothing on {target}"
            rows |= dict.fromkeys(_resources(target, case, kernel) for kernel in compiled)
    return list(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the kernels for every target.")
    parser.add_argument("--write", action="store_true", help="write RESOURCES.md and the README")
    arguments = parser.parse_args()
    rows = compile_all(list(aot_report.SHARED_LIMIT))
    found = aot_report.violations(rows)
    print(aot_report.table(rows))
    if arguments.write and not found:
        aot_report.write(rows, triton.__version__)
    found += aot_report.stale(rows, triton.__version__)
    for sentence in found:
        print(sentence, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
