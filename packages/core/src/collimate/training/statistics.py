"""Numbers that tell whether a contrastive run is healthy.

Shape legend: B samples, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def similarity_gap(first: Float[Tensor, "B D"], second: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Mean cosine of the pairs minus mean cosine of everything else; 0 at the start, near 1 at best.

    The mean over all pairs is the product of the two mean vectors, so no B x B matrix is made.
    """
    first, second = normalize(first.float(), dim=-1), normalize(second.float(), dim=-1)
    size = len(first)
    positive = (first * second).sum(-1).mean()
    if size < 2:
        return positive
    everything = first.sum(0) @ second.sum(0)
    return positive - (everything - positive * size) / (size * (size - 1))


def effective_rank(features: Float[Tensor, "B D"], most_samples: int = 1024) -> Float[Tensor, ""]:
    """The number of dimensions in use: the exponential of the entropy of the normalised spectrum.

    Roy and Vetterli 2007, over the singular values of the centred unit vectors. Between 1 (collapsed) and
    min(B, D). At most `most_samples` rows are looked at.
    """
    unit = normalize(features[:most_samples].float(), dim=-1)
    values = torch.linalg.svdvals(unit - unit.mean(0))
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.exp(torch.special.entr(share).sum())
