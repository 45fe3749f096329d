"""Log-probs of packed completions through `triton_kernels`: no [tokens, vocab] tensor is ever made.

Shape letters as in packing.py: N branch tokens, F flat positions, D hidden size.
"""

from __future__ import annotations

from torch import Tensor

import triton_kernels as tk
from prism_lite.models.families.qwen3_vl import Core
from prism_lite.models.packing import Pack


def pack_logprobs(core: Core, pack: Pack, hidden_FD: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-prob of every branch token of a pack.

    Args:
        core: the Qwen3-VL whose frozen head is used.
        hidden_FD: from `forward_pack`.
        temperature: logits are divided by it; greedy completions (0) are judged at 1.

    Returns:
        logprob_N: float32, natural log, differentiable in `hidden_FD`.
    """
    device = hidden_FD.device
    return tk.token_logprobs(
        hidden_FD[pack.predictor_N.to(device)],
        core.get_output_embeddings().weight,
        pack.target_N.to(device),
        temperature=temperature or 1.0,
    )
