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

What norms and the activation give to the linear layers behind them is not kept for the backward pass, which computes
it anew; `tools.bench.divided_attention` says what that saves.

Shape legend: B clips, T frames, P places of a frame, D width, H heads, S sequences, N tokens of a sequence.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.layers import Mlp, drop_path  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

SHORT = 16
"""Up to so many tokens the plain form takes half to three quarters of the fused kernel's time on CPUs, and its scores
are smaller than its values."""

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
        patches = patches + self.temporal_fc(self._kept(self.temporal_attn(patches, self.temporal_norm1)))
        whole = torch.cat([first[:, None].expand(-1, frames, -1, -1), patches.transpose(1, 2)], 2)
        seen = self._kept(self.attn(whole, self.norm1))
        first = first + seen[:, :, 0].mean(1, keepdim=True)
        patches = patches + seen[:, :, 1:].transpose(1, 2)
        tokens = torch.cat([first, patches.flatten(1, 2)], 1)
        return tokens + self._kept(lean_mlp(self.mlp, tokens, self.norm2))

    def _kept(self, residual: Float[Tensor, "*S N D"]) -> Float[Tensor, "*S N D"]:
        """The residual, without that of some sequences in training."""
        rows = residual.flatten(0, -3) if residual.ndim > 3 else residual
        return drop_path(rows, self.drop_path, self.training).view_as(residual)


class SequenceAttention(nn.Module):
    """Self-attention within each of many sequences, under the names of a ViT; no large score matrix is kept."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "B S N D"], norm: nn.Module) -> Float[Tensor, "B S N D"]:
        """One step, behind a norm."""
        projected = _unkept(norm, self.qkv, tokens).flatten(0, 1).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        return self.proj(self._attended(query, key, value).transpose(1, 2).flatten(2)).unflatten(0, tokens.shape[:2])

    def _attended(
        self, query: Float[Tensor, "S H N K"], key: Float[Tensor, "S H N K"], value: Float[Tensor, "S H N K"]
    ) -> Float[Tensor, "S H N K"]:
        if query.device.type == "cpu" and query.shape[-2] <= SHORT:
            return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value
        return scaled_dot_product_attention(query, key, value)


def lean_mlp(mlp: Mlp, tokens: Float[Tensor, "*S D"], norm: nn.Module) -> Float[Tensor, "*S D"]:
    """An MLP behind a norm, of which only the input and what enters the activation are kept."""
    return _unkept(mlp.act, mlp.fc2, _unkept(norm, mlp.fc1, tokens))


def _unkept(function: nn.Module, linear: nn.Module, inputs: Float[Tensor, "*S D"]) -> Float[Tensor, "*S E"]:
    """linear(function(inputs)), where what lies between is not kept.

    In the backward pass `checkpoint` computes anew only up to the last tensor that was to be kept, which is the input
    of the linear layer: the product itself is not repeated. An adapter in its place may draw random numbers, and then
    draws the same ones again.
    """
    if not torch.is_grad_enabled():
        return linear(function(inputs))
    return checkpoint(lambda given: linear(function(given)), inputs, use_reentrant=False)  # type: ignore[return-value]
