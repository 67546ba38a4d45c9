"""STAR's supervised contrast of texts by their authors (Huertas-Tato et al. 2023, arXiv 2310.11081, section 3.2).

It is `supcon_loss` at the temperature 1/s, with a scale s = exp(t) that learns and is held at 100. The released code
(jahuerta92/star, losses.py) differs in three things: it brings the second factor of the products to unit length along
the batch instead of along the width; holds exp(t) at 100 from below, so that it is 100 and does not learn; and adds
1e-8 to sums of exponentials that were divided by the row's largest, an anchor's with itself, which most are far below.
`star_loss` is what the paper describes, `star_loss_as_released` for whoever repeats the training of released weights.

Shape legend: B samples of this rank, V views, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize as to_unit

from collimate import distributed
from collimate.distributed import Group
from collimate.losses.composition import composed
from collimate.losses.softmax import global_mean
from collimate.losses.supcon import supcon_loss

MAX_SCALE, EPSILON = 100.0, 1e-8  # jahuerta92/star, losses.py


@composed(
    similarity="cosine, scale at most 100",
    targets="same author",
    negatives="all others of all ranks",
)
def star_loss(
    features: Float[Tensor, "B V D"],
    labels: Int[Tensor, " B"],
    log_scale: Float[Tensor, ""],
    *,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Contrast each text with all others; positives are those of its author.

    Args:
        features: V texts, or V views of one; normalised inside.
        labels: numbers of the authors.
        log_scale: t, the logarithm of the multiplier of the cosines.
    """
    return supcon_loss(features, labels, temperature=1 / log_scale.exp().clamp(max=MAX_SCALE), group=group)


@composed(
    similarity="product with the batch normalised",
    targets="same author",
    negatives="all others of all ranks",
)
def star_loss_as_released(
    features: Float[Tensor, "B V D"],
    labels: Int[Tensor, " B"],
    log_scale: Float[Tensor, ""],
    *,
    group: Group = None,
) -> Float[Tensor, ""]:
    """The released code's loss, with its faults; see the module. Holds the matrix of all pairs with this rank's rows.

    Args: as of `star_loss`. Each author has at least two texts or views.
    """
    own = features.flatten(0, 1)
    counts = distributed.row_counts(own, group)
    every = distributed.gather(own, group, counts)
    own_labels = labels.repeat_interleave(features.shape[1])
    alone = torch.arange(len(every), device=own.device)
    same = alone[distributed.own(counts, group), None] == alone
    positive = (own_labels[:, None] == distributed.gather(own_labels, group, counts)) & ~same
    logits = log_scale.exp().clamp(min=MAX_SCALE) * to_unit(own, dim=1) @ to_unit(every, dim=0).T
    logits = logits - logits.detach().amax(1, keepdim=True)
    log_sums = (logits.exp().masked_fill(same, 0.0).sum(1) + EPSILON).log()
    losses = log_sums - (logits * positive).sum(1) / positive.sum(1)
    return global_mean(losses, None, group)
