"""A transformer block that attends in time, then in space: divided space-time attention.

Bertasius et al. 2021, Is space-time attention all you need for video understanding?, arXiv 2102.05095, section 3, in
the form of ALPRO (salesforce/ALPRO, modeling/timesformer/vit.py). For the patches z at places p and frames t, and one
class token c,

    z_p <- z_p + W A_time(LN(z_p))                       over the T tokens of each place
    [c_t, y_t] = A_space(LN([c, z_t]))                   over the class token and the P tokens of each frame
    c <- c + mean_t c_t        z_t <- z_t + y_t
    x <- x + MLP(LN(x))                                  for x = [c, z]

The tokens lie place by place, each with its frames next to each other, as the official ones do: attention in time then
reads them where they lie, and what attention in space needs moved is moved where the class token is put in front.

Shape legend: B clips, T frames, P places of a frame, D width, H heads, S sequences, N tokens of a sequence.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.layers import Mlp, drop_path  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

LAYER_NORM_EPS = 1e-6  # timesformer/vit.py; as in every ViT


class DividedBlock(nn.Module):
    """One block, under its official names.

    Args:
        width: D.
        heads: H.
        hidden: width of the MLP.
        drop_path: the probability with which a residual is left out in training: of each place in time, of each frame
            in space, of each clip in the MLP, as officially.
    """

    def __init__(self, width: int, heads: int, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.temporal_norm1 = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.temporal_attn = SequenceAttention(width, heads)
        self.temporal_fc = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.attn = SequenceAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.mlp = Mlp(width, hidden)

    def forward(self, tokens: Float[Tensor, "B 1+P*T D"], frames: int) -> Float[Tensor, "B 1+P*T D"]:
        """One step.

        Args:
            tokens: the class token, then each place's tokens in the order of time.
            frames: T.
        """
        first, patches = tokens[:, :1], tokens[:, 1:].unflatten(1, (-1, frames))
        patches = patches + self.temporal_fc(self._kept(self.temporal_attn(self.temporal_norm1(patches))))
        whole = torch.cat([first[:, None].expand(-1, frames, -1, -1), patches.transpose(1, 2)], 2)
        seen = self._kept(self.attn(self.norm1(whole)))
        first = first + seen[:, :, 0].mean(1, keepdim=True)
        patches = patches + seen[:, :, 1:].transpose(1, 2)
        tokens = torch.cat([first, patches.flatten(1, 2)], 1)
        return tokens + self._kept(self.mlp(self.norm2(tokens)))

    def _kept(self, residual: Float[Tensor, "*S N D"]) -> Float[Tensor, "*S N D"]:
        """The residual, without that of some sequences in training."""
        rows = residual.flatten(0, -3) if residual.ndim > 3 else residual
        return drop_path(rows, self.drop_path, self.training).view_as(residual)


class SequenceAttention(nn.Module):
    """Self-attention within each of many sequences, under the names of a ViT; no score matrix is kept."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "B S N D"]) -> Float[Tensor, "B S N D"]:
        projected = self.qkv(tokens).flatten(0, 1).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2)).unflatten(0, tokens.shape[:2])
