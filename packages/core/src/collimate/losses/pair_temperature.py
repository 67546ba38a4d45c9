"""A temperature for each pair of vectors, as AMCL learns (Wang et al. 2024, arXiv 2310.05615).

    τ = l + (u - l) sigmoid(φ(z_i) φ(z_j))

is symmetric, and cheap for any pair. Departures: the released code (LeiWangR/cl) has a network for each head, which
reads both vectors; l is 0.05 where the code has 1e-5, whose 1/τ of 100,000 no training survives.

Shape legend: D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate.configurable import Configurable

Temperature: TypeAlias = Callable[[Float[Tensor, "... D"], Float[Tensor, "... D"]], Float[Tensor, " ..."]]
"""The temperature of each pair of vectors."""


class PairTemperature(nn.Module, Configurable):
    """τ of pairs, by a φ of two layers that all heads share.

    Args:
        dim: D.
        hidden: width of φ; 128 as in the released code.
        low, high: l and u; the code's u is 2.
    """

    def __init__(self, dim: int, hidden: int = 128, low: float = 0.05, high: float = 2.0) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.layers = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden))

    def forward(self, first: Float[Tensor, "... D"], second: Float[Tensor, "... D"]) -> Float[Tensor, " ..."]:
        alike = torch.linalg.vecdot(self.layers(first), self.layers(second))
        return self.low + (self.high - self.low) * torch.sigmoid(alike)
