"""One policy update from a batch of groups and their advantages: shared by alignment and RLVR.

Shape letters: R rollouts, N completion tokens of one pack, D hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import triton_kernels as tk
from prism_lite.config import KlKind, OptimConfig
from prism_lite.models.backbone import Backbone
from prism_lite.models.optim import Optimizer, mean_of, optimizer_step
from prism_lite.models.packing import Pack, Tree, pack_trees, split_trees
from prism_lite.policy.full_kl import vocabulary_kl
from prism_lite.policy.losses import BatchSize, LossInputs, PolicyLossConfig, policy_loss, token_kl
from prism_lite.types import Group, Rollout


def update_policy(
    backbone: Backbone,
    optimizer: Optimizer,
    groups: Sequence[Group],
    advantage_R: Tensor,
    *,
    temperature: float,
    optim: OptimConfig,
    learning_rate: float,
    loss: PolicyLossConfig,
    num_minibatches: int = 1,
    mask_truncated: bool = False,
) -> dict[str, float]:
    """Take `num_minibatches` optimizer steps on these rollouts.

    With one minibatch the old log-probs are the policy's own and the ratio is 1: no extra pass. With
    more they are computed once, before the first step. Groups whose advantages are all zero are not
    forwarded, unless a KL term or an entropy bonus needs them; they count in the loss's mean all the
    same.

    Args:
        groups: rollouts that the current policy sampled.
        advantage_R: float32 [R], rollout after rollout.
        temperature: the one they were sampled at.
        mask_truncated: rollouts cut at the length limit take no part in the loss.

    Returns:
        Metrics, means over the minibatches: loss, grad_norm, clip ratios, kl, entropy (with a bonus
        only); num_optimizer_steps; and train_tokens_per_s, prompt and completion tokens of one
        forward and backward by seconds. Without groups: the learning rate alone, nothing is done.
    """
    if not groups:
        return {"learning_rate": learning_rate}
    started_s = time.perf_counter()
    num_rollouts = [len(group.rollouts) for group in groups]
    batch = [
        _Group(_tree(backbone, group), group.rollouts, advantage_G, mask_truncated)
        for group, advantage_G in zip(groups, advantage_R.split(num_rollouts), strict=True)
    ]
    needs_all = loss.kl_weight > 0 or loss.entropy_weight > 0
    used = [group for group in batch if needs_all or bool(group.advantage_G.any())]
    prepared = _minibatches(backbone, batch, used, num_minibatches)
    num_minibatches = len(prepared)
    _note_other_policies(backbone, prepared, temperature, loss)
    totals: dict[str, float] = {}
    stepped: list[dict[str, float]] = []
    for pieces in prepared:
        for piece in pieces:
            metrics = _backward(backbone, optimizer, piece, temperature, loss)
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value / num_minibatches
        if pieces:
            parameters = backbone.policy_parameters()
            stepped.append(
                optimizer_step(optimizer, parameters, learning_rate, optim.max_grad_norm)
            )
    num_trained = sum(group.tree.num_tokens for group in used)
    return (totals | mean_of(stepped)) | {
        "learning_rate": learning_rate,
        "num_optimizer_steps": sum(map(bool, prepared)),
        "train_tokens_per_s": num_trained / (time.perf_counter() - started_s),
    }


@torch.no_grad()
def rollout_kl(
    backbone: Backbone,
    groups: Sequence[Group],
    kind: KlKind,
    *,
    temperature: float,
) -> Tensor:
    """KL(policy || reference) of each rollout, summed over its tokens, in nats: float32 [R].

    For a KL term inside the reward. Costs a forward of the policy and one of the reference.
    """
    trees = [_tree(backbone, group) for group in groups]
    found = []
    for packed in split_trees(trees, backbone.config.max_pack_tokens):
        pack = pack_trees(packed)
        logprob_N, hidden_ND = _states_without_grad(backbone, pack, temperature)
        with backbone.role("reference"):
            reference_N, reference_ND = _states_without_grad(backbone, pack, temperature)
        if kind == "full":
            kl_N = vocabulary_kl(
                hidden_ND, reference_ND, backbone.head_weight, temperature=temperature
            )
        else:
            kl_N = token_kl(logprob_N, reference_N, kind)
        sum_R = torch.zeros(pack.num_branches, device=kl_N.device)
        found.append(sum_R.index_add(0, pack.branch_N.to(kl_N.device), kl_N))
    return torch.cat(found).cpu()


@dataclass(frozen=True, eq=False)
class _Group:
    """A group with its advantages, laid out as a tree."""

    tree: Tree
    rollouts: tuple[Rollout, ...]
    advantage_G: Tensor
    mask_truncated: bool

    @property
    def is_counted(self) -> list[bool]:
        return [not self.mask_truncated or r.finish == "end" for r in self.rollouts]


@dataclass(eq=False)
class _Piece:
    """One pack with what its loss needs."""

    pack: Pack
    advantage_R: Tensor
    is_counted_R: Tensor
    size: BatchSize
    old_logprob_N: Tensor | None = None
    reference: Tensor | None = None  # log-probs [N], or for the full KL hidden states [N, D]


def _num_counted(groups: Sequence[_Group]) -> int:
    """Tokens of the rollouts that take part in the loss, 1 where there are none."""
    return max(
        1,
        sum(
            len(rollout.token_ids)
            for group in groups
            for rollout, is_counted in zip(group.rollouts, group.is_counted, strict=True)
            if is_counted
        ),
    )


def _tree(backbone: Backbone, group: Group) -> Tree:
    branches = tuple(torch.tensor(rollout.token_ids) for rollout in group.rollouts)
    return Tree(backbone.prompt(group.sample), branches)


def _pieces(backbone: Backbone, minibatch: Sequence[_Group], size: BatchSize) -> list[_Piece]:
    if not minibatch:
        return []
    pieces = []
    advantage_R = torch.cat([group.advantage_G for group in minibatch]).to(backbone.device)
    is_counted_R = torch.tensor([c for group in minibatch for c in group.is_counted])
    start = 0
    trees = [group.tree for group in minibatch]
    for packed in split_trees(trees, backbone.config.max_pack_tokens):
        pack = pack_trees(packed)
        here = slice(start, start + pack.num_branches)
        start += pack.num_branches
        is_counted = is_counted_R[here].to(backbone.device)
        pieces.append(_Piece(pack, advantage_R[here], is_counted, size))
    return pieces


def _minibatches(
    backbone: Backbone, batch: Sequence[_Group], used: Sequence[_Group], num_minibatches: int
) -> list[list[_Piece]]:
    """The packs of each minibatch; groups that are not forwarded are dealt out too, as counts."""
    unused = [group for group in batch if group not in used]
    num = min(num_minibatches, max(1, len(used)))
    num_rollouts = sum(len(group.rollouts) for group in batch)
    return [
        _pieces(
            backbone,
            used[i::num],
            BatchSize(
                num_tokens=_num_counted([*used, *unused][i::num]),
                mean_tokens=_num_counted(batch) / num,
                mean_rollouts=num_rollouts / num,
            ),
        )
        for i in range(num)
    ]


def _note_other_policies(
    backbone: Backbone,
    prepared: Sequence[Sequence[_Piece]],
    temperature: float,
    loss: PolicyLossConfig,
) -> None:
    """Before the first step: the old policy, where there are several steps, and the reference."""
    pieces = [piece for minibatch in prepared for piece in minibatch]
    if len(prepared) > 1:
        for piece in pieces:
            piece.old_logprob_N = _states_without_grad(backbone, piece.pack, temperature)[0]
    if loss.kl_weight > 0:
        with backbone.role("reference"):
            for piece in pieces:
                logprob_N, hidden_ND = _states_without_grad(backbone, piece.pack, temperature)
                piece.reference = hidden_ND if loss.kl_kind == "full" else logprob_N


def _predicting_states(backbone: Backbone, pack: Pack) -> Tensor:
    """The hidden states that predict each branch token, [N, D], with their graph."""
    return backbone.hidden_states(pack)[pack.predictor_N.to(backbone.device)]


@torch.no_grad()
def _states_without_grad(
    backbone: Backbone, pack: Pack, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probs [N] of the branch tokens under the active role, and the states [N, D] they are of."""
    hidden_ND = _predicting_states(backbone, pack)
    target_N = pack.target_N.to(hidden_ND.device)
    weight_VD = backbone.head_weight
    return tk.token_logprobs(hidden_ND, weight_VD, target_N, temperature=temperature), hidden_ND


def _backward(
    backbone: Backbone,
    optimizer: Optimizer,
    piece: _Piece,
    temperature: float,
    config: PolicyLossConfig,
) -> dict[str, float]:
    hidden_ND = _predicting_states(backbone, piece.pack)
    target_N = piece.pack.target_N.to(hidden_ND.device)
    weight_VD, entropy_N, kl_N = backbone.head_weight, None, None
    if config.entropy_weight > 0:
        logprob_N, entropy_N = tk.token_logprobs(
            hidden_ND, weight_VD, target_N, temperature=temperature, return_entropy=True
        )
    else:
        logprob_N = tk.token_logprobs(hidden_ND, weight_VD, target_N, temperature=temperature)
    if piece.reference is not None:
        if config.kl_kind == "full":
            kl_N = vocabulary_kl(hidden_ND, piece.reference, weight_VD, temperature=temperature)
        else:
            kl_N = token_kl(logprob_N, piece.reference, config.kl_kind)
    inputs = LossInputs(
        policy_logprob_N=logprob_N,
        old_logprob_N=logprob_N.detach() if piece.old_logprob_N is None else piece.old_logprob_N,
        advantage_R=piece.advantage_R,
        rollout_N=piece.pack.branch_N.to(hidden_ND.device),
        is_counted_R=piece.is_counted_R,
        size=piece.size,
        kl_N=kl_N,
        entropy_N=entropy_N,
    )
    loss, metrics = policy_loss(inputs, config)
    optimizer.backward(loss)
    return metrics | {"loss": float(loss.detach())}
