"""Decoding, whole runs and chat on a pretended card (tests/pretended_card.py), and the card itself.

Launches and synchronisations of decoding are bounded.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from typing import Any

import pytest
import torch

from prism_lite import pipeline, run_results
from prism_lite.cli.doctor import describe
from prism_lite.config import SamplingConfig
from prism_lite.data.task import load_task
from prism_lite.deploy.chat import answer
from prism_lite.deploy.export import export_merged
from prism_lite.deploy.load import load_stage
from prism_lite.digits.base_model import base_folder
from prism_lite.models.backbone import Backbone
from prism_lite.models.families import qwen3_vl as family
from prism_lite.runs.folder import RunFolder
from prism_lite.sampling import token_step
from prism_lite.sampling.rollouts import sample_groups
from tests.gpu_check.kernels import packed_attention_errors
from tests.micro import fill_adapter, micro_recipe, quiet_console
from tests.pretended_card import RTX_4090, T4, PretendedCard, shadow
from tests.pretended_machine import CARDS, groups_of, load, optimizers, pretended_card

pytestmark = [
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="this machine has a card: test_on_card.py runs on it"
    ),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

# Most launches of a token, in a layer and beside the layers (the head, the draw), without a graph.
BOUNDS = {
    ("rtx4090", "never"): {"in a layer": 24, "beside": 60},
    ("rtx4090", "always"): {"in a layer": 10, "beside": 60},
    ("t4", "never"): {"in a layer": 24, "beside": 60},
    ("t4", "always"): {"in a layer": 10, "beside": 60},
}
CAPABILITIES = {"rtx4090": RTX_4090, "t4": T4}


def test_a_run_with_every_option_for_memory(micro_cache, tmp_path, monkeypatch):
    """All stages, rehearsed, ended and resumed; the merge verified; a question answered."""
    dtype = "float16"
    config = micro_recipe(
        model__device="cuda", model__gradient_checkpointing=True, model__vision_on_cpu=True,
        save_every=1, sft__steps=1, sft__optim__learning_rate=1e-9,  # the base's own answers
        warmup__steps=1, warmup__check_every=1, warmup__num_prompts=4,
        warmup__num_probe=4, align__steps=1, align__replay_fraction=0.5, align__panel_every=2,
        rlvr__steps=2, rlvr__game="on", rlvr__kl_weight=0.01, rlvr__dynamic_sampling=True,
        rlvr__max_sampled_batches=2, data__num_heldout=2, data__num_transfer=2,
        eval__num_samples=1, eval__stages=["rlvr"],
        **optimizers(dtype),
    )  # fmt: skip
    monkeypatch.setattr(
        run_results.plots, "write_plots", lambda _run: None
    )  # has nothing to do with cards
    out = tmp_path / "run"
    with pretended_card(CARDS[dtype]):
        results = pipeline.run(config, out, console=quiet_console())
        assert set(results["stages"]) == {"rlvr"}
        shutil.rmtree(out / "stages" / "rlvr" / "final")
        # from the checkpoint of the first step
        pipeline.run(config, out, console=quiet_console(), rehearsal=False)
        record = export_merged(out, tmp_path / "merged", bound=10.0, console=quiet_console())
        backbone = load_stage(out, config, "rlvr")
        text = ask(backbone, load_task(config).heldout[0], temperature=0.0)
    assert isinstance(text, str) and len(backbone.tokenize(text, end=False)) <= 4
    check = record["merged_against_base_and_adapter"]
    assert check["largest"] <= check["tolerance"]
    lines = RunFolder(out, config, quiet_console()).metrics()
    for stage, steps in {"sft": [0], "warmup": [0], "align": [0], "rlvr": [0, 1]}.items():
        own = [line for line in lines if line["stage"] == stage and "step_time" in line]
        assert [line["step"] for line in own] == steps, stage
        assert all("mem/reserved_gib" in line for line in own)
        named = ("loss", "disc/loss")
        assert all(abs(line[n]) < 1e3 for line in own for n in named if n in line)


@pytest.mark.parametrize("dtype", CARDS)
def test_a_chat_whose_vision_tower_waits_on_the_cpu(micro_cache, task, dtype):
    """The answer is that of a tower that stays on the card, and the tower is on the CPU afterwards."""
    config = micro_recipe(model__device="cuda", model__vision_on_cpu=True)
    base_folder(config)  # made on the CPU
    texts = []
    with pretended_card(CARDS[dtype]):
        for model in (config.model, dataclasses.replace(config.model, vision_on_cpu=False)):
            backbone = load(dataclasses.replace(config, model=model))
            tower = family.vision_tower(backbone.core)
            texts.append(ask(backbone, task.heldout[0], temperature=0.0))
            is_on_cpu = tower.blocks[0].mlp.linear_fc1.weight.device.type == "cpu"
            assert is_on_cpu == model.vision_on_cpu
        ask(backbone, task.heldout[0], temperature=1.0)
    assert texts[0] == texts[1] != ""


def ask(backbone: Backbone, sample: Any, *, temperature: float) -> str:
    """Answer with four tokens at most."""
    return answer(backbone, sample, temperature=temperature, max_tokens=4, streamer=_Silent())


class _Silent:
    """A streamer that prints nothing."""

    def put(self, _tokens: Any) -> None: ...
    def end(self) -> None: ...


def counts_of_decoding(
    card: PretendedCard, backbone: Backbone, task: Any, sampling: SamplingConfig
) -> tuple[int, Counter[str], list[tuple[int, ...]]]:
    """Decode eight rows that do not end; return launches, synchronisations and tokens."""
    card.launches.clear()
    card.synchronisations.clear()
    groups = sample_groups(
        backbone, task.align[:2], group_size=4, sampling=sampling, seed=("launches",)
    )
    tokens = [rollout.token_ids for group in groups for rollout in group.rollouts]
    assert {len(row) for row in tokens} == {sampling.max_completion_tokens}
    return card.num_launches, card.synchronisations.copy(), tokens


@pytest.mark.parametrize(("name", "dense_weights"), BOUNDS)
def test_a_decoded_token_launches_little_and_waits_once_in_32(
    micro_cache, task, monkeypatch, name, dense_weights
):
    """The slope of launches over two lengths, and over two depths; with a graph one replay a token."""
    monkeypatch.setattr(token_step, "_failures", [])
    slope: dict[tuple[int, str], float] = {}
    drawn: dict[int, list[tuple[int, ...]]] = {}
    few, many = 2, 3  # layers
    for num_layers, graph, lengths in (
        (few, "never", (3, 33)), (few, "auto", (33, 65)), (many, "never", (3, 6)),
    ):  # fmt: skip
        config = micro_recipe(model__device="cuda", tiny__steps=0, tiny__num_layers=num_layers)
        base_folder(config)  # made on the CPU
        with pretended_card(CAPABILITIES[name]) as card:
            backbone = load(config)
            fill_adapter(backbone)
            backbone.suppressed_ids.append(backbone.end_id)
            groups_of(backbone, config, task)  # from here on the pictures are encoded
            launches, waits, tokens = [], [], []
            for length in lengths:
                sampling = dataclasses.replace(
                    config.sampling, max_completion_tokens=length, temperature=1.0,
                    dense_weights=dense_weights, cuda_graph=graph,
                )  # fmt: skip
                counts = counts_of_decoding(card, backbone, task, sampling)
                for values, value in zip((launches, waits, tokens), counts, strict=True):
                    values.append(value)
        slope[num_layers, graph] = (launches[1] - launches[0]) / (lengths[1] - lengths[0])
        num_waits = (waits[1] - waits[0]).total()
        if graph == "never":
            assert num_waits == 0, waits  # one check, before the second token
            drawn[num_layers] = tokens[1]
        else:
            assert num_waits == 1, waits  # after 32 tokens
            assert tokens[0] == drawn[few], "a replayed step draws what the step draws"
    assert token_step._failures == []
    assert slope[few, "auto"] == 1
    in_layer = slope[many, "never"] - slope[few, "never"]
    figures = {"in a layer": in_layer, "beside": slope[few, "never"] - few * in_layer}
    print(f"{name}, dense weights {dense_weights}: {figures}")
    bounds = BOUNDS[name, dense_weights]
    assert all(figures[place] <= bound for place, bound in bounds.items()), figures


@pytest.mark.parametrize(("card", "public"), [(T4, [False]), (RTX_4090, [True, True, False])])
def test_gpu_check_compares_the_attention_of_a_token_step(card, public):
    with pretended_card(card):
        facts = packed_attention_errors("cuda:0")
    assert [fact["public"] for fact in facts] == public
    assert all(fact["is_right"] for fact in facts)


def test_a_graph_refuses_what_waits_and_replays_in_place():
    with pretended_card(T4) as card:
        x = torch.ones(3, device="cuda:0")
        total = torch.zeros((), device="cuda:0")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            doubled = 2 * x
            total.add_(doubled.sum())
        for _ in range(3):
            graph.replay()
        assert float(total) == 18 and card.launches["replay of a graph"] == 3
        x.fill_(10)
        graph.replay()
        assert float(total) == 78 and doubled.tolist() == [20, 20, 20]
        for wait in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: x.cpu()):
            with (
                pytest.raises(RuntimeError, match="a CUDA graph cannot hold this"),
                torch.cuda.graph(torch.cuda.CUDAGraph()),
            ):
                wait()


def test_doctor_says_what_a_card_lacks():
    with pretended_card((6, 0)):  # the age of a P100
        text = describe()
    assert "pretended (sm60) is older than sm75" in text
    assert "no Triton kernels, the slower torch path instead: PRISM_KERNELS=torch" in text


def test_the_pretended_card_finds_what_it_is_for():
    """The test of the test: mixed devices, waiting for the card, values."""
    on_cpu = torch.arange(6.0).view(2, 3)
    with pretended_card(T4) as card:
        on_card = on_cpu.to("cuda:0")
        assert on_card.device.type == "cuda" and torch.cuda.get_device_capability() == T4
        with pytest.raises(RuntimeError, match="same device"):
            on_card + on_cpu
        card.launches.clear()
        card.synchronisations.clear()
        product = on_card @ on_card.T
        product[0].add_(1)
        assert card.num_launches == 2  # a view launches nothing
        assert float(product.sum()) == float((on_cpu @ on_cpu.T).sum()) + 2
        assert product.nonzero().shape == (4, 2)
        assert product.cpu().device.type == "cpu"
        waits = {"item": 1, "shape that depends on data": 1, "copy to the CPU": 1}
        assert card.synchronisations == waits
        weight = torch.nn.Parameter(torch.ones(3, device="cuda:0"))
        (on_card @ weight).square().sum().backward()
        gradient = shadow(weight.grad)
    assert gradient.tolist() == [72.0, 102.0, 132.0]
