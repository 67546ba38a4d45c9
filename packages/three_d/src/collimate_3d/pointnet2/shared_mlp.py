"""A perceptron that all points share: 1 x 1 convolutions as matrices, batch norm and ReLU, channels last.

Parameters have the shapes and names of published convolutions; the arithmetic is that of a matrix a point, which needs
no transposed copies.

Shape legend: C D channels.
"""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear


class SharedMLP(nn.Module):
    """Layers named as in VoteNet: `layer0.conv.weight`, `layer0.bn.bn.weight`, without bias.

    Args:
        widths: channels of the input and of each layer.
    """

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.count = len(widths) - 1
        for number, (width_in, width) in enumerate(pairwise(widths)):
            convolution = nn.Conv2d(width_in, width, 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight)  # VoteNet, pointnet2/pytorch_utils.py
            norm = nn.ModuleDict({"bn": nn.BatchNorm1d(width)})
            self.add_module(f"layer{number}", nn.ModuleDict({"conv": convolution, "bn": norm}))

    def forward(self, rows: Float[Tensor, "*shape C"]) -> Float[Tensor, "*shape D"]:
        for number in range(self.count):
            layer = self.get_submodule(f"layer{number}")
            rows = pointwise(rows, layer.conv, layer.bn.bn)  # type: ignore[arg-type]
        return rows


def pointwise(rows: Float[Tensor, "*shape C"], convolution: nn.Module, norm: nn.Module) -> Float[Tensor, "*shape D"]:
    """One layer: a 1 x 1 convolution, batch norm over all rows, ReLU."""
    shape = rows.shape[:-1]
    flat = linear(rows.flatten(0, -2), convolution.weight.flatten(1), convolution.bias)  # type: ignore[arg-type]
    return norm(flat).relu().view(*shape, -1)
