"""Targets that share samples out evenly, by Sinkhorn's iteration (Caron et al. 2020, SwAV, arXiv 2006.09882).

Q (section 3.1) is the matrix nearest to exp(scores / ε) whose columns all have the same mass, and whose rows have too:
a few rounds of dividing columns and rows by their sums. Rows of Q sum to 1. Columns are prototypes in SwAV, the other
modality's samples in SwALIP (Fini et al. 2023, arXiv 2305.08675).

Shape legend: n samples of this rank, N of all ranks, K columns.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from collimate import distributed
from collimate.distributed import Group
from collimate.losses.composition import composed
from collimate.losses.softmax import global_mean


@torch.no_grad()
def balanced_assignments(
    scores: Float[Tensor, "n K"], epsilon: float = 0.05, iterations: int = 3, group: Group = None
) -> Float[Tensor, "n K"]:
    """Q of this rank's samples, balanced over the samples of all ranks.

    Args:
        scores: cosines with the columns, which are the same on all ranks.
        epsilon: ε; the smaller, the harder. 0.05 as published.
        iterations: rounds; 3 as published.
    """
    logits = scores.double() / epsilon
    largest = torch.cat([logits.amax(1), logits.new_full((1,), -1 / epsilon)]).max()  # also of a rank without samples
    mass = (logits - distributed.gather(largest.reshape(1), group).max()).exp()  # a factor changes nothing
    for _ in range(iterations):
        mass = mass / distributed.all_sum(mass.sum(0), group).clamp_min(torch.finfo(mass.dtype).tiny)
        mass = mass / mass.sum(1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)
    return mass.to(scores.dtype)


@composed(
    similarity="cosine with prototypes",
    targets="balanced assignment of the other view",
    negatives="other prototypes",
)
def swapped_assignment_loss(
    first: Float[Tensor, "n K"],
    second: Float[Tensor, "n K"],
    logit_scale: Tensor | float,
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Each view predicts the assignment of the other to prototypes; the mean of both (SwAV, equation 1).

    Args:
        first, second: cosines with the prototypes.
        logit_scale: their multiplier in the prediction, an inverse temperature.
    """
    losses = [
        -(balanced_assignments(target, epsilon, iterations, group) * (logit_scale * given).log_softmax(1)).sum(1)
        for given, target in ((first, second), (second, first))
    ]
    return global_mean((losses[0] + losses[1]) / 2, None, group)
