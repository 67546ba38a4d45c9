"""Supervised contrast in several spaces at once, each with similarities of its own (He et al. 2022, SPACE-2).

arXiv 2209.06638, equation 4; AlibabaResearch/DAMO-ConvAI, space-2. Of structured labels there are K similarities
f_k(a, b) in [0, 1], one for each view of them (`collimate.losses.annotation_trees`), and of each sample K vectors,
cut out of one (`Subspaces`):

    L = mean_k L_out( z_k; f_k ),

`supcon_loss` with the weights f_k. Samples without labels have the identity in the place of f.

Shape legend: B samples of this rank, S of all ranks, V views of a sample by dropout or augmentation, K spaces, W the
encoder's width, D a space's.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate.configurable import Configurable
from collimate.distributed import Group
from collimate.losses.composition import composed
from collimate.losses.supcon import supcon_loss


class Subspaces(nn.Module, Configurable):
    """tanh(W x + b), cut into K vectors of unit length.

    Args:
        width: W.
        spaces: K; 10 as published.
        dim: D; 768 as published.
    """

    def __init__(self, width: int, spaces: int = 10, dim: int = 768) -> None:
        super().__init__()
        self.spaces = spaces
        self.linear = nn.Linear(width, spaces * dim)

    def forward(self, vectors: Float[Tensor, "... W"]) -> Float[Tensor, "... K D"]:
        return normalize(self.linear(vectors).tanh().unflatten(-1, (self.spaces, -1)), dim=-1)


@composed(
    similarity="cosine in each of K subspaces",
    targets="similarity of structured labels in each view",
    negatives="all others of all ranks",
)
def view_supcon_losses(
    features: Float[Tensor, "B V K D"],
    pair_weights: Float[Tensor, "K B S"] | None = None,
    temperature: Tensor | float = 0.07,
    *,
    group: Group = None,
) -> Float[Tensor, " K"]:
    """The loss in each space; their mean is the published one.

    Args:
        features: of each sample in each space.
        pair_weights: f, of this rank's samples with those of all ranks; None for samples without labels.
        temperature: 0.07 as published.

    Raises:
        ValueError: there are not as many similarities as spaces.
    """
    if pair_weights is not None and pair_weights.shape[0] != features.shape[2]:
        raise ValueError(f"{pair_weights.shape[0]} similarities for {features.shape[2]} spaces; there is one a space.")
    weights = [None] * features.shape[2] if pair_weights is None else pair_weights
    return torch.stack(
        [
            supcon_loss(space, pair_weights=weight, temperature=temperature, group=group)
            for space, weight in zip(features.unbind(2), weights, strict=True)
        ]
    )
