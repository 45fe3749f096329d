"""Routing and LoRA experts: ours against one expert at a time (the eager references), in time.

Part of `python -m tests.bench kernels`. Shapes: the digits task's discriminator, and one linear
layer of a 4B backbone.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

import triton_kernels as tk
from triton_kernels import reference

# tokens, width, output width, experts, rank
SHAPES = [(2000, 128, 128, 8, 16), (1024, 2560, 2560, 8, 16)]
TOP_K = 2


def step(package, x: Tensor, logits: Tensor, A: Tensor, B: Tensor) -> None:
    """Forward and backward of router and experts, as a discriminator layer uses them."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, logits, A, B)]
    routing = package.route_topk(leaves[1], TOP_K)
    output = package.lora_experts(leaves[0], leaves[2], leaves[3], routing.weights, scale=2.0)
    (output.float().square().mean() + 0.01 * routing.balance_loss).backward()
    if x.is_cuda:
        torch.cuda.synchronize()


def best_s(actions: dict[str, Callable[[], None]], num_rounds: int) -> dict[str, float]:
    """The actions in turn; the least time of each."""
    best = dict.fromkeys(actions, math.inf)
    for _ in range(num_rounds + 2):  # two to warm up
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def main(device: str, num_rounds: int) -> None:
    print("\nroute_topk + lora_experts, forward + backward\n")
    print("| tokens | width | experts x rank | ours ms | one expert at a time ms | ratio |")
    print("|---|---|---|---|---|---|")
    for num_tokens, width, out, num_experts, rank in SHAPES:
        x = torch.randn(num_tokens, width, device=device)
        logits = torch.randn(num_tokens, num_experts, device=device)
        A = torch.randn(num_experts, rank, width, device=device) / math.sqrt(width)
        B = torch.randn(num_experts, out, rank, device=device)
        inputs = (x, logits, A, B)
        actions = {
            name: lambda package=package, inputs=inputs: step(package, *inputs)
            for name, package in (("ours", tk), ("loop", reference))
        }
        best = best_s(actions, num_rounds)
        print(
            f"| {num_tokens} | {width} | {num_experts} x {rank} | {best['ours'] * 1e3:.1f} "
            f"| {best['loop'] * 1e3:.1f} | {best['ours'] / best['loop']:.2f} |"
        )
