"""Token log-probs: ours against what people write, in time and in peak memory.

    python -m tests.bench kernels                              both shapes below
    python -m tests.bench kernels --shape 1024x2560x151936     tokens x width x vocabulary
    python -m tests.bench kernels --dtype bfloat16             head and hidden states in 16 bit

Times are taken in one process, the ways in turn, one round to warm up and `--rounds` that count.
Ratios are medians of the rounds' own ratios: on a busy machine only such pairs mean anything, and
processor time more than elapsed time. Peak memory is taken in a fresh process for each way, as
growth of the resident set (CPU) or of the allocator's peak (CUDA) over what inputs and head occupy.
"products" is the time in units of the plain product hidden @ head^T, measured beside it: the floor
is 1 for the forward pass and 2 with the backward pass, whatever the hardware; "of roofline" is
floor / products.
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
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
Key = tuple[str, str]  # way, mode
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


def make_ways(device: str) -> dict[str, Way]:
    found: dict[str, Way] = {"ours": ours, NAIVE: naive}
    if device == "cuda":
        found["ours without kernels"] = ours_in_torch
    if importlib.util.find_spec("trl") is not None:
        found["TRL selective_log_softmax"] = trl
    if importlib.util.find_spec("liger_kernel") is not None:
        found["Liger fused GRPO loss"] = liger
    return found


def default_dtype(device: str) -> str:
    """What the pipeline computes in on this machine."""
    if device == "cpu":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def make_inputs(shape: str, dtype_name: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    num_tokens, width, vocabulary = (int(size) for size in shape.split("x"))
    dtype = getattr(torch, dtype_name)
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


def measure_memory(name: str, mode: str, shape: str, dtype: str, device: str) -> int:
    """Peak growth in bytes; call in a fresh process."""
    way = make_ways(device)[name]
    inputs = make_inputs(shape, dtype, device)
    run(way, mode, make_inputs("8x8x16", dtype, device))  # imports and pools
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(way, mode, inputs)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from now
    before = resident_bytes("VmRSS")
    run(way, mode, inputs)
    return resident_bytes("VmHWM") - before


def memory_in_fresh_process(name: str, mode: str, *where: str) -> int | None:
    command = [sys.executable, "-m", "tests.bench.kernels", "--child"]
    child = subprocess.run(
        [*command, json.dumps([name, mode, *where])], capture_output=True, text=True, check=False
    )
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{name}, {mode}: does not run here ({last[:150]})", file=sys.stderr)
        return None
    return int(child.stdout.split()[-1])


def measure_times(
    keys: list[Key], inputs: tuple[Tensor, Tensor, Tensor], num_rounds: int
) -> list[dict[Key, tuple[float, float]]]:
    """Elapsed and processor seconds of each (way, mode), by round."""
    ways = {**make_ways(inputs[0].device.type), PRODUCT[0]: product}
    rounds: list[dict[Key, tuple[float, float]]] = []
    started = time.perf_counter()
    while len(rounds) <= num_rounds or time.perf_counter() - started < LEAST_S:
        rounds.append({key: seconds(lambda k=key: run(ways[k[0]], k[1], inputs)) for key in keys})
    return rounds[1:]  # the first warmed up


def measure(shape: str, dtype: str, device: str, num_rounds: int) -> list[dict[str, Any]]:
    """One row for each way and mode that runs."""
    memory: dict[Key, int] = {}
    for mode in MODES:
        for name in make_ways(device):
            peak_bytes = memory_in_fresh_process(name, mode, shape, dtype, device)
            if peak_bytes is not None:
                memory[name, mode] = peak_bytes
    rounds = measure_times([PRODUCT, *memory], make_inputs(shape, dtype, device), num_rounds)

    def ratio(key: Key, to: Key, clock: int = 0) -> float:
        return statistics.median(times[key][clock] / times[to][clock] for times in rounds)

    return [
        {
            "mode": key[1],
            "way": key[0],
            "seconds": statistics.median(times[key][0] for times in rounds),
            "of_naive": ratio(key, (NAIVE, key[1])),
            "cpu_of_naive": ratio(key, (NAIVE, key[1]), clock=1),
            "products": ratio(key, PRODUCT),
            "roofline": MODES[key[1]] * ratio(PRODUCT, key),
            "peak_bytes": peak_bytes,
            "memory_of_naive": peak_bytes / max(memory[NAIVE, key[1]], 1),
        }
        for key, peak_bytes in memory.items()
    ]


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
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(measure_memory(*json.loads(options.child)))
        return
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for shape in options.shape or SHAPES:
            name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
            dtype = options.dtype or default_dtype(device)
            print(f"\ntoken_logprobs, tokens x width x vocabulary = {shape}, {dtype}, {name}\n")
            show(measure(shape, dtype, device, options.rounds))
        if not options.shape:
            experts.main(device, num_rounds=5)
    if "cuda" not in devices:
        print("\nGPU: not measured")


if __name__ == "__main__":
    main(sys.argv[1:])
