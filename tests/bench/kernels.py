"""Token log-probs: ours against what people write, in time and in peak memory.

    python -m tests.bench kernels                              both shapes below
    python -m tests.bench kernels --shape 1024x2560x151936     tokens x width x vocabulary

Times are taken in one process, the ways in turn, best of `--repeats`: on a busy machine only such
ratios mean anything. Peak memory is taken in a fresh process for each way, as growth of the
resident set (CPU) or of the allocator's peak (CUDA) over what inputs and head occupy. "products" is
the time in units of the plain product hidden @ head^T, measured beside it: the floor is 1 for the
forward pass and 2 with the backward pass, whatever the hardware; "of roofline" is floor / products.
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import triton_kernels as tk
from tests.bench import experts

Way = Callable[[Tensor, Tensor, Tensor], Tensor]
SHAPES = ["1024x2560x151936", "2000x128x500"]
LEAST_S = 4.0  # small shapes are repeated for so long: other programs disturb
NAIVE, PRODUCT = "naive [T, V]", ("product", "forward")
MODES = {"forward": 1, "forward+backward": 2}  # and their floor in products


def ours(hidden: Tensor, head: Tensor, ids: Tensor) -> Tensor:
    return tk.token_logprobs(hidden, head, ids)


def ours_in_torch(hidden: Tensor, head: Tensor, ids: Tensor) -> Tensor:
    with mock.patch.dict(os.environ, {"PRISM_KERNELS": "torch"}):
        return ours(hidden, head, ids)


def product(hidden: Tensor, head: Tensor, ids: Tensor) -> Tensor:
    return hidden @ head.T


def naive(hidden: Tensor, head: Tensor, ids: Tensor) -> Tensor:
    logprobs = torch.log_softmax((hidden @ head.T).float(), dim=-1)
    return logprobs.gather(1, ids[:, None])[:, 0]


def trl(hidden: Tensor, head: Tensor, ids: Tensor) -> Tensor:
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax((hidden @ head.T)[None], ids[None])[0]


def liger(hidden: Tensor, head: Tensor, ids: Tensor) -> Tensor:
    """Its fused linear GRPO loss, one sequence (no log-probs alone; the loss sums them)."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False)
    mask = torch.ones_like(ids)[None]
    advantage = torch.ones(1, device=hidden.device)
    return loss(hidden[None], head, ids[None], mask, advantage)[0]


def ways(device: str) -> dict[str, Way]:
    found: dict[str, Way] = {"ours": ours, NAIVE: naive}
    if device == "cuda":
        found["ours without kernels"] = ours_in_torch
    if importlib.util.find_spec("trl") is not None:
        found["TRL selective_log_softmax"] = trl
    if importlib.util.find_spec("liger_kernel") is not None:
        found["Liger fused GRPO loss"] = liger
    return found


def make_inputs(shape: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    num_tokens, width, vocabulary = (int(size) for size in shape.split("x"))
    dtype = torch.float32 if device == "cpu" else torch.float16
    if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        dtype = torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.empty(num_tokens, width, dtype=dtype, device=device).normal_(generator=generator)
    head = torch.empty(vocabulary, width, dtype=dtype, device=device)
    head.normal_(std=3 / math.sqrt(width), generator=generator)
    ids = torch.randint(0, vocabulary, (num_tokens,), generator=generator, device=device)
    return hidden, head, ids


def run(way: Way, mode: str, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, head, ids = inputs
    if mode == "forward":
        with torch.no_grad():
            way(hidden, head, ids)
    else:
        way(hidden.detach().requires_grad_(), head, ids).sum().backward()
    if hidden.is_cuda:
        torch.cuda.synchronize()


def seconds(action: Callable[[], object]) -> tuple[float, float]:
    """Elapsed and processor time (of all threads)."""
    started, started_cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - started, time.process_time() - started_cpu


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the system does not report {field}")


def measure_memory(name: str, mode: str, shape: str, device: str) -> int:
    """Peak growth in bytes; call in a fresh process."""
    inputs = make_inputs(shape, device)
    run(ways(device)[name], mode, make_inputs("8x8x16", device))  # imports and pools
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(ways(device)[name], mode, inputs)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from now
    before = resident_bytes("VmRSS")
    run(ways(device)[name], mode, inputs)
    return resident_bytes("VmHWM") - before


def memory_in_fresh_process(name: str, mode: str, shape: str, device: str) -> int | None:
    command = [sys.executable, "-m", "tests.bench.kernels", "--child"]
    child = subprocess.run(
        [*command, json.dumps([name, mode, shape, device])],
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{name}, {mode}: does not run here ({last[:150]})", file=sys.stderr)
        return None
    return int(child.stdout.split()[-1])


def measure(shape: str, device: str, repeats: int) -> list[dict[str, Any]]:
    """One row for each way and mode that runs."""
    memory: dict[tuple[str, str], int] = {}
    for name in ways(device):
        for mode in MODES:
            peak_bytes = memory_in_fresh_process(name, mode, shape, device)
            if peak_bytes is not None:
                memory[name, mode] = peak_bytes
    inputs = make_inputs(shape, device)
    best_s = dict.fromkeys([*memory, PRODUCT], (math.inf, math.inf))
    started, rounds = time.perf_counter(), 0
    while rounds <= repeats or time.perf_counter() - started < LEAST_S:  # one more to warm up
        rounds += 1
        for key in best_s:
            way = product if key == PRODUCT else ways(device)[key[0]]
            took_s = seconds(lambda w=way, m=key[1]: run(w, m, inputs))
            best_s[key] = (min(best_s[key][0], took_s[0]), min(best_s[key][1], took_s[1]))
    rows = []
    for name, mode in memory:
        (wall_s, cpu_s), baseline = best_s[name, mode], (NAIVE, mode)
        rows.append(
            {
                "mode": mode,
                "way": name,
                "seconds": wall_s,
                "of_naive": wall_s / best_s[baseline][0],
                "cpu_of_naive": cpu_s / best_s[baseline][1],
                "products": wall_s / best_s[PRODUCT][0],
                "roofline": MODES[mode] * best_s[PRODUCT][0] / wall_s,
                "peak_bytes": memory[name, mode],
                "memory_of_naive": memory[name, mode] / max(memory[baseline], 1),
            }
        )
    return sorted(rows, key=lambda row: list(MODES).index(row["mode"]))


def show(rows: list[dict[str, Any]]) -> None:
    heads = ["pass", "way", "ms", "of naive", "CPU time of naive", "products", "of roofline"]
    print("| " + " | ".join([*heads, "extra MiB", "of naive"]) + " |")
    print("|---" * 9 + "|")
    for row in rows:
        cells = [
            row["mode"],
            row["way"],
            f"{row['seconds'] * 1e3:.1f}",
            f"{row['of_naive']:.2f}",
            f"{row['cpu_of_naive']:.2f}",
            f"{row['products']:.2f}",
            f"{row['roofline']:.0%}",
            f"{row['peak_bytes'] / 2**20:.1f}",
            f"{row['memory_of_naive']:.1%}",
        ]
        print("| " + " | ".join(cells) + " |")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench kernels")
    parser.add_argument("--shape", action="append", help="tokens x width x vocabulary, like 9x8x7")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(measure_memory(*json.loads(options.child)))
        return
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for shape in options.shape or SHAPES:
            name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
            print(f"\ntoken_logprobs, tokens x width x vocabulary = {shape}, {name}\n")
            show(measure(shape, device, options.repeats))
        if not options.shape:
            experts.main(device, repeats=5)
    if "cuda" not in devices:
        print("\nGPU: not measured")


if __name__ == "__main__":
    main(sys.argv[1:])
