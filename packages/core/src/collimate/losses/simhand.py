"""Contrast of pairs by how alike they are in a measured space (Lin et al. 2025, SiMHand, arXiv 2502.15251).

Positives are different pictures of similar hands, mined by their key points. With rows z = [z_1; z_2] of unit vectors,
z_i+ the partner of z_i, d distances of key points, and weights w that fall with them,

    L_i = - log [ exp(w_i z_i z_i+ / τ) / Σ_{a≠i} exp(w_ia z_i z_a / τ) ]

    linear       w = (max d - d) / (max d - min d)
    nonlinear    w = 1 / (1 + exp(λ (d - mean d)))

with extremes and means over all pairs for w_i, over the whole matrix, its diagonal too, for w_ia, on all ranks. The
weights get no gradient. The sum holds the partner with the weight of the matrix, so this is no softmax: a loss may be
negative. The most distant partner has the linear weight 0.

ut-vision/SiMHand, src/models/utils.py. Departure: equal distances, which give 0/0 there, have the weight 1.

Shape legend: n pairs of this rank, N of all ranks, J key points of C coordinates, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from collimate import distributed
from collimate.distributed import Group
from collimate.kernels.tiles import Factor
from collimate.losses.composition import composed
from collimate.losses.negatives import Distinct
from collimate.losses.softmax import info_nce
from collimate.losses.targets import Blend, Targets

Weighting = Literal["linear", "nonlinear"]
Distance = Literal["mpjpe", "w_abs", "w_o_abs"]
TILE = 1024  # key points of so many hands against so many at a time


@composed(
    similarity="cosine",
    targets="mined partner",
    weights="of logits, by distance of key points",
    negatives="all others of all ranks",
)
def similarity_weighted_loss(
    first: Float[Tensor, "n D"],
    second: Float[Tensor, "n D"],
    temperature: Tensor | float = 0.5,
    *,
    pair_weights: Float[Tensor, " n"] | None = None,
    matrix_weights: Factor | None = None,
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, ""]:
    """NT-Xent (SimCLR, arXiv 2002.05709) whose logits are weighted: those of partners, and those of the sum.

    Args:
        first, second: the two sides of each pair; every side of every pair is a query once.
        temperature: τ; 0.5 as published.
        pair_weights: w_i; None for 1.
        matrix_weights: w_ia, tile by tile, of this rank's rows [first; second] with those of all ranks; None for 1.
    """
    features = torch.cat([first, second])
    counts = distributed.row_counts(features, group)
    ids = torch.arange(sum(counts), device=features.device)
    own = ids[distributed.own(counts, group)]
    weights = first.new_ones(first.shape[0]) if pair_weights is None else pair_weights.detach()
    return info_nce(
        features,
        features,
        1 / temperature,
        targets=_Partner(own.roll(len(first)), weights.repeat(2)),
        mask=Distinct(own, ids, own=None),
        normalize=normalize,
        factor=matrix_weights,
        group=group,
    )


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


@dataclass(frozen=True)
class _Partner(Targets):
    """The key of each query's partner, times a weight: the logit is the weighted one, and the target 1."""

    partner: Int[Tensor, " rows"]
    weights: Float[Tensor, " rows"]

    def blend(self, keys: Float[Tensor, "M D"], counts: tuple[int, ...], group: Group = None) -> Blend:
        return keys[self.partner] * self.weights[:, None].to(keys), keys.new_ones(len(self.partner))

    def flipped(self) -> Targets:
        raise NotImplementedError("Each side of a pair is a query already.")


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
