"""A caller's mistake is a ValueError that names the argument; the dispatch says why it refuses."""

import importlib.metadata
import os
import re
import subprocess
import sys
import types
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import triton_kernels as tk
from tests.kernels.watch import Allocations


def logprob_arguments(**changes: Any) -> dict[str, Any]:
    good = {
        "hidden": torch.randn(3, 4),
        "weight": torch.randn(10, 4),
        "token_ids": torch.tensor([0, 9, -100]),
    }
    return good | changes


def lora_arguments(**changes: Any) -> dict[str, Any]:
    good = {
        "x": torch.randn(3, 4),
        "A": torch.randn(2, 5, 4),
        "B": torch.randn(2, 6, 5),
        "weights": torch.rand(3, 2),
        "scale": 1.0,
    }
    return good | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.randn(2, 3, 4)}, r"hidden must have shape \[T, D\], got \[2, 3, 4\]"),
        ({"hidden": torch.randn(3, 4).double()}, r"hidden must be one of float32.*float64"),
        ({"hidden": [[1.0]]}, r"hidden must be a torch.Tensor, got list"),
        ({"weight": torch.randn(10, 5)}, r"weight must have shape \[V, D=4\], got \[10, 5\]"),
        ({"weight": torch.randint(0, 9, (10, 4))}, r"weight must be one of .* got .*int64"),
        ({"weight": torch.randn(10, 4, device="meta")}, r"weight must be on the device of hidden"),
        ({"weight": torch.randn(10, 4, requires_grad=True)}, r"weight \[10, 4\].* requires grad"),
        ({"weight": torch.randn(0, 4)}, r"weight must have at least one row"),
        ({"token_ids": torch.tensor([1, 2])}, r"token_ids must have shape \[T=3\], got \[2\]"),
        ({"token_ids": torch.ones(3)}, r"token_ids must be one of int64, int32, got .*float32"),
        ({"token_ids": torch.tensor([0, 1, 10])}, r"token_ids .* 0\.\.9 .* from 0 to 10"),
        ({"token_ids": torch.tensor([0, -1, 2])}, r"token_ids .* 0\.\.9 .* from -1 to 2"),
        ({"temperature": 0.0}, r"temperature must be a finite number above 0, got 0.0"),
        ({"temperature": float("nan")}, r"temperature must be .* got nan"),
        ({"temperature": "hot"}, r"temperature must be a finite number above 0, got 'hot'"),
    ],
)
def test_token_logprobs_names_the_mistake(changes: dict[str, Any], message: str) -> None:
    tk.token_logprobs(**logprob_arguments())
    with pytest.raises(ValueError, match=message):
        tk.token_logprobs(**logprob_arguments(**changes))


@pytest.mark.parametrize(
    ("logits", "top_k", "allowed", "message"),
    [
        (torch.randn(3), 1, None, r"logits must have shape \[T, E\], got \[3\]"),
        (torch.ones(3, 4, dtype=torch.int64), 1, None, r"logits must be one of float32"),
        (torch.randn(3, 4), 5, None, r"top_k must be an integer in 1\.\.4.* \[3, 4\].* got 5"),
        (torch.randn(3, 4), 0, None, r"top_k must be an integer in 1\.\.4.* got 0"),
        (torch.randn(3, 4), 1.5, None, r"top_k must be an integer in 1\.\.4.* got 1\.5"),
        (torch.randn(3, 0), 1, None, r"top_k must be an integer in 1\.\.0.* \[3, 0\]"),
        (torch.randn(3, 4), 1, torch.ones(3, 4), r"allowed must be one of bool, got .*float32"),
        (
            torch.randn(3, 4),
            1,
            torch.ones(4, dtype=torch.bool),
            r"allowed must have shape \[T=3, E=4\], got \[4\]",
        ),
        (
            torch.randn(3, 4),
            1,
            torch.ones(3, 4, dtype=torch.bool, device="meta"),
            r"allowed must be on the device of logits \(cpu\), got \[3, 4\] torch.bool on meta",
        ),
    ],
)
def test_route_topk_names_the_mistake(logits, top_k, allowed, message) -> None:
    with pytest.raises(ValueError, match=message):
        tk.route_topk(logits, top_k, allowed=allowed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.randn(3, 4).to(torch.float64)}, r"x must be one of .*float64"),
        ({"A": torch.randn(2, 5, 3)}, r"A must have shape \[E, r, D=4\], got \[2, 5, 3\]"),
        ({"A": torch.randn(0, 5, 4)}, r"A must have at least one expert of rank 1.* \[0, 5, 4\]"),
        ({"A": torch.randn(2, 0, 4)}, r"A must have at least one expert of rank 1.* \[2, 0, 4\]"),
        ({"B": torch.randn(2, 5, 6)}, r"B must have shape \[E=2, N, r=5\], got \[2, 5, 6\]"),
        ({"weights": torch.rand(3, 3)}, r"weights must have shape \[T=3, E=2\], got \[3, 3\]"),
        ({"weights": torch.ones(3, 2, dtype=torch.bool)}, r"weights must be one of .*bool"),
        ({"A": torch.randn(2, 5, 4, device="meta")}, r"A must be on the device of x \(cpu\)"),
        ({"scale": "1"}, r"scale must be a number, got '1'"),
    ],
)
def test_lora_experts_names_the_mistake(changes: dict[str, Any], message: str) -> None:
    tk.lora_experts(**lora_arguments())
    with pytest.raises(ValueError, match=message):
        tk.lora_experts(**lora_arguments(**changes))


def test_an_unknown_override_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISM_KERNELS", "cuda")
    with pytest.raises(ValueError, match="PRISM_KERNELS must be auto, torch or triton, got 'cuda'"):
        tk.token_logprobs(**logprob_arguments())


def test_demanding_triton_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton_kernels import _common

    monkeypatch.setenv("PRISM_KERNELS", "triton")
    monkeypatch.setattr(_common, "_runs_on_cpu", lambda: False)
    with pytest.raises(RuntimeError, match="kernels run on CUDA, or on the CPU with TRITON_INTER"):
        tk.lora_experts(**lora_arguments())
    monkeypatch.setattr(_common, "has_triton", lambda: False)
    with pytest.raises(RuntimeError, match="triton is not installed"):
        tk.lora_experts(**lora_arguments())


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ((3.0, 3.0), None),
        ((2.0, 3.0), r"returned 2.0 and not 3.0"),
        (
            RuntimeError("Failed to find C compiler.\nSet CC."),
            r"launched \(Failed to find C compiler\.\)",
        ),
        (subprocess.CalledProcessError(1, ["gcc", "main.c"]), r"gcc.* non-zero exit status 1"),
        (FileNotFoundError("ptxas"), r"launched \(ptxas\)"),
    ],
)
def test_one_tiny_launch_decides_between_the_kernels_and_torch(
    monkeypatch: pytest.MonkeyPatch, outcome: Any, reason: str | None
) -> None:
    """Kernels are built at the first launch: a machine without a C compiler gets the torch path."""
    from triton_kernels import _common, _tiny_launch

    launches = []

    def launch(device: torch.device) -> tuple[float, float]:
        launches.append(device)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(_tiny_launch, "tiny_launch", launch)
    monkeypatch.setattr(_common, "has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (7, 5))
    monkeypatch.delenv("PRISM_KERNELS", raising=False)
    _common._launch_problem.cache_clear()
    try:
        on_card = types.SimpleNamespace(device=torch.device("cuda:0"), get_device=lambda: 0)
        found = [_common.choose_backend(on_card) for _ in range(3)]  # type: ignore[arg-type]
        assert found == ["torch" if reason else "triton"] * 3
        assert launches == [torch.device("cuda:0")], "asked once"
        said = tk.why_no_triton(0)
        assert said is None if reason is None else re.search(reason, said or "")
    finally:
        _common._launch_problem.cache_clear()


def test_an_old_card_is_not_asked_to_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton_kernels import _common

    monkeypatch.setattr(_common, "has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (6, 0))
    _common._launch_problem.cache_clear()
    try:
        assert tk.why_no_triton(0) == "compute capability 6.0 is older than 7.5"
    finally:
        _common._launch_problem.cache_clear()


def test_the_tiny_launch_computes_what_it_is_compared_with() -> None:
    """In Triton's interpreter, which has to be chosen before triton is imported."""
    program = """
import torch
from triton_kernels._tiny_launch import tiny_launch
assert tiny_launch(torch.device("cpu")) == (6.0, 6.0)
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_the_package_works_without_triton() -> None:
    """Importing and computing on the CPU touches no Triton, installed or not."""
    program = """
import sys
sys.modules["triton"] = None  # import triton now raises ImportError
import torch, triton_kernels as tk
hidden = torch.randn(3, 4, requires_grad=True)
tk.token_logprobs(hidden, torch.randn(9, 4), torch.arange(3)).sum().backward()
routing = tk.route_topk(hidden, 2)
tk.lora_experts(hidden, torch.randn(4, 2, 4), torch.randn(4, 5, 2), routing.weights, scale=1.0)
assert not [name for name in sys.modules if name.endswith("_triton")]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nobody_else_owns_the_name() -> None:
    """Another distribution uses this import name, too; both in one environment would shadow."""
    owners = importlib.metadata.packages_distributions().get("triton_kernels", [])
    assert set(owners) <= {"prism-lite", "prism_lite"}


def test_autocast_changes_nothing() -> None:
    arguments = logprob_arguments(hidden=torch.randn(3, 4, requires_grad=True))
    plain = tk.token_logprobs(**arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tk.token_logprobs(**arguments)
    assert torch.equal(plain, cast)


def run_everything(num_tokens: int, vocabulary: int, dtype: torch.dtype) -> None:
    hidden = torch.empty(num_tokens, 64, dtype=dtype, requires_grad=True)
    head = torch.empty(vocabulary, 64, dtype=dtype)
    ids = torch.zeros(num_tokens, dtype=torch.int64)
    logprob, entropy = tk.token_logprobs(hidden, head, ids, return_entropy=True)
    (logprob.sum() + entropy.sum()).backward()
    A = torch.empty(8, 16, 64, requires_grad=True)
    B = torch.empty(8, 96, 16, requires_grad=True)
    routing = tk.route_topk(hidden[:, :8].float(), 2)
    tk.lora_experts(hidden, A, B, routing.weights, scale=2.0).sum().backward()
    assert hidden.grad is not None and A.grad is not None and B.grad is not None


@pytest.mark.parametrize("wish", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fake_tensors_plan_memory_without_a_card(wish, dtype, monkeypatch) -> None:
    """The planner runs real steps on fake tensors: same allocations, no launch, no [T, vocab].

    (On fake CPU tensors, for autograd on fake CUDA tensors needs a CUDA build of torch;
    PRISM_KERNELS=triton then plans what CUDA would allocate.)
    """
    if wish == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("PRISM_KERNELS", wish)
    vocabulary = 151_936
    num_tokens = 8192 if wish == "triton" else 2048  # the torch path: 52 chunks, not 297
    with FakeTensorMode(), Allocations() as seen:
        run_everything(num_tokens, vocabulary, dtype)
    weights = vocabulary * 64 * dtype.itemsize
    assert not seen.with_size(vocabulary, at_least=num_tokens * vocabulary)
    assert seen.peak_bytes < weights + 0.2 * (4 * num_tokens * vocabulary)


def test_real_tensors_stay_within_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU path's extra memory: one 24 MiB chunk, two with entropy, and a few [T, D]."""
    monkeypatch.setenv("PRISM_KERNELS", "torch")
    hidden, head = torch.randn(1024, 64, requires_grad=True), torch.randn(30_000, 64)
    ids = torch.zeros(1024, dtype=torch.int64)
    with Allocations() as seen:
        tk.token_logprobs(hidden, head, ids).sum().backward()
    tokens_bytes = 1024 * 64 * 4
    assert 20 * 2**20 <= seen.largest_bytes <= 24 * 2**20
    assert seen.peak_bytes < 24 * 2**20 + 6 * tokens_bytes
    assert not seen.with_size(30_000, at_least=1024 * 30_000)
