"""The stored tiny base: it is that of the default settings, small, whole, and can be made again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from prism_lite import load_recipe
from prism_lite.digits import base_model
from tests.micro import micro_recipe

STORED = Path(base_model.__file__).with_name("base")


def test_the_tiny_recipe_opens_the_stored_base_and_trains_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISM_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(base_model, "train_tiny_base", None)  # calling it would fail
    config = load_recipe("tiny")
    assert base_model.base_folder(config) == str(STORED)
    assert not list(tmp_path.iterdir())
    assert sum(f.stat().st_size for f in STORED.iterdir()) < 5e6


@pytest.mark.parametrize(
    "change", ["tiny.steps=3", "data.digits.drift=public", "data.digits.max_digits=6"]
)
def test_other_settings_have_a_base_of_their_own(change):
    config = load_recipe("tiny", [change])
    assert base_model.tiny_base_folder(config.tiny, config.data.digits) != STORED


def test_what_does_not_change_the_base_keeps_it():
    config = load_recipe("tiny", ["data.digits.teacher_slip_rate=0.25", "seed=7", "rlvr.steps=2"])
    assert base_model.base_folder(config) == str(STORED)


def test_a_damaged_stored_base_is_refused(tmp_path, monkeypatch):
    copy = tmp_path / "base"
    shutil.copytree(STORED, copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    monkeypatch.setattr(base_model, "STORED_BASE", copy)
    with pytest.raises(RuntimeError, match=r"damaged.*python -m prism_lite\.digits\.base_model"):
        base_model.base_folder(load_recipe("tiny"))


def test_a_shortened_base_is_made_and_stored_by_the_same_function(tmp_path, monkeypatch):
    """The command's function with few steps: key and digest by hand, and the folder is then used."""
    config = micro_recipe(tiny__steps=2, tiny__vision_steps=2)
    folder = tmp_path / "stored"
    base_model.ship_tiny_base(config.tiny, config.data.digits, folder)
    digest = json.loads((folder / "digest.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    assert digest["sha256"] == hashlib.sha256(weights).hexdigest()
    monkeypatch.setattr(base_model, "STORED_BASE", folder)
    assert base_model.base_folder(config) == str(folder)
    again = tmp_path / "again"
    base_model.ship_tiny_base(config.tiny, config.data.digits, again)
    assert (again / "model.safetensors").read_bytes() == weights
    other = dataclasses.replace(config.tiny, steps=3)
    assert base_model.tiny_base_folder(other, config.data.digits, cache=tmp_path) != folder


def test_it_is_stored_in_16_bit_and_loads_in_float32():
    stored = load_file(STORED / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert AutoModelForImageTextToText.from_pretrained(STORED).dtype == torch.float32
