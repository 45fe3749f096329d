"""One policy update from a batch of groups and their advantages: shared by alignment and RLVR.

Shape letters: R rollouts, N completion tokens of one pack.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from prism_lite.config import OptimConfig
from prism_lite.logprobs import pack_logprobs
from prism_lite.losses import PolicyLossConfig, kl_k3, policy_loss
from prism_lite.models.backbone import Backbone
from prism_lite.models.packing import Pack, Tree, pack_trees, split_trees
from prism_lite.optim import Optimizer, mean_of, optimizer_step
from prism_lite.types import Group


def update_policy(
    backbone: Backbone,
    optimizer: Optimizer,
    groups: Sequence[Group],
    advantage_R: Tensor,
    *,
    system_prompt: str,
    temperature: float,
    optim: OptimConfig,
    learning_rate: float,
    loss: PolicyLossConfig,
    num_minibatches: int = 1,
    kl_weight: float = 0.0,
) -> dict[str, float]:
    """Take `num_minibatches` optimizer steps on these rollouts.

    With one minibatch the old log-probs are the policy's own and the ratio is 1: no extra pass. With
    more they are computed once, before the first step. Groups whose advantages are all zero are not
    forwarded, unless a KL term needs them; they count in the token mean all the same.

    Args:
        groups: rollouts that the current policy sampled.
        advantage_R: float32 [R], rollout after rollout.
        temperature: the one they were sampled at.

    Returns:
        Metrics, means over the minibatches: loss, grad_norm, clip ratios, kl; and
        train_tokens_per_s, prompt and completion tokens of one forward and backward by seconds.
    """
    started_s = time.perf_counter()
    group_size = len(groups[0].rollouts)
    advantage_PG = advantage_R.view(-1, group_size)
    trees = [_tree(backbone, group, system_prompt) for group in groups]
    used = [
        (tree, advantage_G)
        for tree, advantage_G in zip(trees, advantage_PG, strict=True)
        if kl_weight > 0 or bool(advantage_G.any())
    ]
    num_minibatches = min(num_minibatches, max(1, len(used)))
    minibatches = [used[i::num_minibatches] for i in range(num_minibatches)]
    num_tokens = sum(len(branch) for tree in trees for branch in tree.branches) / num_minibatches
    prepared = [
        [_Piece(*piece) for piece in _pieces(backbone, minibatch)] for minibatch in minibatches
    ]
    if num_minibatches > 1:
        for piece in (piece for pieces in prepared for piece in pieces):
            piece.old_logprob_N = _logprobs_without_grad(backbone, piece.pack, temperature)
    if kl_weight > 0:
        with backbone.role("reference"):
            for piece in (piece for pieces in prepared for piece in pieces):
                piece.reference_logprob_N = _logprobs_without_grad(
                    backbone, piece.pack, temperature
                )
    totals: dict[str, float] = {}
    stepped: list[dict[str, float]] = []
    for pieces in prepared:
        for piece in pieces:
            metrics = _backward(
                backbone, optimizer, piece, temperature, loss, kl_weight, num_tokens
            )
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value / num_minibatches
        if pieces:
            parameters = backbone.policy_parameters()
            stepped.append(
                optimizer_step(optimizer, parameters, learning_rate, optim.max_grad_norm)
            )
    num_trained = sum(tree.num_tokens for tree, _ in used)
    return (totals | mean_of(stepped)) | {
        "learning_rate": learning_rate,
        "train_tokens_per_s": num_trained / (time.perf_counter() - started_s),
    }


class _Piece:
    """One pack with what its loss needs."""

    def __init__(self, pack: Pack, advantage_N: Tensor) -> None:
        self.pack = pack
        self.advantage_N = advantage_N
        self.old_logprob_N: Tensor | None = None
        self.reference_logprob_N: Tensor | None = None


def _tree(backbone: Backbone, group: Group, system_prompt: str) -> Tree:
    branches = tuple(torch.tensor(rollout.token_ids) for rollout in group.rollouts)
    return Tree(backbone.prompt(group.sample, system_prompt), branches)


def _pieces(
    backbone: Backbone, minibatch: Sequence[tuple[Tree, Tensor]]
) -> list[tuple[Pack, Tensor]]:
    advantages = iter([float(a) for _, advantage_G in minibatch for a in advantage_G])
    pieces = []
    trees = [tree for tree, _ in minibatch]
    for pack_of_trees in split_trees(trees, backbone.config.max_pack_tokens) if trees else []:
        pack = pack_trees(pack_of_trees)
        advantage_R = torch.tensor([next(advantages) for _ in range(pack.num_branches)])
        pieces.append((pack, advantage_R[pack.branch_N].to(backbone.device)))
    return pieces


@torch.no_grad()
def _logprobs_without_grad(backbone: Backbone, pack: Pack, temperature: float) -> Tensor:
    return pack_logprobs(backbone.core, pack, backbone.hidden_states(pack), temperature=temperature)


def _backward(
    backbone: Backbone,
    optimizer: Optimizer,
    piece: _Piece,
    temperature: float,
    config: PolicyLossConfig,
    kl_weight: float,
    num_tokens: float,
) -> dict[str, float]:
    hidden_FD = backbone.hidden_states(piece.pack)
    logprob_N = pack_logprobs(backbone.core, piece.pack, hidden_FD, temperature=temperature)
    old_logprob_N = logprob_N.detach() if piece.old_logprob_N is None else piece.old_logprob_N
    loss, metrics = policy_loss(
        logprob_N, old_logprob_N, piece.advantage_N, config, num_tokens=num_tokens
    )
    if piece.reference_logprob_N is not None:
        kl = kl_k3(logprob_N, piece.reference_logprob_N).sum() / num_tokens
        loss = loss + kl_weight * kl
        metrics["kl"] = float(kl.detach())
    optimizer.backward(loss)
    return metrics | {"loss": float(loss.detach())}
