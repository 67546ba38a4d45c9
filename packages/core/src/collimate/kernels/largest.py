"""The largest product of each query with any key, and whose it is, in tiles.

Shape legend: n queries (rows), m keys (columns), D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from collimate.kernels.tile_math import masked_
from collimate.kernels.tiles import Keep, tiles, unit


@torch.no_grad()
def row_argmax(query: Float[Tensor, "n D"], key: Float[Tensor, "m D"], keep: Keep | None = None) -> Int64[Tensor, " n"]:
    """The key of the largest product with each query; the first of several, and 0 where no pair is kept.

    Args:
        query, key: any floating dtype; taken as they are, not normalised.
        keep: the pairs that take part; None for all.
    """
    (x, _), (y, _) = unit(query, normalize=False), unit(key, normalize=False)
    largest = x.new_full((x.shape[0],), -torch.inf)
    places = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
    for r, c, (products,) in tiles(x.shape[0], y.shape[0], x, buffers=1):
        torch.mm(x[r], y[c].T, out=products)
        masked_(products, None if keep is None else keep(r, c), -torch.inf)
        found, place = products.max(1)
        better = found > largest[r]
        largest[r] = torch.where(better, found, largest[r])
        places[r] = torch.where(better, place + c.start, places[r])
    return places
