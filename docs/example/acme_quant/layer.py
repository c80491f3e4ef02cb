"""A linear layer whose weight is stored in 8 bits."""

import torch
from torch import nn


class Int8Linear(nn.Linear):
    """`weight` is int8 of shape (outputs, inputs), `scale` a factor a row; symmetric, so there is no zero point."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        scale = dense.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.weight = nn.Parameter((dense.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = dense.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product with the weight as it was rounded, in x's own precision."""
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)
