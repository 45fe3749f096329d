"""Starting in the middle: an adapter or a whole checkpoint from elsewhere as the SFT policy."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from prism_lite import pipeline
from prism_lite.deploy import export
from prism_lite.models.adapters import read_adapter
from tests.micro import micro_recipe, quiet_console

SKIP = {"sft__steps": 0, "rlvr__start": "sft", "rlvr__steps": 1}


def test_an_adapter_is_taken_as_the_sft_policy(micro_run, tmp_path):
    _, folder, _, _ = micro_run
    config = micro_recipe(sft__start_from=str(folder / "policy"), **SKIP)
    pipeline.run(config, tmp_path / "r", stages=("sft", "rlvr"), console=quiet_console())
    taken = load_file(tmp_path / "r" / "stages" / "sft" / "final" / "policy.safetensors")
    given = load_file(folder / "policy" / "adapter_model.safetensors")
    assert taken.keys() == given.keys()
    assert all(torch.equal(taken[name], given[name]) for name in given)
    trained = load_file(tmp_path / "r" / "policy" / "adapter_model.safetensors")
    assert any(not torch.equal(trained[name], given[name]) for name in given)


def test_a_merged_checkpoint_is_taken_as_the_model(micro_run, tmp_path):
    """Without a row to imitate: stage 1 is skipped, and nothing but it needs one."""
    _, folder, _, _ = micro_run
    merged = tmp_path / "merged"
    export.export_merged(folder, merged, bound=10.0, console=quiet_console())
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"id": i, "problem": f"Is {i} greater than 3?", "answer": "no"}) + "\n"
            for i in range(4)
        )
    )
    config = micro_recipe(
        model__name=str(merged), data__task="files", data__train=str(rows), **SKIP
    )
    pipeline.run(config, tmp_path / "r", stages=("sft", "rlvr"), console=quiet_console())
    fresh = load_file(tmp_path / "r" / "stages" / "sft" / "final" / "policy.safetensors")
    assert all(not tensor.any() for name, tensor in fresh.items() if "lora_B" in name)


def test_an_adapter_that_does_not_fit_is_refused(micro_run, tmp_path):
    config, folder, _, _ = micro_run
    with pytest.raises(ValueError, match=r"no adapter there.*model\.name"):
        read_adapter(str(tmp_path), config.lora)
    wide = micro_recipe(lora__rank=8).lora
    with pytest.raises(ValueError, match=r"lora\.rank=4 lora\.alpha=32"):
        read_adapter(str(folder / "policy"), wide)
