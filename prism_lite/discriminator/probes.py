"""Probes: what the discriminator responds to. METHOD section 6.

Artefact probe: do length, last characters and white space alone separate teacher from student? Grounding
probe: does the discriminator prefer a clean part to the same part with one fact wrong? Both use held-out
or unused prompts and cost a forward.

Shape letters: K completions, X features, Q pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from prism_lite.discriminator.model import Discriminator
from prism_lite.discriminator.step import CHANNELS, JudgedPrompt
from prism_lite.models.backbone import Backbone
from prism_lite.models.prompts import Prompt
from prism_lite.parts import Parts
from prism_lite.processes import share_work
from prism_lite.types import ProbePair

ARTEFACT_WARNING = 0.6  # above this AUC the discriminator may win without looking at content
PROMPTS_PER_CALL = 32
# The scores that are compared: the discriminator's, and those by one term of its heads alone.
_VARIANTS = ("", "_without_likelihood", "_likelihood")


@torch.no_grad()
def completion_scores(
    backbone: Backbone,
    discriminator: Discriminator,
    judged: Sequence[tuple[Prompt, Sequence[Parts]]],
) -> tuple[Tensor, Tensor]:
    """Score the completions of many prompts without a gradient, the teacher's first in each.

    Returns:
        float32 [K, 2 channels (perception, reasoning)], and the same by each term of the heads alone
        [K, 2 channels, 2 terms (hidden state, likelihood)], before the cap.
    """

    def score(shared: Sequence[tuple[Prompt, Sequence[Parts]]]) -> list[tuple[Tensor, Tensor]]:
        results = []
        for start in range(0, len(shared), PROMPTS_PER_CALL):
            scored = discriminator.score(backbone, shared[start : start + PROMPTS_PER_CALL])
            score_K2 = torch.stack([scored.perception_K, scored.reasoning_K], 1)
            results.append((score_K2.cpu(), scored.terms_K22.cpu()))
        return results

    with backbone.role("discriminator"):
        scores, terms = zip(*share_work(judged, score), strict=True)
    return torch.cat(scores), torch.cat(terms)


def share_won(margin_Q: Tensor) -> float:
    """Return the share of pairs with a positive margin; equal scores count half."""
    return float(((margin_Q > 0).float() + 0.5 * (margin_Q == 0).float()).mean())


def wilson95(share: float, num: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of a share of `num` independent pairs."""
    z = 1.96
    centre = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * (share * (1 - share) / num + z**2 / (4 * num**2)) ** 0.5
    return centre - half, centre + half


@dataclass(frozen=True)
class PairResult:
    """How the teacher fares against the students of other prompts than the trained ones, per channel.

    Attributes:
        accuracy: mean over prompts of the share of students below their teacher, without ties; None
            where all are ties.
        loss: Bradley-Terry, mean over the same pairs; None likewise.
        num_prompts: prompts with a pair that is not a tie.
    """

    accuracy: tuple[float | None, float | None]
    loss: tuple[float | None, float | None]
    num_prompts: tuple[int, int]

    def metrics(self) -> dict[str, float]:
        """Return `disc/heldout_pair_accuracy_CHANNEL`, where there is one."""
        named = zip(CHANNELS, self.accuracy, strict=True)
        return {f"disc/heldout_pair_accuracy_{k}": v for k, v in named if v is not None}

    def mean_loss(self) -> float | None:
        """Return the mean loss of the channels that have one."""
        losses = [loss for loss in self.loss if loss is not None]
        return sum(losses) / len(losses) if losses else None


def heldout_pairs(
    backbone: Backbone, discriminator: Discriminator, judged: Sequence[JudgedPrompt]
) -> PairResult:
    """Compare teacher and students on prompts that the discriminator was not trained on."""
    items = [(item.prompt, (item.teacher, *item.students)) for item in judged]
    score_K2, _ = completion_scores(backbone, discriminator, items)
    groups = score_K2.split([1 + len(item.students) for item in judged])
    wins: tuple[list[float], list[float]] = ([], [])
    margins: tuple[list[Tensor], list[Tensor]] = ([], [])
    for item, group_K2 in zip(judged, groups, strict=True):
        margin_G2 = group_K2[:1] - group_K2[1:]
        is_tie_G2 = torch.tensor(item.ties(discriminator.config))
        for channel in (0, 1):
            margin_G = margin_G2[~is_tie_G2[:, channel], channel]
            if len(margin_G):
                wins[channel].append(share_won(margin_G))
                margins[channel].append(margin_G)
    accuracy = [sum(shares) / len(shares) if shares else None for shares in wins]
    loss = [float(F.softplus(-torch.cat(parts)).mean()) if parts else None for parts in margins]
    return PairResult((accuracy[0], accuracy[1]), (loss[0], loss[1]), (len(wins[0]), len(wins[1])))


def grounding_probe(
    backbone: Backbone, discriminator: Discriminator, probe: Sequence[ProbePair]
) -> dict[str, float]:
    """Return the share of held-out pairs whose clean part outscores its corrupted copy, per channel.

    If the reasoning channel sees the caption, both sides of its pairs have the clean caption: it must
    find the slip in the reasoning. Without pairs nothing was measured: an empty mapping.

    Returns:
        `disc/grounding_CHANNEL`; and `..._likelihood` and `..._without_likelihood`, by the likelihood
        features alone and by the hidden state alone, of the same forward.
    """
    if not probe:
        return {}
    judged = []
    for pair in probe:
        completions = [pair.clean, pair.corrupted]
        if discriminator.config.reasoning_sees_caption:
            completions.append(dataclasses.replace(pair.corrupted, caption=pair.clean.caption))
        judged.append((backbone.prompt(pair.sample), completions))
    score_K2, terms_K22 = completion_scores(backbone, discriminator, judged)
    # [pairs, completions, channels, variants of the score]
    scores = torch.cat([score_K2[:, :, None], terms_K22], 2).unflatten(0, (len(probe), -1))
    margins = scores[:, 0, 0] - scores[:, 1, 0], scores[:, 0, 1] - scores[:, -1, 1]
    num_variants = len(_VARIANTS) if discriminator.config.likelihood_features else 1
    return {
        f"disc/grounding_{channel}{name}": share_won(margin[:, variant])
        for channel, margin in zip(CHANNELS, margins, strict=True)
        for variant, name in enumerate(_VARIANTS[:num_variants])
    }


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
