"""Intervals and probes against scikit-learn and by hand."""

from __future__ import annotations

import dataclasses
import math
from random import Random

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from prism_lite.discriminator.model import discriminator_for
from prism_lite.discriminator.probes import (
    area_under_roc,
    artefact_auc,
    completion_scores,
    form_features,
    grounding_probe,
    heldout_pairs,
    share_won,
    wilson95,
)
from prism_lite.discriminator.step import JudgedPrompt
from prism_lite.parts import Parts
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


def test_the_share_of_pairs_won_counts_equal_scores_as_half():
    assert share_won(torch.tensor([1.0, 0.0, -1.0, 2.0])) == pytest.approx(0.625)


@pytest.mark.parametrize(("wins", "num"), [(0, 5), (5, 5), (13, 20), (104, 200)])
def test_wilson_interval_equals_scipy(wins, num):
    expected = stats.binomtest(wins, num).proportion_ci(0.95, method="wilson")
    assert wilson95(wins / num, num) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_the_probe_of_an_untrained_discriminator_is_at_chance_when_heads_are_zero(backbone, task):
    discriminator = discriminator_for(backbone, micro_recipe().discriminator, seed=0)
    with torch.no_grad():
        discriminator.perception_head.zero_()
        discriminator.reasoning_head.zero_()
    found = grounding_probe(backbone, discriminator, task.probe)
    variants = ("", "_likelihood", "_without_likelihood")
    assert found == {
        f"disc/grounding_{channel}{variant}": 0.5
        for channel in ("perception", "reasoning")
        for variant in variants
    }


def test_variants_of_the_probe_are_those_of_discriminators_with_a_part_of_the_head(backbone, task):
    """By second and third discriminators whose heads lack the other part."""
    config = micro_recipe().discriminator
    discriminators = [discriminator_for(backbone, config, seed=0) for _ in range(3)]
    for discriminator, cut in zip(discriminators, (None, slice(-2, None), slice(-2)), strict=True):
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for head in (discriminator.perception_head, discriminator.reasoning_head):
                head.copy_(torch.randn(head.shape, generator=generator))
                if cut is not None:
                    head[cut] = 0
    trained, without, alone = (grounding_probe(backbone, d, task.probe) for d in discriminators)
    for channel in ("perception", "reasoning"):
        name = f"disc/grounding_{channel}"
        assert trained[f"{name}_without_likelihood"] == without[name]
        assert trained[f"{name}_likelihood"] == alone[name]
    config = dataclasses.replace(config, likelihood_features=False)
    plain = grounding_probe(backbone, discriminator_for(backbone, config, seed=0), task.probe)
    assert plain.keys() == {"disc/grounding_perception", "disc/grounding_reasoning"}


def test_held_out_pairs_leave_out_ties_and_weigh_prompts_alike(backbone, task, monkeypatch):
    """Scores by script: two prompts, one student with the teacher's caption."""
    discriminator = discriminator_for(backbone, micro_recipe().discriminator, seed=0)
    prompts = [backbone.prompt(sample) for sample in task.align[:2]]
    teacher, right = Parts("3,7", "so no", "no"), Parts("3,7", "so yes", "yes")
    wrong = Parts("3,1", "so yes", "yes")
    judged = [
        JudgedPrompt(prompts[0], teacher, (right, wrong, wrong)),
        JudgedPrompt(prompts[1], teacher, (wrong,)),
    ]
    score_K2 = torch.tensor([[1.0, 0.0], [9, -1], [0, 1], [2, 2], [0, 0], [-1, 0]])
    monkeypatch.setattr(
        "prism_lite.discriminator.probes.completion_scores", lambda *_: (score_K2, None)
    )
    result = heldout_pairs(backbone, discriminator, judged)
    assert result.num_prompts == (2, 2)
    assert result.accuracy == (pytest.approx((1 / 2 + 1) / 2), pytest.approx((1 / 3 + 1 / 2) / 2))
    perception = [math.log1p(math.exp(-margin)) for margin in (1, -1, 1)]
    reasoning = [math.log1p(math.exp(-margin)) for margin in (1, -1, -2, 0)]
    losses = sum(perception) / 3, sum(reasoning) / 4
    assert result.loss == (pytest.approx(losses[0]), pytest.approx(losses[1]))
    assert result.mean_loss() == pytest.approx(sum(losses) / 2)
    score_K2 = score_K2[:2]
    result = heldout_pairs(backbone, discriminator, [JudgedPrompt(prompts[0], teacher, (teacher,))])
    assert result.metrics() == {} and result.mean_loss() is None


def test_completion_scores_are_those_of_the_discriminator(backbone, task):
    discriminator = discriminator_for(backbone, micro_recipe().discriminator, seed=0)
    with torch.no_grad():
        discriminator.perception_head.fill_(0.1)
        discriminator.reasoning_head.fill_(-0.1)
    judged = [(backbone.prompt(p.sample), (p.clean, p.corrupted)) for p in task.probe]
    score_K2, terms_K22 = completion_scores(backbone, discriminator, judged)
    assert score_K2.shape == (2 * len(judged), 2)
    torch.testing.assert_close(10 * (terms_K22.sum(2) / 10).tanh(), score_K2)
    with torch.no_grad(), backbone.role("discriminator"):
        for q, item in enumerate(judged):
            alone = discriminator.score(backbone, [item])
            torch.testing.assert_close(
                score_K2[2 * q : 2 * q + 2].T,
                torch.stack([alone.perception_K, alone.reasoning_K]),
                rtol=0,
                atol=1e-4,
            )


def test_evaluation_counts_what_was_sampled(backbone, task):
    """The figures again, from the rollouts themselves."""
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
    for sees_caption in (True, False):
        config = micro_recipe(discriminator__reasoning_sees_caption=sees_caption).discriminator
        discriminator = discriminator_for(backbone, config, seed=0)
        judged = []

        def scripted(_backbone, _discriminator, items, judged=judged):
            """Perception knows the clean caption, reasoning a slip after the clean caption."""
            judged += items
            scores = [
                [
                    float(p.caption == ps[0].caption),
                    float((p == ps[0]) or (p.caption != ps[0].caption)),
                ]
                for _, ps in items
                for p in ps
            ]
            return torch.tensor(scores), torch.zeros(len(scores), 2, 2)

        monkeypatch.setattr("prism_lite.discriminator.probes.completion_scores", scripted)
        found = grounding_probe(backbone, discriminator, task.probe)
        assert found["disc/grounding_perception"] == 1.0
        assert found["disc/grounding_reasoning"] == (1.0 if sees_caption else 0.5)
        for _, (clean, corrupted, *slipped) in judged:
            assert clean.caption != corrupted.caption and clean.think != corrupted.think
            assert [s.caption for s in slipped] == [clean.caption] * sees_caption
            assert [s.think for s in slipped] == [corrupted.think] * sees_caption
