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
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]


class Mutation(NamedTuple):
    """`before` occurs exactly once in `triton_kernels/<file>` and becomes `after`."""

    file: str
    what: str
    before: str
    after: str


TESTS = {
    "logprob": "tests/kernels/ops/test_token_logprobs.py",
    "routing": "tests/kernels/ops/test_route_topk.py",
    "lora": "tests/kernels/ops/test_lora_experts.py",
}

MUTATIONS = [
    # --- _logprob_rows, _entropy_grad_rows
    Mutation(
        "logprob_triton.py",
        "temperature forgotten at the target",
        "target = tl.load(logits_ptr + token).to(tl.float32) * inv_temperature",
        "target = tl.load(logits_ptr + token).to(tl.float32)",
    ),
    Mutation(
        "logprob_triton.py",
        "temperature forgotten in the gradient's share",
        "share = tl.exp(z * inv_temperature - top)",
        "share = tl.exp(z - top)",
    ),
    Mutation(
        "logprob_triton.py",
        "running sum not rescaled when the maximum rises",
        "rest = rest * decay + tl.sum(share, axis=0)",
        "rest = rest + tl.sum(share, axis=0)",
    ),
    Mutation(
        "logprob_triton.py",
        "running entropy sum not shifted when the maximum rises",
        "weighted = decay * (weighted + (top - new_top) * rest) + tl.sum(part, axis=0)",
        "weighted = decay * weighted + tl.sum(part, axis=0)",
    ),
    Mutation(
        "logprob_triton.py",
        "maximum of the last block instead of the running one",
        "new_top = tl.maximum(top, tl.max(z, axis=0))",
        "new_top = tl.max(z, axis=0)",
    ),
    Mutation(
        "logprob_triton.py",
        "mask off by one column",
        'mask=columns < num_columns, other=float("-inf"))',
        'mask=columns < num_columns - 1, other=float("-inf"))',
    ),
    Mutation(
        "logprob_triton.py",
        "masked columns count as logit 0",
        'mask=columns < num_columns, other=float("-inf"))',
        "mask=columns < num_columns, other=0.0)",
    ),
    Mutation(
        "logprob_triton.py",
        "target counted twice",
        "share = tl.where(columns == token, 0.0, tl.exp(z - new_top))",
        "share = tl.exp(z - new_top)",
    ),
    Mutation(
        "logprob_triton.py",
        "1 - p by subtraction (cancels for confident tokens)",
        "grad = tl.where(columns == token, rest, -share) / total * grad_scale",
        "grad = (tl.where(columns == token, 1.0, 0.0) - share / total) * grad_scale",
    ),
    Mutation(
        "logprob_triton.py",
        "sign of the gradient",
        "grad = tl.where(columns == token, rest, -share) / total * grad_scale",
        "grad = tl.where(columns == token, rest, share) / total * grad_scale",
    ),
    Mutation(
        "logprob_triton.py",
        "target's own term missing from the entropy",
        "weighted += tl.where(own == 0.0, 0.0, own * (target - top))",
        "weighted += 0.0",
    ),
    Mutation(
        "logprob_triton.py",
        "0 * -inf not guarded in the entropy",
        "part = tl.where(share == 0.0, 0.0, share * (z - new_top))",
        "part = share * (z - new_top)",
    ),
    Mutation(
        "logprob_triton.py",
        "maximum starts at -inf",
        "top = -1e38",
        'top = float("-inf")',
    ),
    Mutation(
        "logprob_triton.py",
        "entropy missing from its own gradient",
        "grad = tl.where(share == 0.0, 0.0, -share * (logprob + entropy)) * grad_scale",
        "grad = tl.where(share == 0.0, 0.0, -share * logprob) * grad_scale",
    ),
    Mutation(
        "logprob_triton.py",
        "second block of columns of the entropy's gradient skipped",
        "columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)",
        "columns = tl.arange(0, BLOCK)",
    ),
    Mutation(
        "logprob_triton.py",
        "gradient not unscaled after the product",
        "torch.mul(product_CD, inv_temperature / _scale(weight), out=product_CD)",
        "torch.mul(product_CD, inv_temperature, out=product_CD)",
    ),
    Mutation(
        "logprob_triton.py",
        "float16 gradients of the logits not scaled (underflow)",
        "return FP16_SCALE if weight.dtype == torch.float16 else 1.0",
        "return 1.0",
    ),
    Mutation(
        "logprob_triton.py",
        "chunk writes over the first chunk's results",
        "            result.logprob[rows],",
        "            result.logprob,",
    ),
    # --- _route, _route_backward
    Mutation(
        "routing_triton.py",
        "chosen expert not excluded from the next round",
        'rank = tl.where(is_best, float("-inf"), rank)',
        "rank = rank",
    ),
    Mutation(
        "routing_triton.py",
        "groups ignored",
        "        may = may & (tl.load(allowed_ptr, mask=is_real, other=0) != 0)\n\n    # An",
        "        may = may\n\n    # An",
    ),
    Mutation(
        "routing_triton.py",
        "groups ignored in the backward",
        "        may = may & (tl.load(allowed_ptr, mask=is_real, other=0) != 0)\n    offset",
        "        may = may\n    offset",
    ),
    Mutation(
        "routing_triton.py",
        "forbidden experts chosen when the group is exhausted",
        "& exists[:, None]",
        "& (exists[:, None] | True)",
    ),
    Mutation(
        "routing_triton.py",
        "allowed -inf ranks with the forbidden",
        'rank = tl.where(may, tl.where(z > -3.0e38, z, -3.0e38), float("-inf"))',
        'rank = tl.where(may, z, float("-inf"))',
    ),
    Mutation(
        "routing_triton.py",
        "NaN not seen",
        "is_bad = (may & (z != z)) | (weights != weights)",
        "is_bad = weights != weights",
    ),
    Mutation(
        "routing_triton.py",
        "softmax over all allowed instead of the chosen",
        "weights = _softmax_over(z, chosen)",
        "weights = _softmax_over(z, may)",
    ),
    Mutation(
        "routing_triton.py",
        "balance loss from the weights instead of the shares",
        "tl.sum(_softmax_over(z, may), axis=0)",
        "tl.sum(weights, axis=0)",
    ),
    Mutation(
        "routing_triton.py",
        "load counts every assignment as one token",
        "return tl.sum(one / count[:, None], axis=0)",
        "return tl.sum(one, axis=0)",
    ),
    Mutation(
        "routing_triton.py",
        "Jacobian's second term missing",
        "grad = weights * (grad_weights - tl.sum(weights * grad_weights, axis=1)[:, None])",
        "grad = weights * grad_weights",
    ),
    Mutation(
        "routing_triton.py",
        "balance loss gives no gradient",
        "grad += prob * (grad_prob - tl.sum(prob * grad_prob, axis=1)[:, None])",
        "grad += 0.0",
    ),
    Mutation(
        "routing_triton.py",
        "upstream gradient read without its strides",
        "_offsets(rows, columns, grad_stride_t, grad_stride_e)",
        "_offsets(rows, columns, NUM_EXPERTS, 1)",
    ),
    # --- _scale_ranks, _scale_ranks_backward
    Mutation(
        "lora_triton.py",
        "expert's columns misplaced",
        "columns = expert * RANK + tl.arange(0, PADDED)",
        "columns = tl.arange(0, PADDED)",
    ),
    Mutation(
        "lora_triton.py",
        "scale forgotten in the forward",
        "out = low * (weight * scale)[:, None]",
        "out = low * weight[:, None]",
    ),
    Mutation(
        "lora_triton.py",
        "scale forgotten in the gradient of x",
        "grad_low = grad * (weight * scale)[:, None]",
        "grad_low = grad * weight[:, None]",
    ),
    Mutation(
        "lora_triton.py",
        "scale forgotten in the gradient of the weights",
        "grad_weight = tl.sum(grad * low, axis=1) * scale",
        "grad_weight = tl.sum(grad * low, axis=1)",
    ),
    Mutation(
        "lora_triton.py",
        "gradient of the weights from the scaled gradient",
        "grad_weight = tl.sum(grad * low, axis=1) * scale",
        "grad_weight = tl.sum(grad_low * low, axis=1) * scale",
    ),
    Mutation(
        "lora_triton.py",
        "expert's gradient stored at the wrong place",
        "grad_weights_ptr += rows.to(tl.int64) * tl.num_programs(1) + expert",
        "grad_weights_ptr += rows.to(tl.int64) * tl.num_programs(1)",
    ),
]


def kill(mutation: Mutation, folder: Path) -> bool:
    """Whether the tests fail on the mutated copy in `folder` (restored afterwards)."""
    path = folder / "triton_kernels" / mutation.file
    original = path.read_text()
    path.write_text(original.replace(mutation.before, mutation.after))
    try:
        return run_tests(mutation.file.split("_")[0], folder) != 0
    finally:
        path.write_text(original)


def run_tests(operation: str, folder: Path) -> int:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", TESTS[operation]]
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
    chosen = [m for m in MUTATIONS if only is None or m.file.startswith(only)]
    survivors = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(REPOSITORY / "triton_kernels", folder / "triton_kernels")
        shutil.copytree(REPOSITORY / "tests" / "kernels", folder / "tests" / "kernels")
        shutil.copy(REPOSITORY / "pyproject.toml", folder)
        for operation in sorted({mutation.file.split("_")[0] for mutation in chosen}):
            if run_tests(operation, folder):
                raise RuntimeError(f"the tests of {operation} fail without any mutation")
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
