"""A token step as a card takes it: recorded or not, and how many launches it costs."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prism_lite.config import SamplingConfig
from prism_lite.models.packed_attention import PackedAttention
from prism_lite.sampling import token_step
from prism_lite.sampling.decoder import empty_buffers, lean_decoder, run_lean_decoder
from prism_lite.sampling.packed_cache import PackedCache
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.sampling.token_step import StepRunner
from tests.micro import fill_adapter
from tests.unit.sampling.test_decoder import packed_without_waiting

CARD: Any = SimpleNamespace(
    device=torch.device("cuda"), config=SimpleNamespace(embeddings_on_cpu=False)
)


class Launches(TorchDispatchMode):
    """Counts operations that neither view nor only allocate: on a card each is a launch or more."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if not func.is_view and "empty" not in name:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def launches_of_a_layer(backbone, monkeypatch, *, dense: bool) -> int:
    """Launches of a token step with two layers, less those with one; kernels are counted, not run."""
    from triton_kernels import _common, decoding_triton

    decoder = lean_decoder(backbone.core, dense=dense, float32_residual=False)
    monkeypatch.setenv("PRISM_KERNELS", "triton")
    monkeypatch.setattr(_common, "_runs_on_cpu", lambda: True)
    totals = []
    for num_layers in (1, 2):
        counted = Launches()
        monkeypatch.setattr(
            decoding_triton, "launch", lambda *_, c=counted, **__: c.counts.update(["kernel"])
        )
        some_layers = dataclasses.replace(decoder, layers=decoder.layers[:num_layers])
        cache = PackedCache(
            empty_buffers(some_layers, 7 + 4 * 8),
            [7],
            [4],
            max_tokens=8,
            num_shared=decoder.num_heads // decoder.num_kv_heads,
            attention=PackedAttention(packed_without_waiting, is_by_sequence=False),
        )
        cache.open_slot()
        table_R1d = torch.zeros(4, 1, decoder.head_size, dtype=torch.bfloat16)
        hidden_RD = torch.zeros(4, 64, dtype=torch.bfloat16)
        with counted:
            run_lean_decoder(
                some_layers,
                hidden_RD,
                lambda layer, qkv, c=cache, d=some_layers, t=table_R1d: c.attend_product(
                    d, layer, qkv, t, t
                ),
            )
        totals.append(counted.counts.total())
    return totals[1] - totals[0]


def test_launches_of_a_layer_and_token(make_backbone, monkeypatch):
    """On a card with Triton: 4-bit weights and an adapter, or dense weights."""
    pytest.importorskip("triton")
    backbone = make_backbone(model__compute_dtype="bfloat16")
    fill_adapter(backbone)
    assert launches_of_a_layer(backbone, monkeypatch, dense=False) == 23
    assert launches_of_a_layer(backbone, monkeypatch, dense=True) == 10


def runner_of(monkeypatch, recorded, **sampling) -> StepRunner:
    monkeypatch.setattr(token_step, "_failures", [])
    monkeypatch.setattr(token_step, "_recorded", recorded)
    return StepRunner(CARD, SamplingConfig(**sampling))


def test_a_step_is_taken_once_then_recorded_and_replayed(monkeypatch):
    calls = []
    runner = runner_of(
        monkeypatch, lambda step: calls.append("record") or (lambda: calls.append("replay"))
    )
    runner.take(lambda: calls.append("step"), 32)
    assert calls == ["step", "record", *["replay"] * 31]
    calls.clear()
    runner.take(lambda: calls.append("step"), 3)
    assert calls == ["replay"] * 3
    calls.clear()
    runner.forget()  # rows were dropped
    runner.take(lambda: calls.append("step"), 32)
    assert calls == ["step", "record", *["replay"] * 31]
    calls.clear()
    runner.forget()
    runner.take(lambda: calls.append("step"), 3)  # too few to be worth it
    assert calls == ["step"] * 3


def test_no_graph_where_none_is_wanted_or_possible(monkeypatch):
    calls = []
    runner = runner_of(monkeypatch, calls.append, cuda_graph="never")
    runner.take(lambda: None, 32)
    on_cpu: Any = SimpleNamespace(device=torch.device("cpu"))
    StepRunner(on_cpu, SamplingConfig()).take(lambda: None, 32)
    elsewhere: Any = SimpleNamespace(
        device=CARD.device, config=SimpleNamespace(embeddings_on_cpu=True)
    )
    with pytest.warns(UserWarning, match=r"without a CUDA graph.*model\.embeddings_on_cpu"):
        StepRunner(elsewhere, SamplingConfig()).take(lambda: None, 32)
    assert calls == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="recording must fail")
def test_a_recording_that_fails_is_said_and_not_tried_again(monkeypatch):
    """Here because this torch has no CUDA; every step is still taken, once."""
    runner = runner_of(monkeypatch, token_step._recorded)
    calls = []
    with pytest.warns(
        UserWarning, match=r"without a CUDA graph.*recording it failed \(.*CUDAGraph"
    ):
        runner.take(lambda: calls.append("step"), 32)
    assert len(calls) == 32
    runner.take(lambda: calls.append("step"), 32)
    assert len(calls) == 64
    runner = StepRunner(CARD, SamplingConfig())  # the next batch
    runner.take(lambda: calls.append("step"), 32)
    assert len(calls) == 96


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonzero is not permitted when stream is capturing\nmore", "nonzero .* capturing"),
        ("", "RuntimeError"),
    ],
)
def test_a_recording_that_cannot_be_ended_leaves_the_stream_as_it_was(monkeypatch, text, said):
    """As torch.cuda.graph: an operation fails, then ending fails, and its own stream stays set."""

    @contextlib.contextmanager
    def graph(_graph, **_settings):
        torch.cuda.set_stream("the recording's")
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    def step():
        raise RuntimeError(text)

    streams: list[Any] = ["the step's"]
    monkeypatch.setattr(token_step, "_failures", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    with pytest.warns(UserWarning, match=rf"failed \({said}\)"):
        assert token_step._recorded(step) is None
    assert streams == ["the step's", "the recording's", "the step's"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card")
@pytest.mark.filterwarnings("error:sampling takes one operation:UserWarning")  # it is recorded
@pytest.mark.parametrize("dense", ["always", "never"])
def test_replayed_steps_draw_the_tokens_of_eager_ones(make_backbone, task, dense):
    backbone = make_backbone()
    fill_adapter(backbone)
    tokens = []
    for graph in ("auto", "never"):
        sampling = SamplingConfig(
            max_completion_tokens=80, dense_weights=dense, cuda_graph=graph, temperature=0.8
        )
        groups = sample_groups(
            backbone, task.heldout[:3], group_size=8, sampling=sampling, seed=("graph",)
        )
        tokens.append([rollout.token_ids for group in groups for rollout in group.rollouts])
    assert tokens[0] == tokens[1]
