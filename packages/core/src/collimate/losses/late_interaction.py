"""Late interaction as a similarity, and which tokens matter for it.

Every token of a query finds its best match in a key, and the score is the mean of the matches (Yao et al. 2021, FILIP,
arXiv 2111.07783, section 3.1). Against ColBERT (arXiv 2004.12832) padding is left out, and the mean replaces the sum.

Shape legend: Q queries of P tokens, K keys of L tokens, D width; T tokens of a side, S of them kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from collimate.kernels.late_interaction import pair_late_interaction
from collimate.kernels.tiles import tiles, unit


def late_interaction(
    query: Float[Tensor, "Q P D"],
    key: Float[Tensor, "K L D"],
    query_mask: Bool[Tensor, "Q P"] | None = None,
    key_mask: Bool[Tensor, "K L"] | None = None,
    *,
    normalize: bool = True,
) -> Float[Tensor, "Q K"]:
    """1/|P_i| Σ_{p in P_i} max_{l in L_j} <x_ip, y_jl> of every query i and key j, over their real tokens.

    The token products are never held: `Q P K L` numbers cost time, not memory. Differentiable.

    Args:
        query, key: tokens, any floating dtype; the arithmetic is float32, or float64 for float64 tokens.
        query_mask, key_mask: True where a token is real; None where all are.
        normalize: whether to bring each token to unit length.

    Raises:
        ValueError: shapes that do not fit, or a sample without a real token.
    """
    return pair_late_interaction(query, key, query_mask, key_mask, normalize)[0]


class Selected(NamedTuple):
    """Some tokens of each sample, the most important first.

    Attributes:
        tokens: with the gradient of what they were taken from.
        mask: True where a token is real; None where all are.
        places: where they stood among all T.
    """

    tokens: Float[Tensor, "n S D"]
    mask: Bool[Tensor, "n S"] | None
    places: Int64[Tensor, "n S"]


def select_tokens(
    first: Float[Tensor, "n P D"],
    second: Float[Tensor, "m L D"],
    first_mask: Bool[Tensor, "n P"] | None = None,
    second_mask: Bool[Tensor, "m L"] | None = None,
    *,
    shares: tuple[float, float] = (0.25, 0.25),
    normalize: bool = True,
) -> tuple[Selected, Selected]:
    """The tokens of either side that are most similar to any token of the other side, of whatever sample.

    FILIP (section 3.1) keeps 25 % of each side so before features are gathered from other devices. The choice has no
    gradient. A share is counted over all T tokens, padding too, and rounded down, but at least one token is kept; what
    exceeds a sample's real tokens is padding, which is never chosen before them.

    Args:
        shares: of the first and of the second side's tokens to keep.
    """
    if not all(0 < share <= 1 for share in shares):
        raise ValueError(f"A share of tokens lies above 0 and at most at 1, not {shares}.")
    importance = _importance(first, second, first_mask, second_mask, normalize)
    sides = zip((first, second), (first_mask, second_mask), importance, shares, strict=True)
    chosen = [_top(*side) for side in sides]
    return chosen[0], chosen[1]


@torch.no_grad()
def _importance(
    first: Tensor, second: Tensor, first_mask: Tensor | None, second_mask: Tensor | None, normalize: bool
) -> tuple[Float[Tensor, "n P"], Float[Tensor, "m L"]]:
    """The largest similarity of each token to any real one of the other side; -inf for padding."""
    with torch.autocast(first.device.type, enabled=False):
        x, y = (unit(side.flatten(0, 1), normalize)[0] for side in (first, second))
        rows, columns = (side.new_full((side.shape[0],), -torch.inf) for side in (x, y))
        for r, c, (products,) in tiles(x.shape[0], y.shape[0], x, buffers=1):
            torch.mm(x[r], y[c].T, out=products)
            if first_mask is not None:
                products.masked_fill_(~first_mask.flatten()[r, None], -torch.inf)
            if second_mask is not None:
                products.masked_fill_(~second_mask.flatten()[c], -torch.inf)
            rows[r] = torch.maximum(rows[r], products.amax(1))
            columns[c] = torch.maximum(columns[c], products.amax(0))
    return rows.view(first.shape[:2]), columns.view(second.shape[:2])


def _top(tokens: Tensor, mask: Tensor | None, importance: Tensor, share: float) -> Selected:
    count = max(1, int(share * tokens.shape[1] + 1e-6))  # 0.29 * 100 is a little less than 29
    places = importance.topk(count, dim=1).indices
    kept = tokens.take_along_dim(places[:, :, None], 1)
    return Selected(kept, None if mask is None else mask.take_along_dim(places, 1), places)
