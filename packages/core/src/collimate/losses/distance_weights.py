"""Weights of pairs that fall with a measured distance (Lin et al. 2025, SiMHand, arXiv 2502.15251).

With d distances of key points,

    linear       w = (max d - d) / (max d - min d)
    nonlinear    w = 1 / (1 + exp(λ (d - mean d)))

with extremes and mean over all pairs for the weights w_i of pairs, over the whole matrix, its diagonal too, for those
of all rows with all, w_ia; on all ranks. The most distant pair has the linear weight 0.

ut-vision/SiMHand, src/models/utils.py. Departure: equal distances, which give 0/0 there, have the weight 1.

Shape legend: n pairs of this rank, J key points of C coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from collimate import distributed
from collimate.distributed import Group

Weighting = Literal["linear", "nonlinear"]
Distance = Literal["mpjpe", "w_abs", "w_o_abs"]
TILE = 1024  # key points of so many hands against so many at a time


def pair_weights_by_distance(
    first: Float[Tensor, "n J C"],
    second: Float[Tensor, "n J C"],
    weighting: Weighting = "linear",
    distance: Distance = "mpjpe",
    steepness: Tensor | float = 5.0,
    group: Group = None,
) -> Float[Tensor, " n"]:
    """w_i of each pair.

    Args:
        first, second: key points of the two sides, after augmentation.
        weighting: linear as published.
        distance: `mpjpe`, as published, is the mean over key points of their distances; `w_abs` and `w_o_abs` the
            length of the mean difference, of absolute coordinates or not.
        steepness: λ of the nonlinear weights.
    """
    between = first - second
    if distance == "mpjpe":
        distances = between.norm(dim=2).mean(1)
    else:
        distances = (between.abs() if distance == "w_abs" else between).mean(1).norm(dim=1)
    return _weights(distances, _statistics([distances], group), weighting, steepness)


@dataclass(frozen=True)
class DistanceWeights:
    """w_ia, computed tile by tile: a `Factor`.

    Attributes:
        own, every: key points of this rank's rows [first; second], and of those of all ranks.
        statistics: least, greatest and mean distance of the whole matrix.
    """

    own: Float[Tensor, "rows J C"]
    every: Float[Tensor, "all J C"]
    statistics: tuple[Tensor, Tensor, Tensor]
    weighting: Weighting
    distance: Distance
    steepness: Tensor | float

    def __call__(self, rows: slice, columns: slice) -> Float[Tensor, "rows columns"]:
        distances = _distances(self.own[rows], self.every[columns], self.distance)
        return _weights(distances, self.statistics, self.weighting, self.steepness)


@torch.no_grad()
def matrix_weights_by_distance(
    first: Float[Tensor, "n J C"],
    second: Float[Tensor, "n J C"],
    weighting: Weighting = "linear",
    distance: Distance = "mpjpe",
    steepness: Tensor | float = 0.05,
    group: Group = None,
) -> DistanceWeights:
    """w_ia of all pairs of rows. One sweep over the distances finds their extremes and mean; none of them is kept.

    Args: as of `pair_weights_by_distance`; of `w_abs` and `w_o_abs` the released code means the coordinates here, and
        takes the length over key points.
    """
    own = torch.cat([first, second])
    every = distributed.gather(own, group)
    statistics = _statistics((_distances(a, b, distance) for a in own.split(TILE) for b in every.split(TILE)), group)
    return DistanceWeights(own, every, statistics, weighting, distance, steepness)


def _distances(
    first: Float[Tensor, "a J C"], second: Float[Tensor, "b J C"], distance: Distance
) -> Float[Tensor, "a b"]:
    """Between all rows of two sides, one key point at a time."""
    if distance == "w_o_abs":
        return _euclidean(first.mean(2), second.mean(2))
    total = first.new_zeros(len(first), len(second))
    for one, other in zip(first.unbind(1), second.unbind(1), strict=True):
        total += _euclidean(one, other) if distance == "mpjpe" else (one[:, None] - other).abs().mean(2).square()
    return total / first.shape[1] if distance == "mpjpe" else total.sqrt()


def _euclidean(first: Float[Tensor, "a C"], second: Float[Tensor, "b C"]) -> Float[Tensor, "a b"]:
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def _statistics(distances: Iterator[Tensor] | list[Tensor], group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Least, greatest and mean over all ranks."""
    parts = torch.stack(
        [torch.stack([-d.min(), d.max(), d.sum(), d.new_tensor(d.numel())]) for d in distances if d.numel()]
    )
    every = distributed.gather(torch.cat([parts[:, :2].amax(0), parts[:, 2:].sum(0)])[None], group)
    return -every[:, 0].max(), every[:, 1].max(), every[:, 2].sum() / every[:, 3].sum()


def _weights(
    distances: Tensor, statistics: tuple[Tensor, Tensor, Tensor], weighting: Weighting, steepness: Tensor | float
) -> Tensor:
    low, high, mean = statistics
    if weighting == "nonlinear":
        return torch.sigmoid(-steepness * (distances - mean))
    span = high - low
    return torch.where(span > 0, (high - distances) / span.clamp_min(torch.finfo(span.dtype).tiny), 1.0)
