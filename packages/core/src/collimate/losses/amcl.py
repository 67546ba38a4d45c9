"""Several heads and a temperature for each pair (Wang et al. 2024, AMCL, arXiv 2310.05615, table 2).

One head and one temperature do not fit all pairs that many augmentations make. With unit vectors z^c of C heads, a
temperature τ^c of each pair, Ω(τ) = D/2 log τ + 1/τ, from the likelihood of unit vectors, and n* the negative of the
largest similarity,

    NT-Xent        Σ_c [ -z^c z^c+ / τ^c+ + z^c z^c_n* / τ^c_n* + β Ω(τ^c+) - β Ω(τ^c_n*) ]
    InfoNCE        the same, where n* may be the positive too
    SimSiam        Σ_c [ -z^c h+ / (2 τ^c+) - z^c+ h / (2 τ'^c) + β Ω(τ^c+) + β Ω(τ'^c) ]        h are fixed targets
    Barlow Twins   Σ_c [ Σ_l (1 - C_ll / τ_l)² + λ Σ_{l≠m} C_lm² / τ_lm + β Σ_l Ω(τ_l) - β Σ_{l≠m} Ω(τ_lm) ]

each the mean over samples. The log-sum-exp of the usual contrast has become its largest term: one negative a sample and
head, found in one sweep over all pairs of all ranks, of which no matrix is held.

Departures: the released code (LeiWangR/cl) does not run and has no negatives, so that what stands here are the paper's
equations; and what gives temperatures is another network (`collimate.losses.pair_temperature`).

Shape legend: n samples of this rank, N of all ranks, C heads, D width of a head.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from collimate import distributed
from collimate.distributed import Group
from collimate.losses.composition import composed
from collimate.losses.hardest import hardest
from collimate.losses.negatives import Distinct
from collimate.losses.pair_temperature import Temperature
from collimate.losses.softmax import global_mean


def omega(temperature: Tensor, width: int) -> Tensor:
    """Ω: what keeps temperatures of positives from growing and those of negatives from shrinking."""
    return width / 2 * temperature.log() + 1 / temperature


@composed(
    similarity="product in each of C heads, over a temperature of the pair",
    targets="other view",
    negatives="the hardest of all ranks, one a head",
)
def amcl_nt_xent_loss(
    features: Float[Tensor, "n 2 C D"], temperature: Temperature, beta: float = 0.1, *, group: Group = None
) -> Float[Tensor, ""]:
    """The NT-Xent form over two views of each sample: both are anchors, and all views of other samples negatives.

    Args:
        features: of unit length.
        temperature: of each pair; `PairTemperature`.
        beta: β; 0.1 as published.

    Raises:
        ValueError: there is only one sample, and so no negative.
    """
    anchors, positives = features.flatten(0, 1), features.flip(1).flatten(0, 1)
    counts = distributed.row_counts(anchors, group)
    if sum(counts) < 4:
        raise ValueError("One sample has no negatives: contrast at least two, over all ranks.")
    pool = distributed.gather(anchors, group, counts)
    ids = torch.arange(len(pool), device=pool.device) // 2
    negatives = hardest(anchors, pool, Distinct(ids[distributed.own(counts, group)], ids, own=None))
    losses = adaptive_losses(
        torch.linalg.vecdot(anchors, positives),
        torch.linalg.vecdot(anchors, negatives),
        temperature(anchors, positives),
        temperature(anchors, negatives),
        features.shape[-1],
        beta,
    )
    return global_mean(losses.sum(1), None, group)


def adaptive_losses(
    positive: Float[Tensor, "*pairs"],
    negative: Float[Tensor, "*pairs"],
    positive_temperature: Float[Tensor, "*pairs"],
    negative_temperature: Float[Tensor, "*pairs"],
    width: int,
    beta: float | Tensor = 0.1,
) -> Float[Tensor, "*pairs"]:
    """The NT-Xent or InfoNCE form of each pair of an anchor's positive and its hardest negative.

    Args:
        positive, negative: similarities.
        positive_temperature, negative_temperature: of the same pairs.
        width: D, of Ω.
    """
    attraction = -positive / positive_temperature + beta * omega(positive_temperature, width)
    return attraction + negative / negative_temperature - beta * omega(negative_temperature, width)


def adaptive_simsiam_losses(
    first: Float[Tensor, "*pairs"],
    second: Float[Tensor, "*pairs"],
    first_temperature: Float[Tensor, "*pairs"],
    second_temperature: Float[Tensor, "*pairs"],
    width: int,
    beta: float | Tensor = 0.1,
) -> Float[Tensor, "*pairs"]:
    """The SimSiam form, of similarities to targets that are not differentiated.

    Args:
        first: of one view with the target of the other; `second`, the other way round.
        first_temperature, second_temperature: of the same pairs.
        width: D, of Ω.
    """
    pulls = -first / (2 * first_temperature) - second / (2 * second_temperature)
    return pulls + beta * (omega(first_temperature, width) + omega(second_temperature, width))


def adaptive_barlow_loss(
    correlation: Float[Tensor, "*C D D"],
    temperature: Float[Tensor, "*C D D"],
    off_diagonal: float | Tensor = 5e-3,
    beta: float | Tensor = 0.1,
) -> Float[Tensor, " *C"]:
    """The Barlow Twins form.

    Args:
        correlation: of two views; `cross_correlation` of standardised features.
        temperature: of each entry.
        off_diagonal: λ.
    """
    diagonal, penalty = torch.eye(correlation.shape[-1]).to(correlation), omega(temperature, correlation.shape[-1])
    same = diagonal * ((1 - correlation / temperature).square() + beta * penalty)
    others = (1 - diagonal) * (off_diagonal * correlation.square() / temperature - beta * penalty)
    return (same + others).sum((-2, -1))
