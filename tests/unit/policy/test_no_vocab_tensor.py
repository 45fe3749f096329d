"""No tensor of tokens x vocabulary is ever made in training (METHOD.md section 10).

A dispatch mode looks at every tensor that any operation returns. The vocabulary of the micro model
is widened so that one chunk of the head is clearly smaller than the whole.
"""

from __future__ import annotations

import pytest
import torch

from prism_lite.config import OptimConfig, PolicyLossConfig, SamplingConfig
from prism_lite.discriminator.model import discriminator_for
from prism_lite.discriminator.step import JudgedPrompt, discriminator_step
from prism_lite.models.optim import make_optimizer
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.parts import Parts
from prism_lite.policy.logprobs import predicted_logprobs
from prism_lite.policy.step import update_policy
from prism_lite.sampling.rollouts import sample_groups
from tests.kernels.watch import Allocations
from tests.micro import fill_adapter, micro_recipe

VOCAB = 120_000
TEACHER = Parts("- digits: 3,7", "first 3,last 7,so no", "no")
STUDENT = Parts("- the row a3-b1", "first 3,last 1,so yes", "yes")


@pytest.fixture
def wide(make_backbone):
    """The micro model with a vocabulary of 120,000 (padding rows beyond the tokenizer's)."""
    backbone = make_backbone(tiny__steps=0, model__quantization="none")
    core = backbone.core
    core.resize_token_embeddings(VOCAB, mean_resizing=False)
    core.requires_grad_(False)
    fill_adapter(backbone)
    for parameter in backbone.policy_parameters():
        parameter.requires_grad_(True)
    assert backbone.head_weight.shape[0] == VOCAB
    return backbone


def largest(seen: Allocations) -> tuple[int, tuple[int, ...]]:
    """Elements and shape of the largest tensor that was made (weights were there before)."""
    _, shape, _ = max(seen.tensors, key=lambda row: row[2])
    return torch.Size(shape).numel(), shape


def check(seen: Allocations, num_tokens: int) -> None:
    elements, shape = largest(seen)
    limit = num_tokens * VOCAB
    assert 0 < elements < limit / 2, f"{shape} appeared, T x V is {limit}"


def test_the_watch_sees_a_whole_logits_tensor(wide, task):
    """The test of the test: the naive way is caught."""
    pack, num_tokens = sft_pack(wide, task)
    with Allocations() as seen:
        hidden_FD = wide.hidden_states(pack)
        (hidden_FD[pack.predictor_N] @ wide.head_weight.T).log_softmax(-1).sum().backward()
    assert largest(seen)[0] >= num_tokens * VOCAB


def sft_pack(backbone, task):
    trees = [
        Tree(
            backbone.prompt(sample),
            (backbone.tokenize(sample.demonstration),),
        )
        for sample in task.sft[:12]
    ]
    pack = pack_trees(trees)
    return pack, len(pack.target_N)


def test_sft_step(wide, task):
    pack, num_tokens = sft_pack(wide, task)
    with Allocations() as seen:
        predicted_logprobs(wide, pack).sum().backward()
    check(seen, num_tokens)


def test_policy_update(wide, task):
    config = micro_recipe()
    groups = sample_groups(
        wide,
        task.rlvr[:2],
        group_size=4,
        sampling=SamplingConfig(max_completion_tokens=40),
        seed=("wide",),
    )
    num_tokens = sum(len(r.token_ids) for group in groups for r in group.rollouts)
    optimizer = make_optimizer(wide.policy_parameters(), OptimConfig())
    with Allocations() as seen:
        update_policy(
            wide,
            optimizer,
            groups,
            torch.tensor([1.0, -1.0, 0.5, -0.5] * 2),
            sampling=SamplingConfig(),
            optim=config.rlvr.optim,
            learning_rate=1e-4,
            loss=PolicyLossConfig(entropy_weight=0.01),
            num_minibatches=2,
            kl_weight=0.1,
        )
    check(seen, num_tokens // 2)


def test_discriminator_step(wide, task):
    config = micro_recipe().discriminator
    discriminator = discriminator_for(wide, config, seed=0)
    optimizer = make_optimizer(list(discriminator.parameters()), config.optim)
    judged = [
        JudgedPrompt(wide.prompt(sample), TEACHER, (STUDENT,) * 3) for sample in task.align[:2]
    ]
    num_tokens = 8 * sum(len(wide.tokenize(text)) for text in (TEACHER.caption, TEACHER.think))
    with Allocations() as seen:
        discriminator_step(
            wide, discriminator, optimizer, judged, config, learning_rate=1e-3, max_grad_norm=1.0
        )
    check(seen, num_tokens)
