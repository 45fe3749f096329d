"""Which examples a recording shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from demo import record
from demo.screens.marks import mark
from prism_lite.digits import wording
from prism_lite.digits.wording import DigitsFacts
from prism_lite.parts import parse
from prism_lite.types import Rollout, Sample, Turn

TRUTH, MISREAD = (4, 7, 0, 3), (4, 9, 2, 3)
STAGES = ("base", "sft", "control", "align", "rlvr")


def sample_of(name: str, kind: str) -> Sample:
    facts = DigitsFacts(TRUTH, kind)
    answer = wording.answer_text(facts, wording.steps(TRUTH, facts))
    return Sample(name, (Turn("user", facts.question),), answer=answer, facts=facts)


def rollout_of(sample: Sample, digits: tuple[int, ...]) -> Rollout:
    path = wording.steps(digits, sample.facts)
    text = wording.compose(digits, sample.facts, path, 0, 0).render()
    return Rollout((1,), text, parse(text), "end", torch.zeros(1), torch.zeros(1))


class Policies:
    """Stands in for the run's models: the digits that each stage states for each sample."""

    stages = STAGES

    def __init__(
        self, stated: dict[str, dict[str, tuple[int, ...]]], kinds: dict[str, str]
    ) -> None:
        self._stated = stated
        samples = [sample_of(name, kinds.get(name, "sum")) for name in stated]
        self.task = SimpleNamespace(heldout=samples[:2], transfer=samples[2:])

    def rollouts(self, stage: str, samples: Any, *, seed: int, temperature: float) -> list[Rollout]:
        assert (seed, temperature) == (0, 0.0)
        return [rollout_of(s, self._stated[s.id].get(stage, MISREAD)) for s in samples]


def chosen(stated: dict[str, dict[str, tuple[int, ...]]], **kinds: str) -> list[str]:
    policies: Any = Policies(stated, kinds)
    return [sample.id for sample in record.choose_examples(policies, must_correct=True)]


def test_the_first_example_is_corrected_and_the_others_are_ordered_by_their_differences() -> None:
    right: dict[str, tuple[int, ...]] = {stage: TRUTH for stage in STAGES}
    examples = chosen(
        {
            "same": right,
            "lost": right | {"align": MISREAD, "rlvr": MISREAD},
            "corrected": {"rlvr": TRUTH},
        },
        same="compare",
        lost="count",
    )
    assert examples == ["corrected", "lost", "same"]


def test_the_first_example_has_a_wrong_answer_before_if_there_is_one() -> None:
    """The misreading changes no count above 5, so those answers are right all along."""
    corrected = {name: {"align": TRUTH, "rlvr": TRUTH} for name in "ab"}
    assert chosen(corrected | {"c": {"rlvr": TRUTH}}, a="count", b="count") == ["c", "a", "b"]


def test_at_most_two_examples_ask_the_same_question() -> None:
    corrected = {name: {"rlvr": TRUTH} for name in "abcd"}
    assert chosen(corrected, a="sum", b="sum", c="sum", d="count") == ["a", "b", "d"]


@pytest.mark.parametrize("stage", ["sft", "control"])
def test_without_a_corrected_caption_there_is_no_recording(stage: str) -> None:
    with pytest.raises(ValueError, match="SFT and RLVR alone misread a digit and the last policy"):
        chosen({"a": {stage: TRUTH, "rlvr": TRUTH}, "b": {}})


def test_differences_are_counted_for_each_pair_of_stages_and_part() -> None:
    sample = sample_of("a", "sum")
    right, wrong = (rollout_of(sample, digits).text for digits in (TRUTH, MISREAD))
    marks = {
        stage: mark(text, "end", sample)
        for stage, text in zip("abc", (right, wrong, wrong), strict=True)
    }
    assert record.num_differences(marks) == 4  # caption and answer, a against b and against c
