"""The rehearsal before a run: what it runs, that it changes nothing, what it says of too little memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prism_lite import pipeline
from prism_lite.planner import rehearsal
from prism_lite.planner.rehearsal import (
    config_of_largest_rows,
    rehearse,
    rehearsed_phases,
    with_longest_demonstration,
)
from prism_lite.planner.workload import Phase, Workload
from prism_lite.rehearsal import rehearse_stages
from prism_lite.runs.folder import open_run
from prism_lite.stages.context import Context
from prism_lite.types import STAGES
from tests.micro import fill_adapter, micro_recipe, quiet_console


def phases(config, stages=STAGES):
    found = [tuple(phase) for phase in rehearsed_phases(config, stages)]
    return [phase for phase in found if phase[1] in ("sample", "judge", "train")]


def test_the_phases_are_those_of_the_stages_that_wait():
    assert phases(micro_recipe()) == [
        ("sft", "train"), ("warmup", "sample"), ("warmup", "judge"), ("align", "sample"),
        ("align", "judge"), ("align", "train"), ("rlvr", "sample"), ("rlvr", "train"),
    ]  # fmt: skip
    assert ("rlvr", "judge") in phases(micro_recipe(rlvr__game="on"))
    assert phases(micro_recipe(align__method="dpo"), ["align"]) == [
        ("align", "sample"),
        ("align", "train"),
    ]
    assert phases(micro_recipe(), ["rlvr"]) == [("rlvr", "sample"), ("rlvr", "train")]
    assert phases(micro_recipe(), []) == []


def test_a_rehearsal_changes_nothing(backbone, task):
    """Weights, adapters, gradients and random numbers; every phase runs on the CPU as on a card."""
    config = micro_recipe(sampling__max_completion_tokens=6, rlvr__game="on", rlvr__kl_weight=0.1)
    fill_adapter(backbone)
    before = {name: tensor.clone() for name, tensor in backbone.core.state_dict().items()}
    random_state = torch.get_rng_state()
    for phase in rehearsed_phases(config, STAGES):
        rehearse(backbone, config, phase)
    after = backbone.core.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in backbone.policy_parameters())
    assert torch.equal(random_state, torch.get_rng_state())


def test_rows_are_as_large_as_the_largest_of_the_data(backbone, task):
    config = micro_recipe()
    rows = task.sft[:6]
    lengths = [len(backbone.prompt(row)) for row in rows]
    largest = config_of_largest_rows(config, backbone, rows)
    assert largest.model.max_prompt_tokens == max(lengths)
    assert largest.model.max_pixels <= config.model.max_pixels
    longest = max(len(backbone.tokenize(row.demonstration)) for row in rows)
    of_sft = with_longest_demonstration(config, backbone, rows)
    assert {len(tree.branches[0]) for tree in Workload(backbone, of_sft).trees()} == {longest}


@pytest.mark.parametrize("begun", [(), ("sft", "warmup")])
def test_too_little_memory_is_met_before_the_run_begins(
    backbone, task, tmp_path, monkeypatch, begun
):
    config = micro_recipe()
    ran: list[Phase] = []

    def run_phase(_tracker, _mode, _workload, phase, **_settings):
        ran.append(phase)
        if phase == ("align", "judge"):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(rehearsal, "run_phase", run_phase)
    with open_run(tmp_path / "run", config, quiet_console()) as folder:
        for stage in begun:
            folder.stage(stage).mkdir(parents=True)
        context = Context(config, folder, backbone, task)
        with pytest.raises(RuntimeError, match=r"rehearsal of stage align .*model.max_pack_tokens"):
            rehearse_stages(context, STAGES)
    assert {phase.stage for phase in ran} == {"sft", "warmup", "align"} - set(begun)


def test_a_cpu_is_not_rehearsed_on(micro_cache, tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise AssertionError

    monkeypatch.setattr(pipeline, "rehearse_stages", refuse)
    config = dataclasses.replace(micro_recipe(sft__steps=1, eval__stages=()))
    pipeline.run(config, tmp_path / "run", stages=("sft",), console=quiet_console())
