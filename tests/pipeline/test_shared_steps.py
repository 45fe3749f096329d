"""A step of two processes has the gradient and the metrics of one, also where one of them has no work."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prism_lite.config import OptimConfig, PolicyLossConfig
from prism_lite.discriminator.probes import completion_scores
from prism_lite.discriminator.step import JudgedPrompt, discriminator_step
from prism_lite.models.backbone import REFERENCE
from prism_lite.models.optim import Optimizer
from prism_lite.models.packing import Tree
from prism_lite.policy.step import rollout_kl, update_policy
from prism_lite.rewards.group_rewards import rewards_of
from prism_lite.rewards.load import load_rewards
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.stages.sft import sft_step
from prism_lite.types import Group, NotFiniteError
from tests.judging import CONFIG, STUDENTS, TEACHER, prompts_of, with_trunk, woken
from tests.micro import fill_adapter, micro_recipe
from tests.several_processes import results_of

SAMPLING = micro_recipe(sampling__max_completion_tokens=16).sampling


def plain_descent(parameters) -> Optimizer:
    """With a step in proportion to the gradient, so that small differences stay small."""
    return Optimizer(
        torch.optim.SGD(parameters, lr=1.0), torch.amp.GradScaler("cpu", enabled=False)
    )


def changed_by(parameters, step) -> list:
    """Take a step with a learning rate of 1; return the metrics and how the parameters change."""
    before = [parameter.detach().clone() for parameter in parameters]
    metrics = step(plain_descent(parameters))
    changes = [(p.detach() - b) for p, b in zip(parameters, before, strict=True)]
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(old)
    return [metrics, changes]


def check_same(folder, work) -> list:
    """Two processes return what one does; return that."""
    metrics, changes = work()
    assert any(float(change.abs().max()) > 1e-4 for change in changes)
    for found_metrics, found_changes in results_of(2, folder, work):
        assert found_metrics.keys() == metrics.keys()
        for name in metrics.keys() - {"train_tokens_per_s"}:
            assert found_metrics[name] == pytest.approx(metrics[name], rel=0, abs=1e-5), name
        for change, expected in zip(found_changes, changes, strict=True):
            assert float((change - expected).abs().max()) < 1e-5
    return [metrics, changes]


@pytest.fixture
def groups(random_backbone, task):
    """Five groups of three rollouts, of which the last one counts as truncated."""
    sampled = sample_groups(
        random_backbone, task.rlvr[:5], group_size=3, sampling=SAMPLING, seed=(0, "groups")
    )
    return [
        Group(
            group.sample,
            tuple(
                dataclasses.replace(rollout, finish=finish)
                for rollout, finish in zip(group.rollouts, ("end", "end", "length"), strict=True)
            ),
        )
        for group in sampled
    ]


@pytest.mark.parametrize("num", [1, 3])
def test_sft(random_backbone, task, tmp_path, num):
    backbone = random_backbone
    trees = [
        Tree(backbone.prompt(s), (backbone.tokenize(s.demonstration),)) for s in task.sft[:num]
    ]
    parameters = backbone.policy_parameters()
    check_same(
        tmp_path,
        lambda: changed_by(
            parameters,
            lambda optimizer: sft_step(
                backbone, optimizer, trees, learning_rate=1.0, max_grad_norm=1.0
            ),
        ),
    )


@pytest.mark.parametrize("num", [1, 5])
@pytest.mark.parametrize("loss", ["dapo", "grpo", "bnpo", "dr_grpo", "gspo"])
def test_policy_update(random_backbone, groups, tmp_path, loss, num):
    """Truncated rollouts are masked, and the KL and the entropy weigh on all groups."""
    backbone, groups = random_backbone, groups[:num]
    backbone.freeze_copy(REFERENCE)
    fill_adapter(backbone, seed=4)
    generator = torch.Generator().manual_seed(1)
    advantage_R = torch.randn(3 * num, generator=generator)
    parameters = backbone.policy_parameters()

    def step(optimizer: Optimizer) -> dict[str, float]:
        return update_policy(
            backbone,
            optimizer,
            groups,
            advantage_R,
            sampling=SAMPLING,
            optim=OptimConfig(1.0),
            learning_rate=1.0,
            loss=PolicyLossConfig(loss, entropy_weight=0.1),
            mask_truncated=True,
            kl_weight=0.1,
        )

    metrics, _ = check_same(tmp_path, lambda: changed_by(parameters, step))
    assert metrics["kl"] > 0 and metrics["entropy"] > 0


def test_policy_update_where_one_group_of_three_teaches_anything(random_backbone, groups, tmp_path):
    """The others count in the mean, and one process has nothing to forward."""
    advantage_R = torch.tensor([0.0] * 6 + [1.0, -1.0, 0.0])
    parameters = random_backbone.policy_parameters()

    def step(optimizer: Optimizer) -> dict[str, float]:
        return update_policy(
            random_backbone,
            optimizer,
            groups[:3],
            advantage_R,
            sampling=SAMPLING,
            optim=OptimConfig(1.0),
            learning_rate=1.0,
            loss=PolicyLossConfig(),
            num_minibatches=2,
        )

    check_same(tmp_path, lambda: changed_by(parameters, step))


@pytest.mark.parametrize(("num", "max_pack_tokens"), [(1, 4096), (3, 4096), (3, 200)])
def test_discriminator(make_backbone, task, tmp_path, num, max_pack_tokens):
    """One judged prompt: a process has no well-formed student. Small packs: a group is split."""
    backbone = with_trunk(make_backbone(model__quantization="none"))
    backbone.config = dataclasses.replace(backbone.config, max_pack_tokens=max_pack_tokens)
    discriminator = woken(backbone)
    prompts = prompts_of(backbone, task, num + 1)
    judged = [JudgedPrompt(prompt, TEACHER, STUDENTS) for prompt in prompts[:num]]
    replayed = [JudgedPrompt(prompts[num], TEACHER, STUDENTS[:1])]
    parameters = list(discriminator.parameters())
    config = dataclasses.replace(CONFIG, balance_weight=0.5)

    def step(optimizer: Optimizer) -> dict[str, float]:
        game = discriminator_step(
            backbone,
            discriminator,
            optimizer,
            judged,
            config,
            learning_rate=1.0,
            max_grad_norm=10.0,
            replayed=replayed,
        )
        scores = torch.cat([game.teacher_P2, *game.students]).flatten().tolist()
        return game.metrics | {f"score {number}": value for number, value in enumerate(scores)}

    check_same(tmp_path, lambda: changed_by(parameters, step))


@pytest.mark.parametrize("num", [1, 3])
def test_scores_without_a_gradient(make_backbone, task, tmp_path, num):
    backbone = with_trunk(make_backbone(model__quantization="none"))
    discriminator = woken(backbone)
    judged = [(prompt, (TEACHER, *STUDENTS)) for prompt in prompts_of(backbone, task, num)]

    def work() -> list:
        return list(completion_scores(backbone, discriminator, judged))

    expected = work()
    for found in results_of(2, tmp_path, work):
        for tensor, reference in zip(found, expected, strict=True):
            assert float((tensor - reference).abs().max()) < 1e-5


@pytest.mark.parametrize("num", [1, 3])
def test_rollouts_their_rewards_and_their_kl(random_backbone, task, tmp_path, num):
    """A prompt that comes again continues the numbers of its rollouts, in whichever process it is."""
    backbone, rewards = random_backbone, load_rewards(micro_recipe())
    backbone.freeze_copy(REFERENCE)
    fill_adapter(backbone, seed=4)
    samples = [*task.rlvr[:num], task.rlvr[0]]

    def work() -> list:
        sampled = sample_groups(
            backbone, samples, group_size=2, sampling=SAMPLING, seed=(3, "shared")
        )
        tokens = [list(r.token_ids) for group in sampled for r in group.rollouts]
        kl_R = rollout_kl(backbone, sampled, "k3", temperature=1.0)
        return [tokens, rewards_of(sampled, rewards), kl_R]

    tokens, values, kl_R = work()
    assert tokens[0] != tokens[-2]
    for found_tokens, found_values, found_kl_R in results_of(2, tmp_path, work):
        assert found_tokens == tokens
        assert found_values.keys() == values.keys()
        assert all(torch.equal(found_values[name], values[name]) for name in values)
        assert float((found_kl_R - kl_R).abs().max()) < 1e-5


def test_scores_of_one_process_that_are_not_finite_stop_the_step_in_both(
    make_backbone, task, tmp_path
):
    backbone = with_trunk(make_backbone(model__quantization="none"))
    backbone.config = dataclasses.replace(backbone.config, max_pack_tokens=250)
    discriminator = woken(backbone)
    prompts = prompts_of(backbone, task, 2)
    judged = [JudgedPrompt(prompt, TEACHER, STUDENTS) for prompt in prompts]
    states = discriminator.prompt_cache.states(backbone, prompts)
    before = [parameter.detach().clone() for parameter in discriminator.parameters()]
    poisoned = prompts[1].id

    def score(backbone, items):
        scores = type(discriminator).score(discriminator, backbone, items)
        if items[0][0].id == poisoned:
            scores.perception_K.data.fill_(torch.nan)
        return scores

    discriminator.score = score
    assert states

    def work() -> list:
        optimizer = plain_descent(list(discriminator.parameters()))
        with pytest.raises(NotFiniteError, match=poisoned):
            discriminator_step(
                backbone,
                discriminator,
                optimizer,
                judged,
                CONFIG,
                learning_rate=1.0,
                max_grad_norm=1.0,
            )
        pairs = zip(discriminator.parameters(), before, strict=True)
        return [all(torch.equal(parameter, old) for parameter, old in pairs)]

    assert results_of(2, tmp_path, work) == [[True], [True]]
