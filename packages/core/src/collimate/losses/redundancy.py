"""Terms without negatives: decorrelated coordinates, and the prediction of the other view.

Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230, equation 1): with C the cross-correlation of two views,

    L = Σ_l (1 - C_ll)² + λ Σ_{l≠m} C_lm²        C_lm = mean_i a_il b_im

SimSiam and BYOL (Chen and He 2021, arXiv 2011.10566; Grill et al. 2020, arXiv 2006.07733): L = 2 - 2 cos(p, v), where v
is not differentiated. As image-text terms both come from Fini et al. 2023, arXiv 2305.08675 (BarLIP, SiamLIP, BYOLIP).

Shape legend: n samples of this rank, N of all ranks, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from collimate import distributed
from collimate.distributed import Group
from collimate.losses.composition import composed
from collimate.losses.softmax import global_mean


def cross_correlation(
    first: Float[Tensor, "n *heads D"], second: Float[Tensor, "n *heads D"], group: Group = None
) -> Float[Tensor, "*heads D D"]:
    """C over the samples of all ranks, the same on each; exact for the sum of the ranks' losses.

    Features are taken as they are: a batch norm at the end of the projector, or `standardized`, makes it a correlation.
    """
    products = torch.einsum("n...l,n...m->...lm", first, second)
    return distributed.total(products, group) / sum(distributed.row_counts(first, group))


def standardized(
    features: Float[Tensor, "n *heads D"], epsilon: float = 0.0, group: Group = None
) -> Float[Tensor, "n *heads D"]:
    """Coordinates of mean 0 and population deviation 1 over the samples of all ranks."""
    count = sum(distributed.row_counts(features, group))
    centred = features - distributed.total(features.sum(0), group) / count
    variance = distributed.total(centred.square().sum(0), group) / count
    return centred / (variance + epsilon).sqrt()


@composed(
    similarity="correlation of coordinates",
    targets="same coordinate",
    weights="off the diagonal by λ",
    negatives="other coordinates",
)
def cross_correlation_loss(
    first: Float[Tensor, "n D"], second: Float[Tensor, "n D"], off_diagonal: float = 5e-3, *, group: Group = None
) -> Float[Tensor, ""]:
    """The Barlow Twins loss; the same on every rank.

    Args:
        off_diagonal: λ; 5e-3 as published.
    """
    correlation = cross_correlation(first, second, group)
    diagonal = correlation.diagonal()
    others = correlation.square().sum() - diagonal.square().sum()
    return (diagonal - 1).square().sum() + off_diagonal * others


@composed(
    similarity="cosine",
    targets="own pair, not differentiated",
    negatives="none",
)
def predictive_loss(
    prediction: Float[Tensor, "n D"], target: Float[Tensor, "n D"], *, group: Group = None
) -> Float[Tensor, ""]:
    """2 - 2 cos of each prediction with its target, which is not differentiated; the mean over all ranks."""
    return global_mean(2 - 2 * cosine_similarity(prediction, target.detach(), dim=1), None, group)
