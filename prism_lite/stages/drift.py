"""The drift meter: how far a policy is from the truth, the teacher and its stage's start.

METHOD section 6. It reads the completions that the evaluation has sampled at temperature 1; `kl_of_step`
reads some of a training step's.

Shape letters: N tokens of one pack, R its completions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prism_lite.data.task import TaskData
from prism_lite.models.adapters import read_adapter
from prism_lite.models.backbone import REFERENCE, Backbone
from prism_lite.models.packing import Tree, pack_trees, split_trees
from prism_lite.parts import Parts, num_bullets, num_steps, parse
from prism_lite.policy.logprobs import branch_sums, predicted_logprobs
from prism_lite.processes import share_work
from prism_lite.seeding import seed_of
from prism_lite.stages.context import Context
from prism_lite.stages.evaluate import spaced
from prism_lite.stages.two_sample import energy_test, ngram_distance
from prism_lite.types import Group

_MAX_TESTED_PROMPTS = 256  # the test's memory and time grow with their square
_MAX_KL_PROMPTS = 64
_MIN_PROMPTS = 4  # fewer can neither be tested nor give an interval


def measure_drift(context: Context, stage: str, groups: Sequence[Group]) -> dict[str, Any]:
    """Measure the loaded policy of an evaluated stage on its evaluation's completions.

    Returns:
        Figures by name; those that cannot be measured are left out.
        `perception_errors` and `reasoning_errors_given_caption` where the task verifies parts.
        `teacher_*` and the differences (policy minus teacher) where held-out rows have a teacher.
        `kl_to_start`, nats per token, and its 95 % interval, except for the base.
    """
    figures: dict[str, Any] = part_errors(groups, context.task)
    with_teacher = [
        (group, teacher)
        for group in groups
        if isinstance(teacher := parse(group.sample.teacher or ""), Parts)
    ]
    if len(with_teacher) >= _MIN_PROMPTS:
        figures |= teacher_differences(context.backbone, with_teacher)
        texts = [
            [teacher.render(), *(rollout.text for rollout in group.rollouts)]
            for group, teacher in spaced(with_teacher, _MAX_TESTED_PROMPTS)
        ]
        rng = np.random.default_rng(seed_of(context.config.seed, "drift"))
        test = energy_test(texts, rng)
        figures |= {
            "teacher_distance": test.distance,
            "teacher_distance_chance": test.chance,
            "teacher_p": test.p_value,
        }
    if stage != "base" and len(groups) >= _MIN_PROMPTS:
        load_start(context, stage)
        value, interval = kl_to_reference(context.backbone, spaced(groups, _MAX_KL_PROMPTS))
        context.backbone.drop_adapter(REFERENCE)
        figures |= {"kl_to_start": value, "kl_to_start_ci95": interval}
    return figures


def part_errors(groups: Sequence[Group], task: TaskData) -> dict[str, float]:
    """Return the shares of wrong captions, and of thinks that do not follow from their own caption.

    Of the well-formed completions, so that format errors count in neither; empty if there are none or
    the task does not verify parts.
    """
    if task.verify is None:
        return {}
    verdicts = [
        task.verify(group.sample, student) for group in groups for student in group.students
    ]
    if not verdicts:
        return {}
    return {
        "perception_errors": sum(not v.caption for v in verdicts) / len(verdicts),
        "reasoning_errors_given_caption": sum(not v.think for v in verdicts) / len(verdicts),
    }


def teacher_differences(
    backbone: Backbone, with_teacher: Sequence[tuple[Group, Parts]]
) -> dict[str, float]:
    """Return differences (policy minus teacher, mean over prompts) and n-gram distances.

    Lengths in tokens are of all completions, bullets and steps of the well-formed ones.
    """
    differences = {
        "token_difference": [
            _mean([len(rollout.token_ids) for rollout in group.rollouts])
            - len(backbone.tokenize(teacher.render()))
            for group, teacher in with_teacher
        ]
    }
    counts: Mapping[str, Callable[[Parts], int]] = {
        "bullet_difference": lambda parts: num_bullets(parts.caption),
        "step_difference": lambda parts: num_steps(parts.think),
    }
    for name, count in counts.items():
        differences[name] = [
            _mean([count(student) for student in group.students]) - count(teacher)
            for group, teacher in with_teacher
            if group.students
        ]
    teacher_texts = [teacher.render() for _, teacher in with_teacher]
    policy_texts = [rollout.text for group, _ in with_teacher for rollout in group.rollouts]
    return {
        **{name: _mean(values) for name, values in differences.items() if values},
        "teacher_js_words": ngram_distance(teacher_texts, policy_texts, 1),
        "teacher_js_bigrams": ngram_distance(teacher_texts, policy_texts, 2),
    }


def load_start(context: Context, stage: str) -> None:
    """Load the policy that a stage started from into the role "reference"; none for the base."""
    backbone, config = context.backbone, context.config
    backbone.drop_adapter(REFERENCE)
    if stage == "sft":
        if config.sft.start_from is not None:
            adapter = read_adapter(config.sft.start_from, config.lora)
            backbone.load_adapter_state(adapter, REFERENCE)
        return
    start = config.rlvr.start if stage == "rlvr" else "sft"
    backbone.load_adapter_state(context.run.load_final(start)["policy"], REFERENCE)


def kl_of_step(
    backbone: Backbone,
    start: Mapping[str, Tensor],
    groups: Sequence[Group],
    *,
    temperature: float,
) -> float:
    """Estimate KL(policy || policy at the stage's start), nats per token, on a step's first group.

    One forward of a part of the batch, with the start's weights in the place of the policy's: no adapter
    more has to fit beside the model. A single step's estimate is rough; its moving average is the curve.

    Args:
        start: the weights at the start, in PEFT's names; best on the CPU.
        groups: rollouts that the current policy sampled, before its update.
        temperature: with which they were sampled.
    """
    current = backbone.adapter_state()
    backbone.load_adapter_state(start)
    try:
        log_ratios, num_tokens = _log_ratios(backbone, groups[:1], temperature=temperature)
    finally:
        backbone.load_adapter_state(current)
    return sum(log_ratios) / sum(num_tokens)


def kl_to_reference(
    backbone: Backbone, groups: Sequence[Group]
) -> tuple[float, tuple[float, float]]:
    """Estimate KL(sampling distribution || reference) per token, with its 95 % interval.

    One forward of the reference over the completions; the policy's log-probs are those that sampling
    recorded.
    """
    with backbone.role("reference"):
        log_ratios, num_tokens = _log_ratios(backbone, groups, temperature=1.0)
    return kl_estimate(log_ratios, num_tokens)


@torch.no_grad()
def _log_ratios(
    backbone: Backbone, groups: Sequence[Group], *, temperature: float
) -> tuple[list[float], list[int]]:
    """Return log sampled - log active adapter, summed over the tokens of each group, and their number."""

    def sums(shared: Sequence[Group]) -> list[Tensor]:
        trees = [
            Tree(
                backbone.prompt(group.sample),
                tuple(torch.tensor(rollout.token_ids) for rollout in group.rollouts),
            )
            for group in shared
        ]
        sums_of_packs = []
        for packed in split_trees(trees, backbone.config.max_pack_tokens):
            pack = pack_trees(packed)
            logprob_N = predicted_logprobs(backbone, pack, temperature=temperature)
            sums_of_packs.append(branch_sums(logprob_N, pack).cpu())
        return sums_of_packs

    # in the order of the rollouts, even where a tree is split
    active_R = iter(torch.cat(share_work(groups, sums)).tolist())
    log_ratios, num_tokens = [], []
    for group in groups:
        sampled = sum(float(rollout.sampling_logprob_C.sum()) for rollout in group.rollouts)
        log_ratios.append(sampled - sum(next(active_R) for _ in group.rollouts))
        num_tokens.append(sum(len(rollout.token_ids) for rollout in group.rollouts))
    return log_ratios, num_tokens


def kl_estimate(
    log_ratios: Sequence[float], num_tokens: Sequence[int]
) -> tuple[float, tuple[float, float]]:
    """Return the KL per token and its 95 % interval, from sums over the completions of each prompt.

    The plain mean of log policy - log reference (k1): unbiased, and slightly negative by chance where
    the KL is near 0. k3 would be never negative, but its variance is unbounded where the reference gives
    much probability to what the policy no longer says, as the base does after SFT. The interval is that
    of a ratio of means, with the prompt as unit (linearised).

    Args:
        log_ratios: sum of log policy - log reference over the tokens of each prompt's completions.
        num_tokens: their number.
    """
    num, total = len(num_tokens), sum(num_tokens)
    kl = sum(log_ratios) / total
    residuals = [ratio - kl * tokens for ratio, tokens in zip(log_ratios, num_tokens, strict=True)]
    error = math.sqrt(num / (num - 1) * sum(r**2 for r in residuals)) / total
    return kl, (kl - 1.96 * error, kl + 1.96 * error)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
