"""Out of memory: smaller pieces of the same work, which end with the same weights but for rounding."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file

from prism_lite import pipeline
from prism_lite.models.backbone import Backbone
from prism_lite.sampling import rollouts
from tests.micro import micro_recipe, quiet_console
from tests.pipeline.test_resume import cut_back

CARD = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
MACHINE = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
    "to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize("error", [CARD, MACHINE])
def test_a_stage_continues_with_fewer_rows_and_smaller_packs(
    micro_run, tmp_path, monkeypatch, error
):
    _, finished, _, _ = micro_run
    config = micro_recipe(model__max_pack_tokens=1024, sampling__max_rows=16)
    cut_back(finished, tmp_path / "r", "rlvr")
    (tmp_path / "r" / "stages" / "rlvr" / "checkpoint-4" / "state.json").unlink()
    hidden_states, decode = Backbone.hidden_states, rollouts._decode

    def limited_states(self, pack, **more):
        if len(pack.target_N) > 200:
            raise type(error)(*error.args)  # a new one: a traceback grows
        return hidden_states(self, pack, **more)

    def limited_decode(backbone, decoder, prompts, uniforms, sampling):
        if sum(map(len, uniforms)) > 4:
            raise type(error)(*error.args)  # a new one: a traceback grows
        return decode(backbone, decoder, prompts, uniforms, sampling)

    monkeypatch.setattr(Backbone, "hidden_states", limited_states)
    monkeypatch.setattr(rollouts, "_decode", limited_decode)
    console = quiet_console()
    pipeline.run(config, tmp_path / "r", console=console)
    printed = " ".join(console.file.getvalue().split())
    assert "out of memory in stage rlvr: it continues with" in printed
    pairs = re.findall(r"model\.max_pack_tokens=(\d+) and sampling\.max_rows=(\d+) \(", printed)
    assert pairs[-1] == ("256", "4") and len(pairs) == 4, pairs  # 1024, 512, 256 and 16, 8, 4
    first, second = (
        load_file(path / "stages" / "rlvr" / "final" / "policy.safetensors")
        for path in (finished, tmp_path / "r")
    )
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-5)


def test_when_nothing_is_left_to_lower_the_planner_is_named(micro_cache, tmp_path, monkeypatch):
    def always(*_arguments, **_more):
        raise CARD

    monkeypatch.setattr(rollouts, "_decode", always)
    with pytest.raises(
        RuntimeError,
        match=r"out of memory in the evaluation of stage base .*max_rows=1\..*prism-lite plan",
    ):
        pipeline.run(micro_recipe(), tmp_path / "r", console=quiet_console())


def test_another_error_is_not_taken_for_a_lack_of_memory(micro_cache, tmp_path, monkeypatch):
    def fails(*_arguments, **_more):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(rollouts, "_decode", fails)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        pipeline.run(micro_recipe(), tmp_path / "r", console=quiet_console())
