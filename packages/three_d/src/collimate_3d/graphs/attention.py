"""Attention between the objects of a scene, and between objects and words, that knows where things lie.

- `Attention`: multi-head attention with the residual and the norm after it, as 3D-VLP has it (Jin et al. 2023, CVPR;
  leolyj/3D-VLP, models/transformer/attention.py). Numbers may be added to its logits.
- `OffsetAttention`: objects attend to each other; for each head a small network of [dx, dy, dz, distance] is added to
  the logits. 3D-VLP's relation module, as the alternative to `TripletGraph`.
- `PlaceAttention`: the attention of 3D-VisTA (Zhu et al. 2023, arXiv 2308.04352), which reads the five numbers of
  `pair_places`. With a = q k / sqrt(width of a head) and the numbers g of a pair,

      cond  softmax(a + log max(sigmoid(b + w g), 1e-6)), [b, w] = a matrix of the query's input, for each head
      mul   softmax(a + log max(relu(W g), 1e-6))
      bias  softmax(a + W g)
      ctx   softmax(a + q (W g) / sqrt(width of a head))
      add   (softmax(a) + softmax(W g)) / 2

Departure: in 3D-VLP a second layer of the relation module begins with what the first had begun with, so that the first
layer's attention is lost; here each layer goes on with what the one before gave.

Shape legend: B scenes, M objects of a scene, Q queries, K keys, H heads, D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from collimate_3d.graphs.base import GraphLayers
from collimate_3d.graphs.geometry import PLACES, pair_offsets, pair_places

SMALLEST_FACTOR = 1e-6  # 3D-VisTA, model/vision/transformers.py
BIAS_WIDTH = 32  # 3D-VLP, relation_module.py
Fusion = Literal["cond", "mul", "bias", "ctx", "add"]


class Attention(nn.Module):
    """Multi-head attention, LayerNorm(x + dropout(attended)).

    Args:
        width: D.
        heads: H.
        dropout: of what was attended, in training.

    Attributes:
        recorded: where each call leaves its weights, (B, H, Q, K); None records nothing.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.fc_q, self.fc_k, self.fc_v, self.fc_o = (nn.Linear(width, width) for _ in range(4))
        self.layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.recorded: list[Tensor] | None = None

    def forward(
        self,
        query: Float[Tensor, "B Q D"],
        key: Float[Tensor, "B K D"],
        mask: Bool[Tensor, "B K"] | None = None,
        bias: Float[Tensor, "B H Q K"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Queries that have looked at the keys.

        Args:
            query, key: any rows.
            mask: which keys may be looked at. Where there are none at all, nothing is looked at.
            bias: added to the logits.
        """
        q, k, v = (
            rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for rows in (self.fc_q(query), self.fc_k(key), self.fc_v(key))
        )
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        weights = masked_softmax(logits if bias is None else logits + bias, mask)
        if self.recorded is not None:
            self.recorded.append(weights.detach())
        attended = (weights @ v).transpose(1, 2).flatten(2)
        return self.layer_norm(query + self.dropout(self.fc_o(attended)))


class OffsetAttention(GraphLayers):
    """Objects that attend to each other, nearer or farther as their offsets say.

    Args:
        width: D.
        heads: H.
        layers: how many.
        dropout: in training.
    """

    def __init__(self, width: int = 128, heads: int = 4, layers: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.width = width
        self.attention = nn.ModuleList(Attention(width, heads, dropout) for _ in range(layers))
        self.biases = nn.ModuleList(offset_bias(heads) for _ in range(layers))

    def forward(
        self,
        nodes: Float[Tensor, "B M D"],
        boxes: Float[Tensor, "B M 6"],
        given: Bool[Tensor, "B M"],
        related: Bool[Tensor, "B M M"],
    ) -> Float[Tensor, "B M D"]:
        # `related` is not read: every object sees every other.
        offsets = pair_offsets(boxes[..., :3])
        for attention, bias in zip(self.attention, self.biases, strict=True):
            nodes = attention(nodes, nodes, given, bias(offsets).permute(0, 3, 1, 2))
        return nodes


class PlaceAttention(GraphLayers):
    """One layer of 3D-VisTA's attention over objects, under the names of its weights.

    Args:
        width: D.
        heads: H.
        fusion: how places enter; the released model has `cond`.
        dropout: of what was attended, in training.
    """

    def __init__(self, width: int, heads: int, fusion: Fusion = "cond", dropout: float = 0.1) -> None:
        super().__init__()
        self.width, self.heads, self.fusion = width, heads, fusion
        self.w_qs, self.w_ks, self.w_vs, self.fc = (nn.Linear(width, width) for _ in range(4))
        if fusion == "cond":
            self.lang_cond_fc = nn.Linear(width, heads * (PLACES + 1))
        else:
            self.pairwise_loc_fc = nn.Linear(PLACES, width if fusion == "ctx" else heads)
        self.layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        nodes: Float[Tensor, "B M D"],
        boxes: Float[Tensor, "B M 6"],
        given: Bool[Tensor, "B M"],
        related: Bool[Tensor, "B M M"],
    ) -> Float[Tensor, "B M D"]:
        return self.attended(nodes, pair_places(boxes[..., :3], given), given)[0]

    def attended(
        self, nodes: Float[Tensor, "B M D"], places: Float[Tensor, "B M M 5"], given: Bool[Tensor, "B M"]
    ) -> tuple[Float[Tensor, "B M D"], Float[Tensor, "B H M M"]]:
        """Nodes that have looked at each other, and the weights."""
        query, key, value = (
            matrix(nodes).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for matrix in (self.w_qs, self.w_ks, self.w_vs)
        )
        logits = query @ key.mT / math.sqrt(query.shape[-1])
        weights = self._weights(nodes, query, logits, places, given)
        attended = self.fc((weights @ value).transpose(1, 2).flatten(2))
        return self.layer_norm(nodes + self.dropout(attended)), weights

    def _weights(self, nodes: Tensor, query: Tensor, logits: Tensor, places: Tensor, given: Tensor) -> Tensor:
        if self.fusion == "cond":
            told = self.lang_cond_fc(nodes).unflatten(-1, (self.heads, -1))  # the bias first
            factor = (torch.einsum("bqhp,bqkp->bhqk", told[..., 1:], places) + told[..., 0].mT[..., None]).sigmoid()
            return masked_softmax(logits + _log_factor(factor, given), given)
        seen = self.pairwise_loc_fc(places)
        if self.fusion == "ctx":
            seen = seen.unflatten(-1, (self.heads, -1))
            context = torch.einsum("bhqd,bqkhd->bhqk", query, seen) / math.sqrt(query.shape[-1])
            return masked_softmax(logits + context, given)
        seen = seen.permute(0, 3, 1, 2)
        if self.fusion == "mul":
            return masked_softmax(logits + _log_factor(seen.relu(), given), given)
        if self.fusion == "bias":
            return masked_softmax(logits + seen, given)
        return (masked_softmax(logits, given) + masked_softmax(seen, given)) / 2


def offset_bias(heads: int) -> nn.Sequential:
    """The network that turns [dx, dy, dz, distance] into a number a head."""
    return nn.Sequential(
        nn.Linear(4, BIAS_WIDTH),
        nn.ReLU(),
        nn.LayerNorm(BIAS_WIDTH),
        nn.Linear(BIAS_WIDTH, BIAS_WIDTH),
        nn.ReLU(),
        nn.LayerNorm(BIAS_WIDTH),
        nn.Linear(BIAS_WIDTH, heads),
    )


def masked_softmax(logits: Float[Tensor, "B H Q K"], mask: Bool[Tensor, "B K"] | None) -> Float[Tensor, "B H Q K"]:
    """Softmax over the keys that are there; zeros where there are none."""
    if mask is None:
        return logits.softmax(-1)
    there = mask[:, None, None]
    return logits.masked_fill(~there, torch.finfo(logits.dtype).min).softmax(-1) * there


def _log_factor(factor: Tensor, given: Tensor) -> Tensor:
    return (factor * given[:, None, None]).clamp_min(SMALLEST_FACTOR).log()
