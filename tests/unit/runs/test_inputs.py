"""Inputs that change between two sessions of a run are refused by name, or accepted and recorded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from prism_lite.config import RunConfig
from prism_lite.data.task import load_task
from prism_lite.digits import base_model
from prism_lite.runs.inputs import (
    Inputs,
    accepted_changes,
    base_inputs,
    check_inputs,
    data_inputs,
    write_inputs,
)
from tests.micro import micro_recipe, quiet_console

TEXT = "<caption>a</caption><think>b</think><answer>3</answer>"


@pytest.fixture
def files(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 0, 0)).save(folder / f"{number}.png")
    for part in ("a", "b"):
        rows = [
            {"query": f"How high {part}{i}?", "response": TEXT, "images": [f"{i}.png"]}
            for i in range(3)
        ]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_of(files: Path, **more) -> RunConfig:
    return micro_recipe(data__task="files", data__train=str(files), **more)


def inputs_of(config: RunConfig, *, strict: bool = False) -> Inputs:
    return data_inputs(config, load_task(config), strict=strict)


def start(run: Path, config: RunConfig, *, strict: bool = False) -> None:
    run.mkdir()
    write_inputs(run, inputs_of(config, strict=strict), [], quiet_console())


def change_row(files: Path) -> str:
    path = files / "b.jsonl"
    path.write_text(path.read_text().replace("How high b0", "How deep b0"))
    return r"data\.train = .*b\.jsonl has changed since the run in .* started"


def add_file(files: Path) -> str:
    text = (files / "b.jsonl").read_text()
    (files / "c.jsonl").write_text(text.replace("How high b", "How high c"))
    return r"data\.train = .*c\.jsonl is new since"


def remove_file(files: Path) -> str:
    (files / "b.jsonl").unlink()
    return r"data\.train = .*b\.jsonl is gone since"


def change_picture(files: Path) -> str:
    Image.new("RGB", (64, 64), (9, 9, 9)).save(files / "1.png")
    return r"pictures: .*1\.png has changed"


@pytest.mark.parametrize("change", [change_row, add_file, remove_file, change_picture])
def test_a_change_is_refused_by_name_and_may_be_accepted(files, tmp_path, change):
    config, run = config_of(files), tmp_path / "run"
    start(run, config)
    assert check_inputs(run, inputs_of(config), config, accept=False) == []
    words = change(files)
    now = inputs_of(config)
    with pytest.raises(ValueError, match=words + r".*--accept-changed-inputs"):
        check_inputs(run, now, config, accept=False)
    changes = check_inputs(run, now, config, accept=True)
    write_inputs(run, now, changes, quiet_console())
    assert accepted_changes(run) == changes and len(changes) == 1
    if change is not remove_file:
        assert check_inputs(run, inputs_of(config), config, accept=False) == []


def test_pictures_are_compared_by_time_and_on_strict_by_content(files, tmp_path):
    config = config_of(files)
    start(tmp_path / "quick", config)
    start(tmp_path / "strict", config, strict=True)
    picture = files / "2.png"
    before = picture.stat()
    os.utime(picture, ns=(0, 5))  # the same content, copied
    with pytest.raises(ValueError, match=r"2\.png has changed"):
        check_inputs(tmp_path / "quick", inputs_of(config), config, accept=False)
    strict = inputs_of(config, strict=True)
    assert check_inputs(tmp_path / "strict", strict, config, accept=False) == []
    content = bytearray(picture.read_bytes())
    content[-9] ^= 1  # of a checksum: the size is the same
    picture.write_bytes(content)
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert check_inputs(tmp_path / "quick", now_without_decoding(files), config, accept=False) == []
    with pytest.raises(ValueError, match=r"2\.png has changed"):
        now = now_without_decoding(files, strict=True)
        check_inputs(tmp_path / "strict", now, config, accept=False)


def now_without_decoding(files: Path, *, strict: bool = False) -> Inputs:
    from prism_lite.runs.inputs import file_fingerprint

    return {"pictures": {str(p): file_fingerprint(p, strict) for p in sorted(files.glob("*.png"))}}


def test_a_base_that_changes_is_refused_by_name(tmp_path, micro_cache):
    config = micro_recipe()
    base = tmp_path / "base"
    shutil.copytree(base_model.base_folder(config), base)
    named = micro_recipe(model__name=str(base))
    (tmp_path / "run").mkdir()
    inputs = base_inputs(named, str(base), None, strict=False)
    write_inputs(tmp_path / "run", inputs, [], quiet_console())
    os.utime(base / "model.safetensors", ns=(0, 5))
    now = base_inputs(named, str(base), None, strict=False)
    with pytest.raises(ValueError, match=r"model\.name = .*model\.safetensors has changed"):
        check_inputs(tmp_path / "run", now, named, accept=False)

    hub = micro_recipe(model__name="Qwen/Qwen3-VL-2B-Instruct")
    (tmp_path / "hub").mkdir()
    first = base_inputs(hub, hub.model.name, "a" * 40, strict=False)
    write_inputs(tmp_path / "hub", first, [], quiet_console())
    assert check_inputs(tmp_path / "hub", first, hub, accept=False) == []
    second = base_inputs(hub, hub.model.name, "b" * 40, strict=False)
    with pytest.raises(ValueError, match=r"model\.name = Qwen.* at commit has changed"):
        check_inputs(tmp_path / "hub", second, hub, accept=False)


def test_an_adapter_to_start_from_is_an_input(tmp_path, backbone, micro_cache):
    backbone.save_policy(str(tmp_path / "adapter"))
    config = micro_recipe(sft__start_from=str(tmp_path / "adapter"))
    start(tmp_path / "run", config)
    content = bytearray((tmp_path / "adapter" / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"sft\.start_from = .*adapter_model\.safetensors has ch"):
        check_inputs(tmp_path / "run", inputs_of(config), config, accept=False)


def test_damaged_fingerprints_are_said_and_written_again(files, tmp_path):
    config, run, console = config_of(files), tmp_path / "run", quiet_console()
    start(run, config)
    (run / "inputs.json").write_text('{"files": {')
    now = inputs_of(config)
    assert check_inputs(run, now, config, accept=False) == []
    write_inputs(run, now, [], console)
    assert "inputs.json is damaged" in console.file.getvalue()
    change_row(files)
    with pytest.raises(ValueError, match="has changed"):
        check_inputs(run, inputs_of(config), config, accept=False)


def test_a_damaged_tiny_base_is_trained_again(tmp_path, monkeypatch):
    config = micro_recipe(tiny__steps=1, tiny__vision_steps=0)
    trained = []
    train = base_model.train_tiny_base

    def counted(tiny, task, folder):
        trained.append(folder)
        train(tiny, task, folder)

    monkeypatch.setattr(base_model, "train_tiny_base", counted)
    folder = base_model.tiny_base(config.tiny, config.data.digits, cache=tmp_path)
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    base_model.tiny_base(config.tiny, config.data.digits, cache=tmp_path)
    assert len(trained) == 1
    for damage in (before[:-7], bytes([before[0] ^ 1]) + before[1:], before[:-1] + b"\1"):
        weights.write_bytes(damage)
        base_model.tiny_base(config.tiny, config.data.digits, cache=tmp_path)
        assert weights.read_bytes() == before
    assert len(trained) == 4
    (folder / "digest.json").unlink()  # as an earlier edition left it
    base_model.tiny_base(config.tiny, config.data.digits, cache=tmp_path)
    assert len(trained) == 4 and not list(tmp_path.glob(".*.tmp"))


def test_a_revision_of_a_folder_is_refused(make_backbone):
    with pytest.raises(ValueError, match=r"model\.revision = 'main': .* is a folder"):
        make_backbone(model__revision="main")
