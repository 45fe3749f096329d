"""Stage 3 with `align.method: dpo`: the teacher preferred to one frozen sample of the SFT policy.

The low-resource baseline of METHOD section 6 (as SODA, arXiv 2604.03873): the student is sampled once,
before the first step; no discriminator, no rollouts during training.

Shape letters: K pairs of one pack (branches 2 k and 2 k + 1: teacher, student), N their tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from prism_lite.models.backbone import REFERENCE, Backbone
from prism_lite.models.optim import Optimizer, learning_rate_at, optimizer_step
from prism_lite.models.packing import Pack, Tree, pack_trees, split_trees
from prism_lite.policy.logprobs import branch_sums, predicted_logprobs
from prism_lite.policy.losses import dpo_loss
from prism_lite.processes import share_work
from prism_lite.sampling.many_prompts import sample_in_pieces
from prism_lite.seeding import samples_at
from prism_lite.stages.context import Context
from prism_lite.types import Sample


def run_dpo(context: Context) -> None:
    """Train the SFT policy on pairs (teacher, SFT sample); the reference is the SFT policy."""
    config, backbone, run = context.config.align, context.backbone, context.run
    context.load_policy("sft")
    backbone.freeze_copy(REFERENCE)
    students = _static_students(context)
    optimizer = context.optimizer(config.optim)
    for step in context.steps("align", config.steps, {"policy": optimizer}):
        started_s = time.perf_counter()
        run.batch = _rows(context, step, config.prompts_per_step)
        trees = [
            Tree(
                backbone.prompt(sample),
                (backbone.tokenize(sample.teacher_parts.render()), students[sample.key]),
            )
            for sample in run.batch
        ]
        metrics = _propagate(backbone, optimizer, trees, config.dpo_beta)
        learning_rate = learning_rate_at(config.optim, step, config.steps)
        metrics |= optimizer_step(
            optimizer, backbone.policy_parameters(), learning_rate, config.optim.max_grad_norm
        )
        num_trained = sum(tree.num_tokens for tree in trees)
        metrics |= {
            "learning_rate": learning_rate,
            "num_tokens": sum(len(branch) for tree in trees for branch in tree.branches),
            "train_tokens_per_s": num_trained / (time.perf_counter() - started_s),
        }
        run.log("align", step, metrics)
    backbone.drop_adapter(REFERENCE)
    run.save_final("align", {"policy": backbone.adapter_state()})


def _propagate(
    backbone: Backbone, optimizer: Optimizer, trees: Sequence[Tree], beta: float
) -> dict[str, float]:
    """Propagate the mean loss of all pairs, one of each tree; return the metrics."""

    def backward(shared: Sequence[Tree]) -> list[dict[str, float]]:
        packs = split_trees(shared, backbone.config.max_pack_tokens, branches_per_unit=2)
        return [_backward(backbone, optimizer, pack_trees(p), beta, len(trees)) for p in packs]

    metrics: dict[str, float] = {}
    for pack_metrics in share_work(trees, backward):
        for name, value in pack_metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
    return metrics


def _static_students(context: Context) -> dict[str, Tensor]:
    """Return the token ids of the SFT policy's one answer, by the key of each row that training visits."""
    config = context.config.align
    visited = _rows(context, 0, config.steps * config.prompts_per_step)
    groups = sample_in_pieces(
        context.backbone,
        list({sample.key: sample for sample in visited}.values()),
        with_progress=context.run.with_progress,
        description="sampling static pairs",
        group_size=1,
        sampling=context.config.sampling,
        seed=(context.config.seed, "align", "static"),
    )
    return {group.sample.key: torch.tensor(group.rollouts[0].token_ids) for group in groups}


def _rows(context: Context, step: int, count: int) -> list[Sample]:
    return samples_at(context.task.align, step, count, context.config.seed, "align")


def _backward(
    backbone: Backbone, optimizer: Optimizer, pack: Pack, beta: float, num_pairs: int
) -> dict[str, float]:
    """Propagate this pack's share of the loss; return its share of the metrics, by TRL's names."""
    with torch.no_grad(), backbone.role("reference"):
        reference_K2 = branch_sums(predicted_logprobs(backbone, pack), pack).view(-1, 2)
    policy_K2 = branch_sums(predicted_logprobs(backbone, pack), pack).view(-1, 2)
    loss_K, reward_K2 = dpo_loss(policy_K2, reference_K2, beta)
    loss = loss_K.sum() / num_pairs
    optimizer.backward(loss)
    margin_K = reward_K2[:, 0] - reward_K2[:, 1]
    return {
        "loss": float(loss.detach()),
        "rewards/chosen": float(reward_K2[:, 0].sum()) / num_pairs,
        "rewards/rejected": float(reward_K2[:, 1].sum()) / num_pairs,
        "rewards/margins": float(margin_K.sum()) / num_pairs,
        "rewards/accuracies": float((margin_K > 0).sum()) / num_pairs,
    }
