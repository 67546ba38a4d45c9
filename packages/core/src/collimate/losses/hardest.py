"""The hardest negative of each anchor: the vector of a pool that is most like it, found in tiles.

Shape legend: n anchors, M vectors of a pool, C heads, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from collimate.kernels.largest import row_argmax
from collimate.kernels.tiles import Keep


def hardest(
    anchors: Float[Tensor, "n C D"], pool: Float[Tensor, "M C D"], negatives: Keep | None = None
) -> Float[Tensor, "n C D"]:
    """Of each anchor and head, the vector of the pool with the largest product, by a tiled search without gradient.

    Args:
        pool: those of all ranks; what is chosen of it is differentiated.
        negatives: which of them may be chosen; all if None.
    """
    heads = range(anchors.shape[1])
    places = torch.stack([row_argmax(anchors[:, head], pool[:, head], negatives) for head in heads], 1)
    return pool[places, torch.tensor(heads, device=pool.device)]
