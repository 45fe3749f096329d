"""The drift meter's figures against counts by hand and an exact KL divergence."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prism_lite import parts
from prism_lite.digits.wording import PartVerdicts
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.parts import Parts
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.stages.drift import (
    kl_estimate,
    kl_of_step,
    kl_to_reference,
    part_errors,
    teacher_differences,
)
from prism_lite.stages.evaluate import spaced
from prism_lite.types import Group, Rollout, Sample, Turn
from tests.micro import micro_recipe


def rollout(caption: str, think: str = "t", *, finish: str = "end", num_tokens: int = 1) -> Rollout:
    text = Parts(caption, think, "1").render() if caption else "nothing"
    none = torch.zeros(num_tokens)
    return Rollout(tuple([1] * num_tokens), text, parts.parse(text), finish, none, none)  # type: ignore[arg-type]


def sample(number: int) -> Sample:
    return Sample(f"s{number}", (Turn("user", "?"),))


def test_part_errors_count_the_well_formed_only():
    groups = [
        Group(sample(0), (rollout("right", "sound"), rollout("wrong", "sound"), rollout(""))),
        Group(sample(1), (rollout("wrong", "slip"), rollout("wrong", "sound", finish="length"))),
    ]

    def verify(_sample: Sample, completion: Parts) -> PartVerdicts:
        return PartVerdicts(completion.caption == "right", completion.think == "sound", True)

    figures = part_errors(groups, SimpleNamespace(verify=verify))  # type: ignore[arg-type]
    assert figures == {"perception_errors": 2 / 3, "reasoning_errors_given_caption": 1 / 3}
    assert part_errors(groups, SimpleNamespace(verify=None)) == {}  # type: ignore[arg-type]
    malformed = [Group(sample(2), (rollout(""),))]
    assert part_errors(malformed, SimpleNamespace(verify=verify)) == {}  # type: ignore[arg-type]


def test_differences_are_the_policy_minus_the_teacher_by_prompt():
    teacher = Parts("- a\n- b", "one. two", "1")
    groups = [
        (
            Group(
                sample(0),
                (
                    rollout("- a\n- b\n- c", "one. two. three", num_tokens=7),
                    rollout("", num_tokens=2),
                ),
            ),
            teacher,
        ),
        (Group(sample(1), (rollout("- a", "one", num_tokens=5),) * 2), teacher),
    ]
    backbone = SimpleNamespace(tokenize=lambda text: torch.zeros(4))
    figures = teacher_differences(backbone, groups)  # type: ignore[arg-type]
    assert figures["token_difference"] == ((7 + 2) / 2 - 4 + 5 - 4) / 2
    assert figures["bullet_difference"] == ((3 - 2) + (1 - 2)) / 2
    assert figures["step_difference"] == ((3 - 2) + (1 - 2)) / 2


def test_the_kl_estimate_covers_the_exact_kl_of_a_small_categorical():
    rng = np.random.default_rng(0)
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    exact = float((policy * np.log(policy / reference)).sum())
    num_covered, values = 0, []
    for _ in range(300):
        num_tokens = rng.integers(3, 20, size=40)
        tokens = [rng.choice(3, size=num, p=policy) for num in num_tokens]
        log_ratios = [float(np.log(policy[t] / reference[t]).sum()) for t in tokens]
        value, (low, high) = kl_estimate(log_ratios, num_tokens.tolist())
        num_covered += low <= exact <= high
        values.append(value)
    assert np.mean(values) == pytest.approx(exact, abs=0.01)
    assert 0.91 <= num_covered / 300 <= 0.98


def test_the_kl_to_the_base_agrees_with_the_exact_kl_at_the_sampled_prefixes(random_backbone, task):
    """The exact KL sums over the vocabulary at every prefix of the same completions."""
    backbone = random_backbone
    config = micro_recipe()
    groups = sample_groups(
        backbone,
        task.heldout,
        group_size=8,
        sampling=dataclasses.replace(config.sampling, temperature=1.0),
        seed=("kl",),
    )
    value, (low, high) = kl_to_reference(backbone, groups)
    exact, num_tokens = 0.0, 0
    for group in groups:
        branches = tuple(torch.tensor(r.token_ids) for r in group.rollouts)
        pack = pack_trees([Tree(backbone.prompt(group.sample), branches)])

        def logprobs(pack=pack) -> torch.Tensor:
            hidden = backbone.hidden_states(pack)[pack.predictor_N]
            logits = (hidden @ backbone.head_weight.T).double()
            logits[:, backbone.suppressed_ids] = -torch.inf  # sampling never draws them
            return logits.log_softmax(-1)

        with torch.no_grad():
            policy = logprobs()
            with backbone.role("reference"):
                reference = logprobs()
        is_finite = policy.isfinite()
        terms = (policy.exp() * (policy - reference))[is_finite]
        exact += float(terms.sum())
        num_tokens += len(policy)
    exact /= num_tokens
    assert exact > 0.005, "the adapter must move the policy, or the test is empty"
    half = (high - low) / 2
    assert half < exact
    assert value == pytest.approx(exact, abs=2 * half)


def test_the_kl_of_a_policy_to_itself_is_zero(random_backbone, task):
    backbone = random_backbone
    backbone.freeze_copy("reference")
    groups = sample_groups(
        backbone, task.heldout, group_size=2, sampling=micro_recipe(sampling__temperature=1.0).sampling,
        seed=("kl",),
    )  # fmt: skip
    value, _ = kl_to_reference(backbone, groups)
    # the reference's softmax includes the tokens that sampling suppresses
    suppressed = len(backbone.suppressed_ids) / backbone.core.config.text_config.vocab_size
    assert 0 <= value < 2 * suppressed + 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_kl_of_a_step_is_that_of_its_first_group(random_backbone, task, temperature):
    """Against a start that is an adapter of its own, and one rollout after another."""
    backbone = random_backbone
    policy = backbone.adapter_state()
    start = {name: 0.5 * tensor.cpu() for name, tensor in policy.items()}
    backbone.load_adapter_state(start, "reference")
    groups = sample_groups(
        backbone, task.heldout[:3], group_size=4,
        sampling=micro_recipe(sampling__temperature=temperature).sampling, seed=("kl",),
    )  # fmt: skip
    value = kl_of_step(backbone, start, groups, temperature=temperature)
    log_ratio, num_tokens = 0.0, 0
    for rollout in groups[0].rollouts:
        tree = Tree(backbone.prompt(groups[0].sample), (torch.tensor(rollout.token_ids),))
        pack = pack_trees([tree])
        with torch.no_grad(), backbone.role("reference"):
            hidden = backbone.hidden_states(pack)[pack.predictor_N]
            logprobs = (hidden @ backbone.head_weight.T / temperature).log_softmax(-1)
        chosen = logprobs[torch.arange(len(rollout.token_ids)), torch.tensor(rollout.token_ids)]
        log_ratio += float(rollout.sampling_logprob_C.sum() - chosen.sum())
        num_tokens += len(rollout.token_ids)
    assert value == pytest.approx(log_ratio / num_tokens, abs=1e-4) and abs(value) > 1e-3
    for name, tensor in backbone.adapter_state().items():
        assert torch.equal(tensor, policy[name]), "the policy is as it was"


def test_evenly_spaced_items():
    assert spaced(range(10), 3) == [0, 3, 6]
    assert spaced(range(3), 10) == [0, 1, 2]
    assert spaced((), 5) == []
