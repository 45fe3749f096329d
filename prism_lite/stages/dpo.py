"""Stage 3 by `align.method: dpo`: the teacher preferred to one frozen sample of the SFT policy.

The low-resource baseline of METHOD section 6 (as SODA, arXiv 2604.03873): the student is sampled once,
before the first step; no discriminator, no rollouts during training.

Shape letters: K pairs of one pack (branches 2 k and 2 k + 1: teacher, student), N their tokens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_lite.models.backbone import REFERENCE, Backbone
from prism_lite.models.optim import Optimizer, learning_rate_at, make_optimizer, optimizer_step
from prism_lite.models.packing import Pack, Tree, pack_trees, split_trees
from prism_lite.policy.logprobs import pack_logprobs
from prism_lite.policy.losses import dpo_loss
from prism_lite.runs.checkpoint import Trained
from prism_lite.sampling.rollouts import sample_in_pieces
from prism_lite.seeding import batch_at
from prism_lite.stages.context import Context
from prism_lite.types import Sample


@dataclass(frozen=True, eq=False)
class Pair:
    """A prompt with the teacher's completion and the student's, as token ids."""

    sample: Sample
    teacher: Tensor
    student: Tensor


def run_dpo(context: Context) -> None:
    """Train the SFT policy on pairs (teacher, SFT sample); the reference is the SFT policy."""
    config, backbone, run = context.config.align, context.backbone, context.run
    context.load_policy("sft")
    backbone.freeze_copy(REFERENCE)
    pairs = static_pairs(context)
    parameters = backbone.policy_parameters()
    optimizer = make_optimizer(parameters, config.optim, scales_loss=backbone.precision.scales_loss)
    start = context.resume("align", {"policy": optimizer})

    def trained() -> Trained:
        return Trained({"policy": backbone.adapter_state()}, {"policy": optimizer})

    for step in run.steps("align", start, config.steps, trained):
        started_s = time.perf_counter()
        samples = _rows(context, step, config.prompts_per_step)
        trees = [_tree(context, pairs[sample.key]) for sample in samples]
        metrics: dict[str, float] = {}
        for packed in split_trees(trees, backbone.config.max_pack_tokens, branches_per_unit=2):
            pack = pack_trees(packed)
            for name, value in _backward(
                backbone, optimizer, pack, config.dpo_beta, len(trees)
            ).items():
                metrics[name] = metrics.get(name, 0.0) + value
        learning_rate = learning_rate_at(config.optim, step, config.steps)
        stepped = optimizer_step(optimizer, parameters, learning_rate, config.optim.max_grad_norm)
        step_time = time.perf_counter() - started_s
        metrics |= stepped | {
            "learning_rate": learning_rate,
            "num_tokens": sum(len(branch) for tree in trees for branch in tree.branches),
            "train_tokens_per_s": sum(tree.num_tokens for tree in trees) / step_time,
        }
        run.log("align", step, metrics)
    backbone.drop_adapter(REFERENCE)
    run.save_final("align", {"policy": backbone.adapter_state()})


def static_pairs(context: Context) -> dict[str, Pair]:
    """The pair of every row that training will visit; the SFT policy answers each prompt once.

    Raises:
        ValueError: a teacher completion is malformed; names the row.
    """
    config = context.config.align
    visited = _rows(context, 0, config.steps * config.prompts_per_step)
    samples = list({sample.key: sample for sample in visited}.values())
    groups = sample_in_pieces(
        context.backbone,
        samples,
        with_progress=context.run.with_progress,
        description="sampling static pairs",
        group_size=1,
        sampling=context.config.sampling,
        seed=(context.config.seed, "align", "static"),
    )
    return {
        group.sample.key: Pair(
            group.sample,
            context.backbone.tokenize(group.sample.teacher_parts.render()),
            torch.tensor(group.rollouts[0].token_ids),
        )
        for group in groups
    }


def _rows(context: Context, step: int, count: int) -> list[Sample]:
    return batch_at(context.task.align, step, count, context.config.seed, "align")


def _tree(context: Context, pair: Pair) -> Tree:
    prompt = context.backbone.prompt(pair.sample)
    return Tree(prompt, (pair.teacher, pair.student))


def _backward(
    backbone: Backbone, optimizer: Optimizer, pack: Pack, beta: float, num_pairs: int
) -> dict[str, float]:
    """Propagate this pack's share of the loss; its share of the metrics, by TRL's names."""
    with torch.no_grad(), backbone.role("reference"):
        reference_K2 = _completion_logprobs(backbone, pack)
    loss_K, reward_K2 = dpo_loss(_completion_logprobs(backbone, pack), reference_K2, beta)
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


def _completion_logprobs(backbone: Backbone, pack: Pack) -> Tensor:
    """Log-prob of each whole branch, [K, 2]."""
    logprob_N = pack_logprobs(backbone.core, pack, backbone.hidden_states(pack))
    sum_R = torch.zeros(pack.num_branches, device=logprob_N.device)
    return sum_R.index_add(0, pack.branch_N.to(logprob_N.device), logprob_N).view(-1, 2)
