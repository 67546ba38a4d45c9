"""Contrast of pairs by how alike they are in a measured space (Lin et al. 2025, SiMHand, arXiv 2502.15251).

Positives are different pictures of similar hands, mined by their key points. With rows z = [z_1; z_2] of unit vectors,
z_i+ the partner of z_i, and weights w that fall with the distance of key points,

    L_i = - log [ exp(w_i z_i z_i+ / τ) / Σ_{a≠i} exp(w_ia z_i z_a / τ) ].

The weights (`collimate.losses.distance_weights`) get no gradient. The sum holds the partner with the weight of the
matrix, so this is no softmax: a loss may be negative. ut-vision/SiMHand, src/models/utils.py.

Shape legend: n pairs of this rank, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class _Partner(Targets):
    """The key of each query's partner, times a weight: the logit is the weighted one, and the target 1."""

    partner: Int[Tensor, " rows"]
    weights: Float[Tensor, " rows"]

    def blend(self, keys: Float[Tensor, "M D"], counts: tuple[int, ...], group: Group = None) -> Blend:
        return keys[self.partner] * self.weights[:, None].to(keys), keys.new_ones(len(self.partner))

    def flipped(self) -> Targets:
        raise NotImplementedError("Each side of a pair is a query already.")
