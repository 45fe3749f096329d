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
