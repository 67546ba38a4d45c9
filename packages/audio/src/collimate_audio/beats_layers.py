"""The transformer layers of BEATs, under the names that its published weights carry.

Chen et al. 2023, BEATs, arXiv 2212.09058, section 3.1; microsoft/unilm, beats/backbone.py. Post-norm with DeepNorm
(Wang et al. 2022, arXiv 2203.00555), for L layers

    x <- LN(α x + f(x)),    α = (2L)^(1/4),    f the attention, then the MLP,

or pre-norm, x <- x + f(LN(x)). The attention of head h from position i to j, in the gated form of WavLM (Chen et al.
2022, arXiv 2110.13900), with q before it is scaled and r a bias that all layers share, one number for each bucket of
distances (those of T5, Raffel et al. 2020, arXiv 1910.10683):

    u = W q_i + b_W,    a = sigmoid(u_1 + .. + u_4),    b = sigmoid(u_5 + .. + u_8)
    score_ij = q_i . k_j / sqrt(d) + (a (b c_h - 1) + 2) r_h(j - i)

Departures, none in the numbers:
- The released code divides scores by 32 and multiplies them back before the softmax, to keep half precision in range;
  here no score is ever of half precision.
- A row that is padding throughout attends to its padding, where the released code gives NaN.

Shape legend: B clips, L tokens, H heads, d width of a head, D width, K kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, silu

from collimate_audio.relative_attention import relative_attention

INITIAL_STD = 0.02  # microsoft/unilm, beats/backbone.py, init_bert_params
GATES = 2  # a and b
GATE_INPUTS = 4  # numbers that add up to each gate's logit; beats/backbone.py


@dataclass(frozen=True)
class LayerSettings:
    """What the layers of one stack have in common; see `BEATs` for what each means."""

    width: int = 768
    heads: int = 12
    hidden: int = 3072
    activation: Literal["gelu", "relu", "glu"] = "gelu"
    pre_norm: bool = False
    deep_norm: bool = True
    relative_position: bool = True
    gated: bool = True
    buckets: int = 320
    max_distance: int = 800
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"A width of {self.width} cannot be split among {self.heads} heads.")
        if self.pre_norm and self.deep_norm:
            raise ValueError("DeepNorm is a post-norm: with pre_norm=True, set deep_norm=False.")
        if self.activation not in ("gelu", "relu", "glu"):
            raise ValueError(f"activation is 'gelu', 'relu' or 'glu', not {self.activation!r}.")
        if self.relative_position and (self.buckets < 4 or self.buckets % 4 or self.max_distance <= self.buckets // 4):
            raise ValueError(
                f"Relative positions need a multiple of 4 buckets and a max_distance beyond a quarter of them; got "
                f"{self.buckets} and {self.max_distance}."
            )


class BeatsLayers(nn.ModuleList):
    """A stack of layers, and the relative position bias that they share.

    Args:
        settings: of each layer.
        count: of layers.
        layer_drop: the probability with which a layer is left out in training.
        gradient_decay: r; the gradient is multiplied by r before it enters each layer from above, so that layer i of L
            learns from r^(L-1-i) of it. In training only.
    """

    def __init__(
        self, settings: LayerSettings, count: int, layer_drop: float = 0.0, gradient_decay: float = 1.0
    ) -> None:
        table = nn.Embedding(settings.buckets, settings.heads) if settings.relative_position else None
        super().__init__(_Layer(settings, count, table) for _ in range(count))
        self.settings, self.layer_drop, self.gradient_decay = settings, layer_drop, gradient_decay
        self.initialise()

    def forward(
        self,
        tokens: Float[Tensor, "B L D"],
        mask: Bool[Tensor, "B L"] | None = None,
        positions: Int64[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The tokens after the last layer.

        Args:
            mask: True where a token is real; the others are attended to by none.
            positions: where each token stands; one after the other unless given.
        """
        for state in self.states(tokens, mask, positions):
            tokens = state
        return tokens

    def states(
        self, tokens: Float[Tensor, "B L D"], mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Iterator[Float[Tensor, "B L D"]]:
        """The tokens after each layer."""
        bias = self.position_bias(
            torch.arange(tokens.shape[1], device=tokens.device) if positions is None else positions
        )
        for layer in self:
            if self.training and self.gradient_decay != 1:
                tokens = _decay_gradient(tokens, self.gradient_decay)
            if not (self.training and self.layer_drop > 0 and float(torch.rand(())) < self.layer_drop):
                tokens = layer(tokens, mask, bias)
            yield tokens

    def position_bias(self, positions: Int64[Tensor, "... L"]) -> Float[Tensor, "... H L L"] | None:
        """r_h(j - i) between tokens at these positions, before any gate; None where there is no such bias."""
        table = self[0].self_attn.relative_attention_bias if len(self) else None  # type: ignore[union-attr]
        if table is None:
            return None
        buckets = distance_buckets(positions, self.settings.buckets, self.settings.max_distance)
        return table(buckets).movedim(-1, -3).contiguous()  # type: ignore[operator]

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the weights anew: normal, or for DeepNorm as its paper prescribes."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                initialise(module)
        if self.settings.deep_norm:
            gain = (8 * max(len(self), 1)) ** -0.25
            for layer in self:
                layer.initialise_deep(gain)  # type: ignore[operator]


def distance_buckets(positions: Int64[Tensor, "... L"], buckets: int, max_distance: int) -> Int64[Tensor, "... L L"]:
    """The bucket of j - i for each pair of positions.

    Half of the buckets are for keys j after the query i. In each half the first half is for one distance each, the
    others grow logarithmically up to `max_distance`; what lies beyond falls into the last.
    """
    distance = positions[..., None, :] - positions[..., :, None]
    half = buckets // 2
    exact = half // 2
    far = distance.abs()
    growth = (far.clamp_min(1).float() / exact).log() / math.log(max_distance / exact) * (half - exact)
    bucket = torch.where(far < exact, far, (exact + growth.long()).clamp_max(half - 1))
    return bucket + half * (distance > 0)


@torch.no_grad()
def initialise(module: nn.Linear | nn.Embedding) -> None:
    """Normal weights, no bias."""
    module.weight.normal_(std=INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        module.bias.zero_()


class PositionalConvolution(nn.Module):
    """A grouped convolution along the tokens, the weights of each tap normalised: w = g v / ||v||.

    The norm is over all but the last dimension. Plain parameters under the names that the released checkpoints have.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        if width % groups:
            raise ValueError(f"A width of {width} cannot be split into {groups} groups of the positional convolution.")
        direction = torch.randn(width, width // groups, kernel) * math.sqrt(4 / (kernel * width))  # beats/backbone.py
        self.weight_v = nn.Parameter(direction)
        self.weight_g = nn.Parameter(direction.norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(width))
        self.groups = groups

    def forward(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        kernel = weight.shape[-1]
        found = nn.functional.conv1d(tokens.mT, weight, self.bias, padding=kernel // 2, groups=self.groups)
        return gelu(found[..., : tokens.shape[1]]).mT  # an even kernel gives one position too many


class _Layer(nn.Module):
    def __init__(self, settings: LayerSettings, count: int, table: nn.Embedding | None) -> None:
        super().__init__()
        width, hidden = settings.width, settings.hidden
        self.settings = settings
        self.alpha = (2 * count) ** 0.25 if settings.deep_norm else 1.0
        self.self_attn = _Attention(settings, table)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = _GatedLinear(width, hidden) if settings.activation == "glu" else nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)
        self.activation_dropout = nn.Dropout(settings.activation_dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.settings.pre_norm:
            tokens = tokens + self.dropout(self.self_attn(self.self_attn_layer_norm(tokens), mask, bias))
            return tokens + self._mlp(self.final_layer_norm(tokens))
        attended = self.dropout(self.self_attn(tokens, mask, bias))
        tokens = self.self_attn_layer_norm(self.alpha * tokens + attended)
        return self.final_layer_norm(self.alpha * tokens + self._mlp(tokens))

    def initialise_deep(self, gain: float) -> None:
        attention = self.self_attn
        first = self.fc1.linear if isinstance(self.fc1, _GatedLinear) else self.fc1
        for matrix in (attention.q_proj, attention.k_proj):
            nn.init.xavier_normal_(matrix.weight)
        for matrix in (attention.v_proj, attention.out_proj, first, self.fc2):
            nn.init.xavier_normal_(matrix.weight, gain)

    def _mlp(self, tokens: Tensor) -> Tensor:
        hidden = self.fc1(tokens)
        if self.settings.activation != "glu":
            hidden = gelu(hidden) if self.settings.activation == "gelu" else relu(hidden)
        return self.dropout(self.fc2(self.activation_dropout(hidden)))


class _Attention(nn.Module):
    def __init__(self, settings: LayerSettings, table: nn.Embedding | None) -> None:
        super().__init__()
        width, heads = settings.width, settings.heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.relative_attention_bias = table  # one for all layers, named in each, as in the released checkpoints
        self.gated = settings.gated and table is not None
        if self.gated:
            self.grep_linear = nn.Linear(width // heads, GATES * GATE_INPUTS)
            self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))
        self.heads, self.dropout = heads, settings.attention_dropout

    def forward(self, tokens: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        query, key, value = (
            project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        gate = self._gate(query) if self.gated else None
        attended = relative_attention(query, key, value, gate, bias, mask, self.dropout if self.training else 0.0)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _gate(self, query: Float[Tensor, "B H L d"]) -> Float[Tensor, "B H L 1"]:
        a, b = self.grep_linear(query).unflatten(-1, (GATES, GATE_INPUTS)).sum(-1).sigmoid().split(1, -1)
        return a * (b * self.grep_a - 1) + 2


class _GatedLinear(nn.Module):
    """The official `glu`: half of the outputs times swish of the other half."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        plain, gate = self.linear(tokens).chunk(2, -1)
        return plain * silu(gate)


def _decay_gradient(tokens: Tensor, ratio: float) -> Tensor:
    """The same values; the gradient times `ratio`."""
    still = tokens.detach()
    return still + ratio * (tokens - still)
