"""Distances of texts by hand, and the permutation test: exact under no difference, small under one."""

from __future__ import annotations

import itertools
import math
from random import Random

import numpy as np
import pytest
from scipy.stats import kstest

from prism_lite.runs.drift_report import HOW_TO_READ
from prism_lite.stages import two_sample
from prism_lite.stages.two_sample import energy_test, ngram_distance, ngrams, text_features


def test_ngrams_keep_punctuation_and_do_not_cross_texts():
    assert ngrams("3 + 4 = 7.", 1) == ["3", "+", "4", "=", "7", "."]
    assert ngrams("a b c", 2) == ["a b", "b c"]
    assert ngrams("a", 2) == []


def test_jensen_shannon_distance_by_hand():
    # shares (2/3, 1/3, 0) and (0, 1/2, 1/2), their mean (1/3, 5/12, 1/4)
    def kl(p, m):
        return sum(a * math.log2(a / b) for a, b in zip(p, m, strict=True) if a)

    first, second, mean = (2 / 3, 1 / 3, 0), (0, 1 / 2, 1 / 2), (1 / 3, 5 / 12, 1 / 4)
    expected = math.sqrt((kl(first, mean) + kl(second, mean)) / 2)
    assert ngram_distance(["a b", "a"], ["b c"], 1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "size", "expected"),
    [
        (["a b", "c"], ["c b", "a"], 1, 0.0),  # order and text ends do not count for words
        (["a a"], ["b"], 1, 1.0),
        (["a b", "a b"], ["a b"], 2, 0.0),  # shares, not counts
        (["a"], ["a b"], 2, 1.0),
        (["a"], ["b"], 2, 0.0),  # neither has a bigram
    ],
)
def test_ends_of_the_distance(first, second, size, expected):
    assert ngram_distance(first, second, size) == pytest.approx(expected, abs=1e-7)


def test_features_are_square_roots_of_shares():
    features = text_features("x y x")
    # words x (2), y (1) and bigrams "x y", "y x": five n-grams
    expected = sorted([math.sqrt(2 / 5), *[math.sqrt(1 / 5)] * 3])
    assert sorted(features[features > 0]) == pytest.approx(expected)
    assert not text_features("").any()


def energy_by_definition(teacher, others):
    def mean_distance(left, right):
        return np.mean([np.linalg.norm(a - b) for a, b in itertools.product(left, right)])

    between = mean_distance(teacher, others)
    return 2 * between - mean_distance(teacher, teacher) - mean_distance(others, others)


def test_the_distance_and_its_chance_by_definition(monkeypatch):
    """All choices of a teacher in two prompts of three completions, without hashing collisions."""
    texts = [["a b", "a c", "d"], ["b b a", "e", "c a"]]
    features = [[text_features(text) for text in of_prompt] for of_prompt in texts]
    values = {}
    for choice in itertools.product(range(3), repeat=2):
        teacher = [features[p][c] for p, c in enumerate(choice)]
        others = [features[p][i] for p in range(2) for i in range(3) if i != choice[p]]
        values[choice] = energy_by_definition(teacher, others)
    test = energy_test(texts, np.random.default_rng(0))
    assert test.distance == pytest.approx(values[0, 0], abs=1e-9)
    exact_p = np.mean([value >= values[0, 0] - 1e-9 for value in values.values()])
    assert test.p_value == pytest.approx(exact_p, abs=0.05)  # 999 draws: error about 0.016
    assert test.chance == pytest.approx(np.mean(list(values.values())), abs=0.02)


def draw(rng: Random, word_weights, num_words: int = 12) -> str:
    return " ".join(rng.choices("abcdefgh", word_weights, k=num_words))


def p_value(seed: int, *, shift: float, num_prompts: int = 24, num_students: int = 3) -> float:
    """The p-value of prompts with words of their own, and a teacher who says "a" more often."""
    rng = Random(seed)
    texts = []
    for _ in range(num_prompts):
        weights = [rng.random() ** 3 for _ in range(8)]  # prompts differ much more than the shift
        teacher = draw(rng, [weights[0] + shift, *weights[1:]])
        texts.append([teacher, *(draw(rng, weights) for _ in range(num_students))])
    return energy_test(texts, np.random.default_rng(seed)).p_value


def test_p_values_are_uniform_without_a_difference(monkeypatch):
    monkeypatch.setattr(two_sample, "NUM_PERMUTATIONS", 199)
    values = [p_value(seed, shift=0.0) for seed in range(200)]
    assert kstest(values, "uniform").pvalue > 0.01
    assert sum(value <= 0.05 for value in values) <= 20  # 10 expected; 20 has probability 0.003


def test_a_difference_gives_the_smallest_p_value():
    assert [p_value(seed, shift=0.6) for seed in range(5)] == [two_sample.SMALLEST_P] * 5


def test_completions_that_repeat_within_a_prompt_do_not_fake_a_difference(monkeypatch):
    """A policy without entropy says one text per prompt, here the teacher's: p is 1."""
    texts = [[f"caption {i} is {i * i}"] * 4 for i in range(12)]
    assert energy_test(texts, np.random.default_rng(0)).p_value == 1.0


def test_the_model_card_states_the_smallest_p_value():
    assert f"({two_sample.SMALLEST_P:g} is the smallest it can give)" in HOW_TO_READ
