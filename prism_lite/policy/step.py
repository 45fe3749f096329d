"""One policy update from a batch of groups and their advantages: shared by alignment and RLVR.

Shape letters: R rollouts, G rollouts of one group, N completion tokens of one pack.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_lite.config import KlKind, OptimConfig, PolicyLossConfig, SamplingConfig
from prism_lite.models.backbone import Backbone
from prism_lite.models.device import release_unused
from prism_lite.models.optim import Optimizer, mean_of, optimizer_step
from prism_lite.models.packing import Pack, Tree, pack_trees, split_trees
from prism_lite.policy.logprobs import (
    branch_sums,
    predicted_logprobs,
    predicted_logprobs_and_entropies,
)
from prism_lite.policy.losses import (
    BatchSize,
    LossInputs,
    policy_loss,
    shaped_teacher_logprob,
    token_kl,
)
from prism_lite.processes import gather_work, share, share_work, together
from prism_lite.types import Group


def update_policy(
    backbone: Backbone,
    optimizer: Optimizer,
    groups: Sequence[Group],
    advantage_R: Tensor,
    *,
    sampling: SamplingConfig,
    optim: OptimConfig,
    learning_rate: float,
    loss: PolicyLossConfig,
    num_minibatches: int = 1,
    mask_truncated: bool = False,
    kl_weight: float = 0.0,
    kl_kind: KlKind = "k3",
) -> dict[str, float]:
    """Take `num_minibatches` optimizer steps on these rollouts.

    With one minibatch the old log-probs are the policy's own and the ratio is 1: no extra pass. With
    more they are computed once, before the first step. Groups whose advantages are all zero are not
    forwarded, unless a KL term or an entropy bonus needs them; they count in the loss's mean all the
    same.

    Args:
        groups: rollouts that the current policy sampled.
        advantage_R: float32 [R], rollout after rollout.
        sampling: the settings they were sampled with.
        mask_truncated: rollouts cut at the length limit take no part in the loss.
        kl_weight: of the KL to the role "reference" in the loss; 0: the reference is not run.

    Returns:
        Metrics, means over the minibatches: loss, grad_norm, clip ratios, kl, entropy (with a bonus
        only); num_optimizer_steps; and train_tokens_per_s, prompt and completion tokens of one
        forward and backward by seconds. Without groups: the learning rate alone, nothing is done.
    """
    if not groups:
        return {"learning_rate": learning_rate}
    release_unused(backbone.device)
    started_s = time.perf_counter()
    advantages = advantage_R.split([len(group.rollouts) for group in groups])
    batch = []
    for group, advantage_G in zip(groups, advantages, strict=True):
        is_counted = [not mask_truncated or r.finish == "end" for r in group.rollouts]
        is_teacher = [rollout.is_teacher for rollout in group.rollouts]
        batch.append(
            _Group(
                _tree(backbone, group),
                advantage_G,
                torch.tensor(is_counted),
                torch.tensor(is_teacher),
            )
        )
    needs_all = kl_weight > 0 or loss.entropy_weight > 0
    forwarded = [group for group in batch if needs_all or bool(group.advantage_G.any())]
    num_minibatches = min(num_minibatches, max(1, len(forwarded)))
    limit, temperature = sampling.max_completion_tokens, sampling.temperature

    def prepare() -> list[list[_Piece]]:
        pieces = _minibatches(backbone, batch, forwarded, num_minibatches, limit)
        _add_other_logprobs(backbone, pieces, temperature, with_reference=kl_weight > 0)
        return pieces

    minibatches = together(prepare)
    totals: dict[str, float] = {}
    stepped: list[dict[str, float]] = []
    for pieces in minibatches if forwarded else ():
        for metrics in gather_work(
            lambda pieces=pieces: [
                _backward(backbone, optimizer, piece, temperature, loss, kl_weight, kl_kind)
                for piece in pieces
            ]
        ):
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value / num_minibatches
        parameters = backbone.policy_parameters()
        stepped.append(optimizer_step(optimizer, parameters, learning_rate, optim.max_grad_norm))
    num_trained = sum(group.tree.num_tokens for group in forwarded)
    return (totals | mean_of(stepped)) | {
        "learning_rate": learning_rate,
        "num_optimizer_steps": len(stepped),
        "train_tokens_per_s": num_trained / (time.perf_counter() - started_s),
    }


@torch.no_grad()
def rollout_kl(
    backbone: Backbone, groups: Sequence[Group], kind: KlKind, *, temperature: float
) -> Tensor:
    """Return KL(policy || reference) of each rollout, summed over its tokens, in nats: float32 [R].

    For a KL term inside the reward. Costs a forward of the policy and one of the reference.
    """

    def pack_kls(shared: Sequence[Group]) -> list[Tensor]:
        trees = [_tree(backbone, group) for group in shared]
        kls = []
        for pack_of_trees in split_trees(trees, backbone.config.max_pack_tokens):
            pack = pack_trees(pack_of_trees)
            policy_N = predicted_logprobs(backbone, pack, temperature=temperature)
            with backbone.role("reference"):
                reference_N = predicted_logprobs(backbone, pack, temperature=temperature)
            kl_N = token_kl(policy_N, reference_N, kind)
            kls.append(branch_sums(kl_N, pack).cpu())
        return kls

    return torch.cat(share_work(groups, pack_kls))


@dataclass(frozen=True, eq=False)
class _Group:
    """A group laid out as a tree, its advantages, which rollouts count, which the teacher wrote."""

    tree: Tree
    advantage_G: Tensor
    is_counted_G: Tensor
    is_teacher_G: Tensor


@dataclass(eq=False)
class _Piece:
    """One pack with what its loss needs."""

    pack: Pack
    advantage_R: Tensor
    is_counted_R: Tensor
    is_teacher_R: Tensor
    size: BatchSize
    old_logprob_N: Tensor | None = None
    reference_logprob_N: Tensor | None = None


def _tree(backbone: Backbone, group: Group) -> Tree:
    branches = tuple(torch.tensor(rollout.token_ids) for rollout in group.rollouts)
    return Tree(backbone.prompt(group.sample), branches)


def _num_counted(groups: Sequence[_Group]) -> int:
    """Return the number of tokens that take part in the loss, 1 where there are none."""
    num_tokens = 0
    for group in groups:
        length_G = torch.tensor([len(branch) for branch in group.tree.branches])
        num_tokens += int(length_G[group.is_counted_G].sum())
    return max(1, num_tokens)


def _minibatches(
    backbone: Backbone,
    batch: Sequence[_Group],
    forwarded: Sequence[_Group],
    num_minibatches: int,
    max_completion_tokens: int,
) -> list[list[_Piece]]:
    """Return the packs of this process's share of each minibatch.

    The groups of the other processes and those that are not forwarded count in its size.
    """
    others = [group for group in batch if group not in forwarded]
    num_rollouts = sum(len(group.tree.branches) for group in batch)
    minibatches = []
    for i in range(num_minibatches):
        size = BatchSize(
            num_tokens=_num_counted([*forwarded, *others][i::num_minibatches]),
            mean_tokens=_num_counted(batch) / num_minibatches,
            mean_rollouts=num_rollouts / num_minibatches,
            max_completion_tokens=max_completion_tokens,
        )
        shared = share(forwarded[i::num_minibatches])
        minibatches.append(_pieces(backbone, shared, size))
    return minibatches


def _pieces(backbone: Backbone, groups: Sequence[_Group], size: BatchSize) -> list[_Piece]:
    if not groups:
        return []
    trees = [group.tree for group in groups]
    packs = [pack_trees(packed) for packed in split_trees(trees, backbone.config.max_pack_tokens)]
    num_rollouts = [pack.num_branches for pack in packs]
    advantage_R = torch.cat([group.advantage_G for group in groups]).to(backbone.device)
    is_counted_R = torch.cat([group.is_counted_G for group in groups]).to(backbone.device)
    is_teacher_R = torch.cat([group.is_teacher_G for group in groups]).to(backbone.device)
    rows = zip(
        packs,
        advantage_R.split(num_rollouts),
        is_counted_R.split(num_rollouts),
        is_teacher_R.split(num_rollouts),
        strict=True,
    )
    return [_Piece(*row, size) for row in rows]


@torch.no_grad()
def _add_other_logprobs(
    backbone: Backbone,
    minibatches: Sequence[Sequence[_Piece]],
    temperature: float,
    *,
    with_reference: bool,
) -> None:
    """Compute log-probs before the first step: the old policy's if there are several, the reference's."""
    pieces = [piece for minibatch in minibatches for piece in minibatch]
    if len(minibatches) > 1:
        for piece in pieces:
            piece.old_logprob_N = predicted_logprobs(backbone, piece.pack, temperature=temperature)
    if with_reference:
        with backbone.role("reference"):
            for piece in pieces:
                piece.reference_logprob_N = predicted_logprobs(
                    backbone, piece.pack, temperature=temperature
                )


def _backward(
    backbone: Backbone,
    optimizer: Optimizer,
    piece: _Piece,
    temperature: float,
    config: PolicyLossConfig,
    kl_weight: float,
    kl_kind: KlKind,
) -> dict[str, float]:
    """Propagate this piece's share of the loss; return its share of the metrics."""
    pack, entropy_N, kl_N = piece.pack, None, None
    if config.entropy_weight > 0:
        logprob_N, entropy_N = predicted_logprobs_and_entropies(
            backbone, pack, temperature=temperature
        )
    else:
        logprob_N = predicted_logprobs(backbone, pack, temperature=temperature)
    if piece.reference_logprob_N is not None:
        kl_N = token_kl(logprob_N, piece.reference_logprob_N, kl_kind)
    old_logprob_N = logprob_N.detach() if piece.old_logprob_N is None else piece.old_logprob_N
    rollout_N = pack.branch_N.to(logprob_N.device)
    if piece.is_teacher_R.any():
        is_teacher_N = piece.is_teacher_R[rollout_N]
        logprob_N = torch.where(is_teacher_N, shaped_teacher_logprob(logprob_N), logprob_N)
        old_logprob_N = torch.where(is_teacher_N, 0.0, old_logprob_N)
    inputs = LossInputs(
        policy_logprob_N=logprob_N,
        old_logprob_N=old_logprob_N,
        advantage_R=piece.advantage_R,
        rollout_N=rollout_N,
        is_counted_R=piece.is_counted_R,
        size=piece.size,
        kl_N=kl_N,
        kl_weight=kl_weight,
        entropy_N=entropy_N,
    )
    loss, metrics = policy_loss(inputs, config)
    optimizer.backward(loss)
    return metrics | {"loss": float(loss.detach())}
