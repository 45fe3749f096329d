"""The tiny base: its optimizer, and that a training can be repeated."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from prism_lite.config import DigitsConfig
from prism_lite.digits import base_model
from prism_lite.digits.lessons import make_lesson
from prism_lite.digits.muon import Muon, orthogonalise
from tests.make_micro_base import MICRO_BASE
from tests.micro import micro_recipe


def weights(*shapes: tuple[int, int]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_orthogonalise_keeps_the_singular_vectors(shape):
    """Against the SVD: the same vectors, values brought near one."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(3, *shape, generator=generator)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.mT @ orthogonalise(matrix) @ right.mT  # diagonal if the vectors are the same
    diagonal = found.diagonal(dim1=1, dim2=2)
    off = found - torch.diag_embed(diagonal)
    assert off.abs().max() < 1e-3
    clear = values > 0.1 * values.max()
    assert diagonal[clear].min() > 0.6 and diagonal[clear].max() < 1.3


def test_muon_takes_the_steps_of_torch_within_bfloat16():
    """torch iterates in bfloat16 (eight bits): updates of about 1 agree to a few per cent."""
    shapes = ((12, 32), (32, 12), (12, 32), (8, 8))
    ours, theirs = weights(*shapes), weights(*shapes)
    before = [p.detach().clone() for p in ours]
    optimizers = (
        Muon(ours, 0.02, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1),
    )
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, start in zip(ours, theirs, before, strict=True):
        moved = (b - start).norm()
        assert (a - b).norm() < 0.03 * moved


def test_a_matrix_without_gradient_stays():
    (parameter,) = weights((4, 6))
    before = parameter.detach().clone()
    Muon([parameter], 0.1, weight_decay=0.1).step()
    assert torch.equal(parameter, before)


def test_training_the_base_again_gives_the_same_bytes(tmp_path, micro_cache):
    """Whatever the global generator holds: it once initialised a head in the training of the tower."""
    config = micro_recipe(tiny__steps=3, tiny__vision_steps=3)
    found = []
    for number in range(2):
        torch.manual_seed(100 + number)
        folder = tmp_path / str(number)
        base_model.train_tiny_base(config.tiny, config.data.digits, folder)
        found.append((folder / "model.safetensors").read_bytes())
        assert torch.initial_seed() == 100 + number, "the caller's generator is not touched"
    assert found[0] == found[1]
    other = micro_recipe(tiny__steps=3, tiny__vision_steps=3, tiny__seed=1)
    base_model.train_tiny_base(other.tiny, other.data.digits, tmp_path / "other")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("0", "other"))
    assert any(not torch.equal(first[k], second[k]) for k in first)


def mean_lesson_loss(folder: Path, task: DigitsConfig) -> float:
    """Nats a token of the first reply to 64 lessons, text alone: pictures are left out."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng, losses = Random("held-out lessons"), []
    for _ in range(64):
        lesson = make_lesson(task, rng)
        ids = torch.tensor([tokenizer(lesson.replies[0])["input_ids"]])
        if ids.shape[1] == 1:  # a short answer: no token to predict
            continue
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    return sum(losses) / len(losses)


def test_the_stored_micro_base_is_what_its_settings_give(tmp_path):
    """Same tokenizer and model; trained again it is as good, in other last digits."""
    config = micro_recipe()
    base_model.train_tiny_base(config.tiny, config.data.digits, tmp_path)
    for name in ("tokenizer.json", "config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads(
            (MICRO_BASE / name).read_text()
        ), f"{name} changed: raise BASE_VERSION and run `python -m tests.make_micro_base`"
    untrained = micro_recipe(tiny__steps=0)
    base_model.train_tiny_base(untrained.tiny, untrained.data.digits, tmp_path / "untrained")
    again, stored, random = (
        mean_lesson_loss(folder, config.data.digits)
        for folder in (tmp_path, MICRO_BASE, tmp_path / "untrained")
    )
    assert stored < 0.7 * random
    assert again == pytest.approx(stored, rel=0.1)


def test_two_runs_that_need_the_same_base_train_it_once(tmp_path, monkeypatch):
    """The second waits for the first; both get the same folder."""
    trained = []

    def train(_config, _task, folder):
        trained.append(folder)
        started.wait(5)
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(base_model, "train_tiny_base", train)
    config = micro_recipe()
    started = threading.Event()
    folders = []
    threads = [
        threading.Thread(
            target=lambda: folders.append(
                base_model.tiny_base(config.tiny, config.data.digits, cache=tmp_path)
            )
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    started.set()
    for thread in threads:
        thread.join()
    assert len(trained) == 1
    assert folders[0] == folders[1]
    assert {p.name for p in folders[0].iterdir()} == {"model.safetensors", "digest.json"}


def test_the_tower_distinguishes_places(tmp_path):
    """The position embedding must not be dwarfed by the patches: the order of digits depends on it."""
    config = micro_recipe(tiny__steps=1, tiny__vision_steps=30)
    base_model.train_tiny_base(config.tiny, config.data.digits, tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    tower = model.model.visual
    with torch.no_grad():
        patches = tower.patch_embed(base_model.strip_pixels((5, 7), None))
        first, second = (
            base_model._strip_features(model, [strip], None)[0].merged_ND
            for strip in ((5, 7), (7, 5))
        )
    assert tower.pos_embed.weight.std() > 0.2 * patches.std()
    assert (first[0] - second[1]).norm() > 0.1 * first[0].norm()  # picture 5, left and right


def test_the_lessons_do_not_change_the_tower(tmp_path):
    """Their rates would ruin it: trained with them, the base read no caption correctly."""
    towers = []
    for steps in (0, 2):
        config = micro_recipe(tiny__steps=steps, tiny__vision_steps=2)
        folder = tmp_path / str(steps)
        folder.mkdir()
        base_model.train_tiny_base(config.tiny, config.data.digits, folder)
        tensors = load_file(folder / "model.safetensors")
        towers.append({name: t for name, t in tensors.items() if "visual" in name})
    assert towers[0] and all(torch.equal(towers[1][name], t) for name, t in towers[0].items())
