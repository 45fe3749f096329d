"""Named tuples that functions return, and constants that modules share."""

from typing import NamedTuple

from torch import Tensor

IGNORED_ID = -100  # torch's cross-entropy convention


class Routing(NamedTuple):
    """Routing weights of tokens and the load of experts. Shape letters: T tokens, E experts.

    Fields:
        weights: float32 [T, E], softmax share of the chosen experts, 0 elsewhere; differentiable.
        load: float32 [E], fraction of the assignments that each expert received (sums to 1; all 0
            if no token may use any expert); has no gradient.
        balance_loss: float32 scalar, 1 if the load is even; differentiable (see `route_topk`).
    """

    weights: Tensor
    load: Tensor
    balance_loss: Tensor


# Factor of the 16-bit gradients of the logits before their product: float16 rounds numbers below 6e-8
# to 0, and the average probability in a vocabulary of 150k is 7e-6 (a subnormal number).
FP16_SCALE = 1024.0


class Sweep(NamedTuple):
    """Results of one pass over the vocabulary. float32 except `direction`.

    Fields:
        logprob: [T]
        lse: [T], log of the sum of exponentials of the logits; needed with entropy only.
        entropy: [T] in nats, or None if not requested.
        direction: [T, D] in the requested dtype, d logprob_t / d hidden_t, or None.
    """

    logprob: Tensor
    lse: Tensor
    entropy: Tensor | None
    direction: Tensor | None


class RouteResult(NamedTuple):
    """Results of the forward pass. All float32.

    Fields:
        weights: [T, E]
        stats: [3, E]: tokens sent to e (a token with k experts counts 1/k for each), sum of e's
            softmax share over the allowed experts, tokens an even router would send to e.
    """

    weights: Tensor
    stats: Tensor
