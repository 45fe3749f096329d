"""Log-probs of packed completions through `triton_kernels`: no [tokens, vocab] tensor is ever made.

Shape letters as in packing.py: N branch tokens, R branches, F flat positions, D hidden size.
"""

from __future__ import annotations

from torch import Tensor

import triton_kernels as tk
from prism_lite.models.backbone import Backbone
from prism_lite.models.packing import Pack


def predicted_logprobs(backbone: Backbone, pack: Pack, *, temperature: float = 1.0) -> Tensor:
    """Return the log-prob of every branch token of a pack under the active role.

    Args:
        temperature: divides the logits; above 0.

    Returns:
        logprob_N: float32, natural log, differentiable in the active adapter.
    """
    return tk.token_logprobs(*_head_inputs(backbone, pack), temperature=temperature)


def predicted_logprobs_and_entropies(
    backbone: Backbone, pack: Pack, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return `predicted_logprobs` and the entropy (float32 [N], nats) of each token's distribution."""
    inputs = _head_inputs(backbone, pack)
    return tk.token_logprobs(*inputs, temperature=temperature, return_entropy=True)


def branch_sums(value_N: Tensor, pack: Pack) -> Tensor:
    """Return the sum over the tokens of each branch of a pack, [R]."""
    zero_R = value_N.new_zeros(pack.num_branches)
    return zero_R.index_add(0, pack.branch_N.to(value_N.device), value_N)


def _head_inputs(backbone: Backbone, pack: Pack) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hidden states [N, D] that predict the branch tokens, the head, and the tokens."""
    hidden_FD = backbone.hidden_states(pack)
    device = hidden_FD.device
    hidden_ND = hidden_FD[pack.predictor_N.to(device)]
    return hidden_ND, backbone.head_weight, pack.target_N.to(device)
