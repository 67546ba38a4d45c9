"""DropKey: in training, each query attends to a random part of the keys.

Li et al. 2023, DropKey for vision transformer, arXiv 2208.02646. For the scores s_ij of query i and key j, a share p,

    m_ij ~ Bernoulli(p),    attention_i = softmax_j(s_ij + m_ij c),    c far below every score,

so that what is kept shares the whole of the attention and nothing is rescaled. p falls with the depth of the layer. As
in that paper's pseudo-code and in MoRE, a key is dropped for each query and head apart, where the paper's words drop it
for all.

Departure from MoRE's code: c is half of the least number of the dtype, where the code's -1e12 is minus infinity in half
precision and gives NaN; a query that has lost every key attends to all of them alike, as it does there in float32.

Shape legend: B samples, H heads, N tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def linear_shares(layers: int, first: float, last: float = 0.0) -> list[float]:
    """The share of keys that each layer drops, from the first layer's to the last's in equal steps.

    Raises:
        ValueError: they are no shares below 1.
    """
    for share in (first, last):
        if not 0 <= share < 1:
            raise ValueError(f"A share of keys to drop is 0 or more and below 1; got {share:g}.")
    return [first + (last - first) * layer / max(layers - 1, 1) for layer in range(layers)]


class DropKeyAttention(nn.Module):
    """Self-attention that drops keys in training.

    Its names are those of timm's attention, so that weights of vision transformers load. `fused_attn` and `attn_drop`
    are what timm's has too: where the first is False, the weights of the attention pass through the second, where
    `collimate_medical.explanation` reads them.

    Args:
        width: D.
        heads: H.
        dropped: p, the share of keys that is dropped for each query.
        qkv_bias: whether queries, keys and values have a bias. MoRE's have none; ImageNet's weights do.
        qk_norm: whether queries and keys are normalised before their product.
    """

    def __init__(
        self, width: int, heads: int, dropped: float = 0.0, qkv_bias: bool = False, qk_norm: bool = False
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"The width {width} cannot be shared among {heads} heads.")
        self.heads, self.dropped = heads, dropped
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=qkv_bias), nn.Linear(width, width)
        self.q_norm, self.k_norm = (nn.LayerNorm(width // heads) if qk_norm else nn.Identity() for _ in range(2))
        self.attn_drop = nn.Identity()
        self.fused_attn = True

    def forward(
        self, tokens: Float[Tensor, "B N D"], dropped: Bool[Tensor, "B H N N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """Attend.

        Args:
            tokens: what attends to itself.
            dropped: which keys are dropped for which query; drawn in training, and none in evaluation, if None.
        """
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        if dropped is None and self.training and self.dropped:
            shape = (*query.shape[:3], query.shape[2])
            dropped = torch.rand(shape, device=tokens.device) < self.dropped
        attended = self._attend(query, key, value, _bias(dropped, query.dtype))
        return self.proj(attended.transpose(1, 2).flatten(2))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Float[Tensor, "B H N d"]:
        if self.fused_attn:
            return scaled_dot_product_attention(query, key, value, attn_mask=bias)
        scores = query * query.shape[-1] ** -0.5 @ key.mT
        weights: Any = self.attn_drop((scores if bias is None else scores + bias).softmax(-1))
        return weights @ value


def _bias(dropped: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if dropped is None:
        return None
    return torch.zeros((), dtype=dtype, device=dropped.device).where(~dropped, torch.finfo(dtype).min / 2)
