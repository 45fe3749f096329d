"""Token log-probs and LoRA-expert routing, differentiable, without a [T, vocab] tensor; decoding.

    import triton_kernels as tk
    logprob_T = tk.token_logprobs(hidden_TD, head_VD, ids_T)
    routing = tk.route_topk(router_logits_TE, 2, allowed=is_own_group_TE)
    delta_TN = tk.lora_experts(x_TD, A_ErD, B_ENr, routing.weights, scale=2.0)

NAME.py has an operation's checks, autograd and plain torch path (CPU, or no Triton; where it is long, in
NAME_torch.py), NAME_triton.py its kernels, imported only to launch one: this package works without Triton.
`triton_kernels.reference` has eager versions of the differentiable ones, with the same signatures.
"""

from triton_kernels._common import mm_float32, why_no_triton
from triton_kernels.decoding import (
    add_rms_norm,
    merge_halves,
    rotate_and_store,
    rotate_heads,
    swiglu,
)
from triton_kernels.logprob import token_logprobs
from triton_kernels.lora import lora_experts
from triton_kernels.routing import route_topk
from triton_kernels.types import IGNORED_ID, Routing

__all__ = [
    "IGNORED_ID",
    "Routing",
    "add_rms_norm",
    "lora_experts",
    "merge_halves",
    "mm_float32",
    "rotate_and_store",
    "rotate_heads",
    "route_topk",
    "swiglu",
    "token_logprobs",
    "why_no_triton",
]
