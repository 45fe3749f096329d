"""Probes: what the discriminator responds to. METHOD section 6.

Artefact probe: do length, last characters and white space alone separate teacher from student? Grounding
probe: does the discriminator prefer a clean part to the same part with one fact wrong? Both use held-out
or unused prompts and cost a forward.

Shape letters: K completions, X features, Q pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from prism_lite.discriminator.model import Discriminator
from prism_lite.models.backbone import Backbone
from prism_lite.models.prompts import Prompt
from prism_lite.parts import Parts
from prism_lite.types import ProbePair

ARTEFACT_WARNING = 0.6  # above this AUC the discriminator may win without looking at content
GROUNDED = 0.6  # below this on either channel alignment warns that scores are not grounded
_PROMPTS_PER_CALL = 32


@torch.no_grad()
def pair_scores(
    backbone: Backbone, discriminator: Discriminator, pairs: Sequence[tuple[Prompt, Parts, Parts]]
) -> Tensor:
    """Score two completions of each prompt.

    Returns:
        score_Q22: float32 [Q, 2 completions, 2 channels (perception, reasoning)].
    """
    scores = []
    with backbone.role("discriminator"):
        for start in range(0, len(pairs), _PROMPTS_PER_CALL):
            batch = pairs[start : start + _PROMPTS_PER_CALL]
            scored = discriminator.score(
                backbone, [(prompt, completions) for prompt, *completions in batch]
            )
            scores.append(torch.stack([scored.perception_K, scored.reasoning_K], 1).view(-1, 2, 2))
    return torch.cat(scores).cpu()


def first_wins(score_Q22: Tensor) -> tuple[float, float]:
    """Return per channel the share of pairs whose first completion scores higher; ties count half."""
    margin_Q2 = score_Q22[:, 0] - score_Q22[:, 1]
    wins_2 = ((margin_Q2 > 0).float() + 0.5 * (margin_Q2 == 0).float()).mean(0)
    return float(wins_2[0]), float(wins_2[1])


def grounding_probe(
    backbone: Backbone, discriminator: Discriminator, probe: Sequence[ProbePair]
) -> dict[str, float]:
    """Return the share of held-out pairs whose clean part outscores its corrupted copy, per channel.

    If the reasoning channel sees the caption, both sides of its pairs have the clean caption: it must
    find the slip in the reasoning. Without pairs nothing was measured: an empty mapping.
    """
    if not probe:
        return {}
    pairs = [(backbone.prompt(pair.sample), pair.clean, pair.corrupted) for pair in probe]
    perception, reasoning = first_wins(pair_scores(backbone, discriminator, pairs))
    if discriminator.config.reasoning_sees_caption:
        slipped = [
            (prompt, clean, dataclasses.replace(corrupted, caption=clean.caption))
            for prompt, clean, corrupted in pairs
        ]
        _, reasoning = first_wins(pair_scores(backbone, discriminator, slipped))
    return {"disc/grounding_perception": perception, "disc/grounding_reasoning": reasoning}


def artefact_auc(teacher: Sequence[str], student: Sequence[str]) -> float:
    """Measure how well a logistic regression on form alone separates teacher and student texts.

    It is fitted on every second pair and evaluated on the others; the texts of a pair answer the same
    prompt.

    Returns:
        Area under the ROC curve: 0.5 means that form reveals nothing.
    """
    assert len(teacher) == len(student) >= 4
    feature_KX = torch.tensor([form_features(text) for text in (*teacher, *student)])
    feature_KX = (feature_KX - feature_KX.mean(0)) / feature_KX.std(0).clamp(min=1e-6)
    is_teacher_K = torch.tensor([1.0] * len(teacher) + [0.0] * len(student))
    is_fitted_K = (torch.arange(len(teacher)) % 2 == 0).repeat(2)
    weight_X = torch.zeros(feature_KX.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_X, bias], max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logit_K = feature_KX[is_fitted_K] @ weight_X + bias
        loss = F.binary_cross_entropy_with_logits(logit_K, is_teacher_K[is_fitted_K])
        loss = loss + 1e-2 * weight_X.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        logit_K = feature_KX[~is_fitted_K] @ weight_X
        return area_under_roc(logit_K, is_teacher_K[~is_fitted_K].bool())


def form_features(text: str) -> list[float]:
    """Return length, white space, last character and closed parts of a text: form, not content."""
    last = text.rstrip()[-1:]
    return [
        float(len(text)),
        float(text.count(" ")),
        float(text.count("\n")),
        float(len(text) - len(text.strip())),
        float(last.isdigit()),
        float(last.isalpha()),
        float(last == "."),
        float(text.count("</")),  # a part that was cut has no closing tag
    ]


def area_under_roc(score_K: Tensor, is_positive_K: Tensor) -> float:
    """Compute the probability that a positive scores above a negative; ties count half."""
    positive, negative = score_K[is_positive_K], score_K[~is_positive_K]
    difference = positive[:, None] - negative[None, :]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())
