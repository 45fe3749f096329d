"""Checkpoints: what is refused, what is never written, optimizer states without pickle."""

from __future__ import annotations

import json
import math
import random
import shutil

import pytest
import torch
from safetensors.torch import save_file

from prism_lite.config import OptimConfig, RunConfig
from prism_lite.models.optim import make_optimizer, optimizer_step
from prism_lite.models.optimizer_state import join_state, split_state
from prism_lite.recipe import to_dict
from prism_lite.runs.checkpoint import Trained, load_final, load_latest, save_checkpoint, save_final
from prism_lite.runs.resume import changed_settings

SETTINGS = {"seed": 0, "align": {"steps": 5}}


def trained(value: float = 1.0) -> Trained:
    return Trained({"policy": {"weight": torch.full((8, 8), value)}}, values={"spread": [value]})


def two_checkpoints(folder):
    for step in (2, 4):
        save_checkpoint(folder, step, trained(float(step)), settings=SETTINGS)
    return folder / "checkpoint-4"


def used(folder, **needed) -> tuple[int | None, list[str]]:
    restored, refused = load_latest(folder, settings=SETTINGS, **needed)
    if restored is not None:
        assert torch.equal(restored.tensors["policy"]["weight"], torch.full((8, 8), restored.step))
        assert restored.values == {"spread": [restored.step]}
    return (restored.step if restored else None), refused


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_an_optimizer_resumes_from_safetensors_to_the_same_bits(tmp_path, name):
    """Two steps, saved and loaded, two more: the same weights as four steps in one go."""

    def start():
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(64, 96, generator=generator)) for _ in "ab"]
        return parameters, make_optimizer(parameters, OptimConfig(1e-2, name=name))

    def take_steps(parameters, optimizer, steps) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer_step(optimizer, parameters, 1e-2, 1.0)

    expected, optimizer = start()
    take_steps(expected, optimizer, range(4))
    first, optimizer = start()
    take_steps(first, optimizer, range(2))
    if name == "adamw8bit":
        assert any(t.dtype == torch.uint8 for t in split_state(optimizer.state_dict())[0].values())
    save_checkpoint(tmp_path, 2, Trained(optimizers={"policy": optimizer}), settings=SETTINGS)
    assert {p.suffix for p in (tmp_path / "checkpoint-2").iterdir()} == {".safetensors", ".json"}
    restored, _ = load_latest(tmp_path, settings=SETTINGS)
    assert restored is not None
    resumed, optimizer = start()
    with torch.no_grad():
        for parameter, value in zip(resumed, first, strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(restored.optimizers["policy"])
    take_steps(resumed, optimizer, (2, 3))
    assert all(torch.equal(a, b) for a, b in zip(resumed, expected, strict=True))


def test_a_state_comes_back_with_its_types():
    shared = torch.arange(3.0)
    state = {"state": {0: {"a": shared, "b": shared}, 7: {"step": torch.tensor(2.0)}},
             "groups": [{"betas": (0.9, 0.99), "fused": None, "on": True, "params": [0, 7]}]}  # fmt: skip
    tensors, layout = split_state(state)
    back = join_state(tensors, layout)
    assert back["groups"] == state["groups"] and [*back["state"]] == [0, 7]
    assert torch.equal(back["state"][0]["b"], shared) and back["state"][7]["step"].shape == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["weight", "moment", "head", "value", "final"])
def test_nothing_that_is_not_finite_is_written(tmp_path, bad, where):
    two_checkpoints(tmp_path)
    weight = torch.ones(4, 4)
    tensors = {"policy": {"weight": weight}, "discriminator": {"heads.bias": torch.zeros(2)}}
    optimizer = make_optimizer([torch.nn.Parameter(weight.clone())], OptimConfig(0.1))
    parameter = optimizer.inner.param_groups[0]["params"][0]
    parameter.grad = torch.ones(4, 4)
    optimizer.inner.step()
    values: dict = {"spread": [1.0]}
    if where in ("weight", "final"):
        weight[1, 2] = bad
    elif where == "moment":
        optimizer.inner.state[parameter]["exp_avg_sq"][0, 0] = bad
    elif where == "head":
        tensors["discriminator"]["heads.bias"][1] = bad
    else:
        values = {"spread": [bad]}
    content = Trained(tensors, {"policy": optimizer}, values)
    with pytest.raises(RuntimeError, match=r"is not written.*not finite.*last checkpoint"):
        if where == "final":
            save_final(tmp_path, tensors)
        else:
            save_checkpoint(tmp_path, 6, content, settings=SETTINGS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["LATEST", "checkpoint-2", "checkpoint-4"]
    assert used(tmp_path) == (4, [])


def poison(folder):
    """As an edition that did not look at the values wrote it: the hashes are right."""
    tensor = torch.ones(8, 8)
    tensor[3, 3] = math.nan
    save_file({"weight": tensor}, folder / "policy.safetensors")
    state = json.loads((folder / "state.json").read_text())
    from prism_lite.runs import checkpoint

    state["files"]["policy.safetensors"] = checkpoint._sha256(folder / "policy.safetensors")
    state.pop("digest")
    state["digest"] = checkpoint._digest(state)
    (folder / "state.json").write_text(json.dumps(state))


def test_a_poisoned_checkpoint_is_refused_and_the_one_before_is_used(tmp_path):
    poison(two_checkpoints(tmp_path))
    step, [refused] = used(tmp_path)
    assert step == 2 and "checkpoint-4 refused: poisoned, weight in policy.safetensors" in refused


def test_a_poisoned_final_is_refused_by_name(tmp_path):
    save_final(tmp_path / "sft", {"policy": {"weight": torch.ones(8, 8)}})
    poison_final = tmp_path / "sft" / "final"
    poison(poison_final)
    with pytest.raises(ValueError, match=r"sft/final: poisoned, weight in policy\.safetensors"):
        load_final(tmp_path / "sft")


def test_only_listed_files_are_opened(tmp_path):
    """What a Mac or a sync client leaves in a folder."""
    folder = two_checkpoints(tmp_path)
    for name in ("._policy.safetensors", "policy (copy).safetensors", "policy.optimizer.pt"):
        (folder / name).write_bytes(b"\0\5\26\7 not tensors")
    (folder / "old.value.json").write_text("[")
    shutil.copytree(folder, tmp_path / "checkpoint-4 (conflict)")
    (tmp_path / "checkpoint-9").write_text("a file")
    assert used(tmp_path) == (4, [])
    save_checkpoint(tmp_path, 6, trained(6.0), settings=SETTINGS)
    assert used(tmp_path) == (6, [])


def test_a_checkpoint_under_another_name_is_refused(tmp_path):
    """A copy of step 4 named step 40 would skip 36 steps."""
    shutil.copytree(two_checkpoints(tmp_path), tmp_path / "checkpoint-40")
    step, [refused] = used(tmp_path)
    assert step == 4 and "checkpoint-40 refused: foreign, it is a copy of checkpoint-4" in refused


def change_step(state: dict) -> None:
    state["step"] = 400


def change_settings(state: dict) -> None:
    state["settings"]["seed"] = 1


def drop_digest(state: dict) -> None:
    del state["digest"]


@pytest.mark.parametrize("change", [change_step, change_settings, drop_digest])
def test_a_state_that_was_changed_is_refused(tmp_path, change):
    folder = two_checkpoints(tmp_path)
    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    step, [refused] = used(tmp_path)
    assert step == 2 and "checkpoint-4 refused" in refused and "state.json" in refused


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"5", b'{"digest": 1}', b"\xff\xfe", b"[" * 100_000]
)
def test_any_content_of_state_json_is_a_refusal_by_name(tmp_path, content):
    (two_checkpoints(tmp_path) / "state.json").write_bytes(content)
    step, [refused] = used(tmp_path)
    assert step == 2 and "checkpoint-4 refused" in refused
    save_final(tmp_path / "sft", {"policy": {"weight": torch.ones(2)}})
    (tmp_path / "sft" / "final" / "state.json").write_bytes(content)
    with pytest.raises(ValueError, match="sft/final"):
        load_final(tmp_path / "sft")


def test_sixty_bit_flips_in_each_file_of_a_checkpoint(tmp_path):
    two_checkpoints(tmp_path / "a")
    rng = random.Random(16)
    for name in ("state.json", "policy.safetensors", "spread.value.json"):
        path = tmp_path / "a" / "checkpoint-4" / name
        content = path.read_bytes()
        for _ in range(60):
            bit = rng.randrange(8 * len(content))
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes(flipped))
            step, [refused] = used(tmp_path / "a")
            assert step == 2 and "checkpoint-4 refused: " in refused, (name, bit)
        path.write_bytes(content)
    assert used(tmp_path / "a") == (4, [])


def test_a_checkpoint_without_a_file_that_the_stage_reads_is_refused(tmp_path):
    two_checkpoints(tmp_path)
    step, refused = used(tmp_path, needed=["policy.safetensors", "replay.value.json"])
    assert step is None and all("it has no replay.value.json" in sentence for sentence in refused)


def test_a_setting_that_an_edition_adds_is_no_change_if_it_has_its_default():
    now = to_dict(RunConfig())
    before = json.loads(json.dumps(now))
    del before["save_minutes"], before["align"]["alpha"]
    assert changed_settings(before, now) == ([], ["align.alpha", "save_minutes"])
    now["align"]["alpha"] = 0.25
    assert changed_settings(before, now) == ([("align.alpha", None, 0.25)], ["save_minutes"])
    before["align"]["alpha"] = 0.75
    assert changed_settings(before, now)[0] == [("align.alpha", 0.75, 0.25)]
    del before["rlvr"]["rewards"]["format"]  # a reward is not a setting of its own: it had none
    assert ("rlvr.rewards.format", None, 0.2) in changed_settings(before, now)[0]
    before["gone"] = 1
    assert ("gone", 1, None) in changed_settings(before, now)[0]
