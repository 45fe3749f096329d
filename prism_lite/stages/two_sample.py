"""Do two sets of texts differ? Distances of word n-grams, and a permutation test. METHOD section 6.

Shape letters: P prompts, C completions per prompt (the first is the teacher's), F features,
N = P * C texts, B permutations.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import jensenshannon

NUM_PERMUTATIONS = 999
SMALLEST_P = 1 / (NUM_PERMUTATIONS + 1)
_NUM_FEATURES = 1024
_WORD = re.compile(r"\w+|[^\w\s]")


def ngrams(text: str, size: int) -> list[str]:
    """Return the n-grams of words of a text; a punctuation mark is a word."""
    words = _WORD.findall(text)
    return [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]


def ngram_distance(first: Iterable[str], second: Iterable[str], size: int) -> float:
    """Compute the Jensen-Shannon distance of the n-gram counts of two sets of texts.

    The square root of the divergence in bits: 0 for equal shares, 1 for disjoint n-grams. It is above 0
    for two samples of the same source too, the more so the fewer texts there are.
    """
    counts = [Counter(g for text in texts for g in ngrams(text, size)) for texts in (first, second)]
    names = sorted(counts[0] | counts[1])
    if not all(counts):  # no n-gram on one side: nothing in common, unless both are empty
        return float(any(counts))
    shares = [[count[name] for name in names] for count in counts]  # scipy normalises
    return float(np.nan_to_num(jensenshannon(*shares, base=2)))  # rounding: NaN where it is 0


def text_features(text: str) -> np.ndarray:
    """Return square roots of the shares of a text's 1- and 2-grams, float64 [F], hashed, of norm 1.

    The distance of two such vectors is Hellinger's (times the square root of 2), except where n-grams
    share a hash. A text without words is 0.
    """
    count_F = np.zeros(_NUM_FEATURES)
    for size in (1, 2):
        for ngram in ngrams(text, size):
            count_F[zlib.crc32(ngram.encode()) % _NUM_FEATURES] += 1
    return np.sqrt(count_F / max(1.0, count_F.sum()))


@dataclass(frozen=True)
class TwoSampleTest:
    """The result of `energy_test`.

    Attributes:
        distance: the energy distance of the teacher's texts to the others.
        chance: the mean of the distance under the permutations, as for samples of one distribution.
        p_value: at least SMALLEST_P.
    """

    distance: float
    chance: float
    p_value: float


def energy_test(texts: Sequence[Sequence[str]], rng: np.random.Generator) -> TwoSampleTest:
    """Test whether the teacher's texts differ from the policy's, given the prompts.

    The statistic is the energy distance 2 E|x - y| - E|x - x'| - E|y - y'| of `text_features` (Szekely
    and Rizzo 2004). For samples of one distribution the teacher's text is exchangeable with the policy's of
    the same prompt: each permutation chooses at random which completion of a prompt is called the
    teacher's, and never moves one to another prompt. So the test is exact however alike the completions
    of a prompt are.

    Args:
        texts: for each prompt the teacher's completion and then the policy's, as many for each prompt.
    """
    feature_NF = np.stack([text_features(text) for of_prompt in texts for text in of_prompt])
    num_prompts, num_per_prompt = len(texts), len(texts[0])
    square_N = (feature_NF**2).sum(1)
    square_NN = square_N[:, None] + square_N[None, :] - 2 * feature_NF @ feature_NF.T
    distance_NN = np.sqrt(square_NN.clip(min=0))
    np.fill_diagonal(distance_NN, 0)
    # The first row of choices is the true one; the others are the permutations.
    choice_BP = rng.integers(num_per_prompt, size=(1 + NUM_PERMUTATIONS, num_prompts))
    choice_BP[0] = 0
    is_teacher_BN = np.zeros((len(choice_BP), len(feature_NF)))
    np.put_along_axis(is_teacher_BN, choice_BP + num_per_prompt * np.arange(num_prompts), 1.0, 1)
    from_teacher_BN = is_teacher_BN @ distance_NN
    within_B = (from_teacher_BN * is_teacher_BN).sum(1)
    across_B = from_teacher_BN.sum(1) - within_B
    others_B = distance_NN.sum() - within_B - 2 * across_B
    num_others = len(feature_NF) - num_prompts
    energy_B = (
        2 * across_B / (num_prompts * num_others)
        - within_B / num_prompts**2
        - others_B / num_others**2
    )
    # Choices that are equal but for rounding count as at least as large.
    num_as_large = int((energy_B[1:] >= energy_B[0] - 1e-9).sum())
    return TwoSampleTest(
        distance=float(energy_B[0]),
        chance=float(energy_B[1:].mean()),
        p_value=(1 + num_as_large) / (1 + NUM_PERMUTATIONS),
    )
