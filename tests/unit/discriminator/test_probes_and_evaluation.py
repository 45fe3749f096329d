"""Intervals and probes against scikit-learn and by hand."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from prism_lite.discriminator.model import discriminator_for
from prism_lite.discriminator.probes import (
    area_under_roc,
    artefact_auc,
    first_wins,
    form_features,
    grounding_probe,
    pair_scores,
)
from prism_lite.stages.evaluate import evaluate, interval95
from tests.micro import micro_recipe


def test_interval95_by_hand():
    """Mean 0.5, sample variance 1/3, standard error sqrt(1/12)."""
    low, high = interval95([0.0, 1.0, 0.0, 1.0])
    half = 1.96 * math.sqrt((1 / 3) / 4)
    assert (low, high) == (pytest.approx(max(0, 0.5 - half)), pytest.approx(min(1, 0.5 + half)))


def test_interval95_holds_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        values = rng.binomial(4, 0.6, size=200) / 4  # four samples for each of 200 prompts
        low, high = interval95(values.tolist())
        covered += low <= 0.6 <= high
    assert 0.93 <= covered / 1000 <= 0.97


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_interval95_of_all_or_nothing_is_not_a_point(value):
    """Eight of eight does not prove a rate of exactly 1."""
    low, high = interval95([value] * 8)
    assert high - low > 0.05
    assert low <= value <= high


def test_interval95_of_one_value_says_nothing():
    assert interval95([1.0]) == [0.0, 1.0]


@pytest.mark.parametrize("seed", range(5))
def test_area_under_roc_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    score = np.round(rng.normal(size=60), 1)  # ties
    is_positive = rng.random(60) < 0.4
    found = area_under_roc(torch.tensor(score), torch.tensor(is_positive))
    assert found == pytest.approx(roc_auc_score(is_positive, score), abs=1e-12)


def texts(kind: str, num: int, seed: int) -> list[str]:
    rng = Random(seed)
    words = ["the", "row", "shows", "a", "three", "and", "seven"]
    result = []
    for _ in range(num):
        length = rng.randint(5, 12) + (3 if kind == "long" else 0)
        end = "." if kind == "dotted" and rng.random() < 0.7 else ""
        result.append(" ".join(rng.choice(words) for _ in range(length)) + end)
    return result


def sklearn_auc(teacher: list[str], student: list[str]) -> float:
    features = StandardScaler().fit_transform(
        np.array([form_features(text) for text in (*teacher, *student)])
    )
    labels = np.array([1] * len(teacher) + [0] * len(student))
    fitted = np.tile(np.arange(len(teacher)) % 2 == 0, 2)
    model = LogisticRegression(C=0.5).fit(features[fitted], labels[fitted])
    return roc_auc_score(labels[~fitted], model.decision_function(features[~fitted]))


@pytest.mark.parametrize("kind", ["same", "long", "dotted"])
def test_artefact_auc_agrees_with_scikit_learn(kind):
    """Another strength of the same penalty: the fits differ a little, the ranking hardly."""
    teacher, student = texts(kind, 120, 1), texts("same", 120, 2)
    found = artefact_auc(teacher, student)
    assert found == pytest.approx(sklearn_auc(teacher, student), abs=0.03)
    assert (found > 0.7) == (kind != "same")


def test_artefact_auc_of_texts_that_differ_in_content_only_is_one_half():
    teacher = [f"digits: {i % 10},{(3 * i) % 10}" for i in range(80)]
    student = [f"digits: {(7 * i) % 10},{i % 10}" for i in range(80)]
    assert artefact_auc(teacher, student) == pytest.approx(0.5, abs=1e-6)


def test_first_wins_counts_ties_as_half():
    score_Q22 = torch.tensor(
        [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [1.0, 3.0]], [[5.0, 1.0], [4.0, -1.0]]]
    )
    assert first_wins(score_Q22) == (pytest.approx(2 / 3), pytest.approx(0.5))


def test_the_probe_of_an_untrained_discriminator_is_at_chance_when_heads_are_zero(backbone, task):
    discriminator = discriminator_for(backbone, micro_recipe().discriminator, seed=0)
    with torch.no_grad():
        discriminator.perception_head.zero_()
        discriminator.reasoning_head.zero_()
    found = grounding_probe(backbone, discriminator, task.probe)
    assert found == {"disc/grounding_perception": 0.5, "disc/grounding_reasoning": 0.5}


def test_pair_scores_are_those_of_the_discriminator(backbone, task):
    discriminator = discriminator_for(backbone, micro_recipe().discriminator, seed=0)
    with torch.no_grad():
        discriminator.perception_head.fill_(0.1)
        discriminator.reasoning_head.fill_(-0.1)
    pairs = [(backbone.prompt(p.sample), p.clean, p.corrupted) for p in task.probe]
    score_Q22 = pair_scores(backbone, discriminator, pairs)
    assert score_Q22.shape == (len(pairs), 2, 2)
    with torch.no_grad(), backbone.role("discriminator"):
        for q, (prompt, first, second) in enumerate(pairs):
            alone = discriminator.score(backbone, [(prompt, (first, second))])
            torch.testing.assert_close(
                score_Q22[q].T,
                torch.stack([alone.perception_K, alone.reasoning_K]),
                rtol=0,
                atol=1e-4,
            )


def test_evaluation_counts_what_was_sampled(backbone, task):
    """The figures again, from the rollouts themselves."""
    import dataclasses

    from prism_lite.sampling.rollouts import sample_groups

    config = micro_recipe(sampling__temperature=0.3)
    figures = evaluate(backbone, task, config).figures
    groups = sample_groups(
        backbone,
        task.heldout,
        group_size=config.eval.num_samples,
        sampling=dataclasses.replace(config.sampling, temperature=1.0),
        seed=(config.seed, "evaluate"),
    )
    rollouts = [(g.sample, r) for g in groups for r in g.rollouts]
    num = len(rollouts)
    assert num == len(task.heldout) * config.eval.num_samples
    assert figures["mean_tokens"] == sum(len(r.token_ids) for _, r in rollouts) / num
    assert figures["format_rate"] == pytest.approx(sum(r.is_well_formed for _, r in rollouts) / num)
    right = sum(r.is_well_formed and task.verify(sample, r.parts).caption for sample, r in rollouts)
    assert figures["caption_accuracy"] == pytest.approx(right / num)
    correct = sum(
        r.is_well_formed and r.parts.answer.strip().lower() == sample.answer
        for sample, r in rollouts
    )
    assert figures["accuracy"] == pytest.approx(correct / num)


def test_without_held_out_pairs_nothing_is_measured(backbone, task):
    discriminator = discriminator_for(backbone, micro_recipe().discriminator, seed=0)
    assert grounding_probe(backbone, discriminator, ()) == {}


def test_the_probe_of_a_reasoning_that_sees_the_caption_differs_in_the_reasoning_only(
    backbone, task, monkeypatch
):
    """Else the misread caption would give the corrupted reasoning away."""
    config = micro_recipe(discriminator__reasoning_sees_caption=True).discriminator
    discriminator = discriminator_for(backbone, config, seed=0)
    seen = []

    def look(_backbone, _discriminator, pairs):
        seen.append(pairs)
        return torch.zeros(len(pairs), 2, 2)

    monkeypatch.setattr("prism_lite.discriminator.probes.pair_scores", look)
    grounding_probe(backbone, discriminator, task.probe)
    perception, reasoning = seen
    assert all(a.caption != b.caption for _, a, b in perception)
    assert all(a.caption == b.caption and a.think != b.think for _, a, b in reasoning)
