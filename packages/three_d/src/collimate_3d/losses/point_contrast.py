"""PointContrast (Xie et al. 2020, arXiv 2007.10985, section 3.3): points of two views of a scene that are one place.

PointInfoNCE, over a set P of pairs (i, j), of which no point of the first view is in two:

    L = - Σ_{(i,j) in P} log ( exp(f_i · g_j / τ) / Σ_{(., k) in P} exp(f_i · g_k / τ) ),

a mean over P as published, in one direction, each rank for itself; E-SSL3D's L_pnce (arXiv 2404.11737) is the sum. The
hardest-contrastive loss, with margins m_p and m_n and N the candidates of the other view:

    L = mean_P [ |f_i - g_j|² - m_p ]₊ + ½ mean_i [ m_n - min_{k in N} |f_i - g_k| ]²₊ + ½ mean_j [ m_n - min |g_j - f_k| ]²₊

(the positive margin lies on the SQUARED distance in the released code), over anchors whose nearest candidate is no match
of theirs. Where that leaves none, the released code gives NaN; here the term is 0.

Shape legend: n, m points of the first and of the second view, P pairs, Q anchors, D width.
"""  # noqa: E501

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from collimate.distributed import LOCAL, Group
from collimate.losses.softmax import global_mean, info_nce_losses

DISTANCE_FLOOR = 1e-7  # under the root (facebookresearch/PointContrast, lib/metrics.py)


class HardestContrastive(NamedTuple):
    """The two terms; the loss is their sum."""

    positive: Float[Tensor, ""]
    negative: Float[Tensor, ""]


def point_info_nce(
    first: Float[Tensor, "n D"],
    second: Float[Tensor, "m D"],
    pairs: Int[Tensor, "P 2"],
    temperature: Float[Tensor, ""] | float = 0.07,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    normalize: bool = True,
    group: Group = LOCAL,
) -> Float[Tensor, ""]:
    """PointInfoNCE; 0, with a graph, where there is no pair.

    Args:
        first, second: features of the points of both views, of all scenes of the batch.
        pairs: places in both, as `draw_pairs` draws them. A key that is in two is a negative of its own.
        temperature: τ; 0.07 by default in the released code, 0.4 in its published model.
        reduction: `sum` for E-SSL3D, whose weight 0.01 becomes 0.01 P for the mean.
        normalize: whether to bring the features to unit length.
        group: the ranks that contrast with each other; each on its own as published, all for None.
    """
    query, key = first[pairs[:, 0]], second[pairs[:, 1]]
    losses = info_nce_losses(query, key, 1 / temperature, normalize=normalize, group=group)
    return losses.sum() if reduction == "sum" else global_mean(losses, None, group)


def hardest_contrastive_losses(
    first: Float[Tensor, "n D"],
    second: Float[Tensor, "m D"],
    pairs: Int[Tensor, "P 2"],
    first_candidates: Int[Tensor, " a"],
    second_candidates: Int[Tensor, " b"],
    anchors: Int[Tensor, " Q"] | None = None,
    positive_margin: float = 0.1,
    negative_margin: float = 1.4,
) -> HardestContrastive:
    """Each pair's distance, and the distance of each of its points to the hardest candidate of the other view.

    Args:
        first, second: unit features of the points of both views.
        pairs: all that match.
        first_candidates, second_candidates: places of points among which negatives are sought.
        anchors: the pairs that are contrasted; all if None.
    """
    chosen = pairs.long() if anchors is None else pairs[anchors].long()
    one, other = first[chosen[:, 0]], second[chosen[:, 1]]
    apart = (one - other).square().sum(1)
    positive = _mean((apart - positive_margin).relu())
    matches = _numbers(pairs.long(), len(second))
    negatives = []
    for side, features, candidates in ((0, second, second_candidates), (1, first, first_candidates)):
        anchor = (one, other)[side]
        nearest = torch.cdist(anchor.detach(), features[candidates].detach()).argmin(1)
        hardest = candidates[nearest].long()
        found = torch.stack([chosen[:, 0], hardest] if side == 0 else [hardest, chosen[:, 1]], 1)
        strange = ~torch.isin(_numbers(found, len(second)), matches)
        distance = ((anchor - features[hardest]).square().sum(1) + DISTANCE_FLOOR).sqrt()
        negatives.append(_mean((negative_margin - distance[strange]).relu().square()))
    return HardestContrastive(positive, (negatives[0] + negatives[1]) / 2)


def draw_pairs(pairs: Int[Tensor, "P 2"], count: int = 4096) -> Int[Tensor, "Q 2"]:
    """At most so many pairs at random, of which no point of the first view is in two.

    Args:
        pairs: all that match.
        count: 4096 as published; 2048 in E-SSL3D.
    """
    shuffled = pairs[torch.randperm(len(pairs), device=pairs.device)]
    return shuffled[_firsts(shuffled[:, 0])[:count]]


def one_pair_a_cell(
    pairs: Int[Tensor, "P 2"], first_cells: Int[Tensor, " n"], second_cells: Int[Tensor, " m"]
) -> Int[Tensor, "Q 2"]:
    """Pairs of which no two have their points in one cell, in either view: points of one cell have one feature, and
    would be false negatives of one another. Of several the first stays.

    Args:
        first_cells, second_cells: a number for the cell of each point; below 0 for points in none, which are dropped.
    """
    one, other = first_cells[pairs[:, 0].long()], second_cells[pairs[:, 1].long()]
    pairs, one, other = (each[(one >= 0) & (other >= 0)] for each in (pairs, one, other))
    kept = _firsts(one)
    return pairs[kept[_firsts(other[kept])]]


def _firsts(values: Int[Tensor, " P"]) -> Int[Tensor, " Q"]:
    """The places at which each value occurs first, in order."""
    distinct, number = values.unique(return_inverse=True)
    places = torch.arange(len(values), device=values.device)
    first = torch.full_like(distinct, len(values), dtype=torch.int64).scatter_reduce(0, number, places, "amin")
    return first.sort().values


def _numbers(pairs: Int[Tensor, "P 2"], width: int) -> Int[Tensor, " P"]:
    return pairs[:, 0] * width + pairs[:, 1]


def _mean(values: Float[Tensor, " some"]) -> Float[Tensor, ""]:
    """The mean; 0, with a graph, of nothing."""
    return values.sum() / max(len(values), 1)
