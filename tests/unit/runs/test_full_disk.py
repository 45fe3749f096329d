"""A disk that is full while a checkpoint is written: nothing is left, and the same call works later."""

from __future__ import annotations

import errno
import resource

import pytest
import torch
from safetensors.torch import save_file

from prism_lite import files
from prism_lite.files import write_text
from prism_lite.runs.checkpoint import (
    Trained,
    disk_errors,
    load_latest,
    save_checkpoint,
    save_final,
)

TENSORS = {"policy": {"weight": torch.zeros(100_000)}}


@pytest.fixture
def small_files():
    """No file may be larger than 64 KiB, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def optimizer() -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.zeros(100_000))
    adam = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones_like(parameter)
    adam.step()
    return adam


@pytest.mark.parametrize("what", ["tensors", "optimizers", "final"])
def test_a_checkpoint_that_does_not_fit(tmp_path, small_files, what):
    stage = tmp_path / "stages" / "sft"
    trained = (
        Trained(optimizers={"policy": optimizer()}) if what == "optimizers" else Trained(TENSORS)
    )

    def save() -> None:
        if what == "final":
            save_final(stage, TENSORS)
        else:
            save_checkpoint(stage, 2, trained, settings={})

    with pytest.raises(OSError) as full:
        save()
    assert full.value.errno == errno.EFBIG
    assert not list(stage.iterdir())
    small_files()
    save()
    if what != "final":
        restored, refused = load_latest(stage, settings={})
        assert restored is not None and restored.step == 2 and not refused


def test_an_old_file_survives_a_full_disk(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write_text(file, "old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"results\.json"):
        write_text(file, "new")
    assert file.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_an_export_that_does_not_fit_is_an_error_of_the_system(tmp_path, small_files):
    """A discriminator or a policy is written by safetensors, whose own error has no number."""
    with pytest.raises(OSError, match="policy") as full, disk_errors(tmp_path / "policy"):
        save_file({"weight": torch.zeros(100_000)}, tmp_path / "weight.safetensors")
    assert full.value.errno == errno.EFBIG and full.value.strerror
