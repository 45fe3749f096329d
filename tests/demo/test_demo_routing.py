"""The routing that the demo shows is the discriminator's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo.models.model import Model
from demo.runs import samples
from prism_lite.parts import Parts, parse


@pytest.fixture(scope="module")
def model(live_home: Path) -> Model:
    return Model(live_home)


def test_load_and_entropy_of_the_record_are_those_that_the_discriminator_reports(
    model: Model,
) -> None:
    backbone, discriminator = model.backbone, model._loaded_discriminator()
    sample = model.task.align[0]
    record = model.group(sample, "sft", group_size=4, seed=3)
    rows = [row for row in record["rows"] if "routing" in row]
    completions = [parse(row["completion"]) for row in rows]
    assert all(isinstance(parts, Parts) for parts in completions)
    with torch.no_grad(), backbone.role("discriminator"):
        scores = discriminator.score(backbone, [(backbone.prompt(sample), completions)])
    weights_LTE = torch.cat(
        [
            torch.tensor(row["routing"][part]["weights"])
            for row in rows
            for part in ("perception", "reasoning")
        ],
        dim=1,
    )
    assert weights_LTE.sum(-1) == pytest.approx(1, abs=5e-3)
    assigned_LTE = (weights_LTE > 0).float()
    load_E = (assigned_LTE.sum(1) / assigned_LTE.sum((1, 2))[:, None]).mean(0)
    # a weight below the rounding of the record may count as unassigned
    torch.testing.assert_close(load_E, scores.load_E.cpu(), atol=0.02, rtol=0)
    entropy = torch.special.entr(weights_LTE).sum(-1).mean()
    assert float(entropy) == pytest.approx(float(scores.router_entropy), abs=5e-3)


def test_grouped_experts_stay_in_their_half(model: Model) -> None:
    record = model.group(model.task.align[0], "sft", group_size=3, seed=0)
    for row in record["rows"]:
        for part, is_own in (("perception", slice(None, 2)), ("reasoning", slice(2, None))):
            for weights_TE in row.get("routing", {}).get(part, {}).get("weights", []):
                own = torch.tensor(weights_TE)[:, is_own].sum(-1)
                assert own == pytest.approx(1, abs=5e-3)


def test_tokens_of_a_part_spell_its_text(model: Model) -> None:
    sample = model.task.align[0]
    teacher = sample.teacher_parts
    row = model.group(sample, "sft", group_size=2, seed=0)["rows"][0]
    end = model.backbone.tokenizer.decode([model.backbone.end_id])
    # a reasoning is read with its caption before it
    for part, text in (("perception", teacher.perception), ("reasoning", teacher.render())):
        tokens = row["routing"][part]["tokens"]
        assert "".join("".join(tokens[:-1]).split()) == "".join(text.split())
        assert tokens[-1] == end


def test_a_group_is_the_same_twice_and_has_its_teacher(model: Model, live_home: Path) -> None:
    sample = samples.task_of(live_home).align[1]
    first, again = (model.group(sample, "rlvr", group_size=4, seed=7) for _ in range(2))
    assert first == again
    assert [row["who"] for row in first["rows"]].count("teacher") == 1
    assert len(first["rows"]) == 5
    assert first["rows"][0]["completion"] == parse(sample.teacher or "").render()  # type: ignore


@pytest.mark.parametrize("size", [0, 1, 17, 1000])
def test_group_sizes_are_limited(model: Model, size: int) -> None:
    with pytest.raises(ValueError, match="group size"):
        model.group(model.task.align[0], "sft", group_size=size, seed=0)


def test_closing_an_answer_stops_the_sampling_and_leaves_the_model_usable(model: Model) -> None:
    import threading

    sample = model.task.heldout[0]

    def sampling() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "sampling"]

    *_, complete = model.answer("sft", sample, seed=0, temperature=0.0)
    abandoned = model.answer("sft", sample, seed=0, temperature=0.0)
    part = next(abandoned)
    assert (
        sampling() and complete.text.startswith(part.text) and part.num_tokens < complete.num_tokens
    )
    abandoned.close()
    assert not sampling()
    *_, again = model.answer("sft", sample, seed=0, temperature=0.0)
    assert again.text == complete.text and again.finish_reason == complete.finish_reason


def test_errors_of_the_sampling_reach_the_caller(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("the prompt is too long")

    monkeypatch.setattr("demo.models.model.sample_groups", refuse)
    with pytest.raises(ValueError, match="too long"):
        list(model.answer("base", model.task.heldout[0], seed=0, temperature=0.0))


def test_an_open_page_does_not_take_the_model_from_another_run(live_home: Path) -> None:
    from demo.models.loader import Models

    models = Models()
    models.prepare(live_home)
    assert models.wait(live_home) is not None
    other = live_home.parent / "other"
    (other / "stages" / "sft" / "final").mkdir(parents=True)
    (other / "config.yaml").write_text((live_home / "config.yaml").read_text())
    models.prepare(other, replaces=False)
    assert models.get(live_home) is not None and models.status(live_home)[0] == "tiny"
    models.free_gpu()  # does nothing on a CPU
    assert models.get(live_home) is not None
    models.prepare(other)  # its weights are missing
    assert models.wait(other) is None and models.get(live_home) is None
    state, explanation = models.status(other)
    assert state == "waiting" and explanation
