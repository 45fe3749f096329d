"""Values that the public functions return, and the id that they skip."""

from typing import NamedTuple

from torch import Tensor

IGNORED_ID = -100  # torch's cross-entropy convention


class Routing(NamedTuple):
    """Where each token goes. Shape letters: T tokens, E experts.

    Fields:
        weights: float32 [T, E], softmax share of the chosen experts, 0 elsewhere; differentiable.
        load: float32 [E], fraction of the assignments that each expert received (sums to 1; all 0
            when no token may use any expert); carries no gradient.
        balance_loss: float32 scalar, 1 when the load is even; differentiable (see `route_topk`).
    """

    weights: Tensor
    load: Tensor
    balance_loss: Tensor


# 16-bit gradients of the logits are scaled by this before their product: float16 flushes what is
# below 6e-8, and the average probability in a vocabulary of 150k is 7e-6 (a subnormal number).
FP16_SCALE = 1024.0


class Sweep(NamedTuple):
    """One pass over the vocabulary. float32 but for `direction`.

    Fields:
        logprob: [T]
        lse: [T], log of the sum of exponentials of the logits; needed with entropy only.
        entropy: [T] in nats, or None if not asked for.
        direction: [T, D] in the dtype asked for, d logprob_t / d hidden_t, or None.
    """

    logprob: Tensor
    lse: Tensor
    entropy: Tensor | None
    direction: Tensor | None


class RouteResult(NamedTuple):
    """What the forward pass hands over. All float32.

    Fields:
        weights: [T, E]
        stats: [3, E]: tokens sent to e (a token with k experts counts 1/k for each), sum of e's
            softmax share over the allowed experts, tokens an even router would send to e.
    """

    weights: Tensor
    stats: Tensor
