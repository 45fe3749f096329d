"""Muon in the parameters' own float type: momentum, orthogonalised by Newton-Schulz steps.

The same update as `torch.optim.Muon`, which iterates in bfloat16: without AVX512 that took two thirds of
the tiny base's training. Matrices of one shape are iterated together.

Shape letters: M matrices of one shape, A rows, B columns.

Source: K. Jordan et al., Muon (2024), https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a quintic with a steep start; singular values near 1
_NUM_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update of each matrix has singular values near 1.

    Args:
        params: matrices.
        lr: multiplied by sqrt(max(1, rows / columns)) for each matrix.
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for (num_rows, num_columns), matrices in by_shape.items():
                update_MAB = orthogonalise(
                    torch.stack([self._momentum_of(p, group["momentum"]) for p in matrices])
                )
                rate = group["lr"] * max(1.0, num_rows / num_columns) ** 0.5
                for parameter, update_AB in zip(matrices, update_MAB, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update_AB, alpha=-rate)

    def _momentum_of(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


def orthogonalise(matrix_MAB: Tensor) -> Tensor:
    """Approximate U V^T of each matrix's U S V^T: singular values from about 0.7 to 1.2."""
    if matrix_MAB.shape[1] > matrix_MAB.shape[2]:
        return orthogonalise(matrix_MAB.mT).mT
    a, b, c = _NEWTON_SCHULZ
    x_MAB = matrix_MAB / torch.linalg.matrix_norm(matrix_MAB, keepdim=True).clamp(min=1e-7)
    for _ in range(_NUM_ITERATIONS):
        gram_MAA = x_MAB @ x_MAB.mT
        x_MAB = a * x_MAB + (b * gram_MAA + c * gram_MAA @ gram_MAA) @ x_MAB
    return x_MAB
