"""BERT's layers, under the names that its published weights carry.

Devlin et al. 2019, BERT, arXiv 1810.04805; cross-attention as in ALBEF (Li et al. 2021, arXiv 2107.07651). Every layer
is post-norm: h <- LayerNorm(h + dropout(f(h))) for f the self-attention, the cross-attention where there is one, and
the MLP in turn.

Shape legend: B texts, L tokens of a text, S tokens that are attended to, H heads, D width, C width of what is attended
to, M width of the MLP, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, scaled_dot_product_attention

LAYER_NORM_EPS = 1e-12  # google-research/bert, modeling.py; all published weights have it
INITIAL_STD = 0.02  # BERT, appendix A.2: google-research/bert, modeling.py
PADDING = 0  # the id that fills up short texts, in all published vocabularies
TOKEN_TYPES = 2  # first and second sentence; texts here are first sentences throughout


class BertEmbeddings(nn.Module):
    """Word, position and token-type embeddings, added and normalised."""

    def __init__(self, vocab_size: int, context_length: int, width: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, width, padding_idx=PADDING)  # padding learns nothing
        self.position_embeddings = nn.Embedding(context_length, width)
        self.token_type_embeddings = nn.Embedding(TOKEN_TYPES, width)
        self.LayerNorm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Int64[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        length = self.position_embeddings.num_embeddings
        if ids.shape[1] > length:
            raise ValueError(f"Texts of {ids.shape[1]} tokens for a BERT of {length} positions: shorten the texts.")
        positions = self.position_embeddings.weight[: ids.shape[1]]
        return self.dropout(
            self.LayerNorm(self.word_embeddings(ids) + positions + self.token_type_embeddings.weight[0])
        )


class BertLayer(nn.Module):
    """One layer; with `cross_width`, it attends to vectors of that width too."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, cross_width: int | None = None) -> None:
        super().__init__()
        self.attention = _Attention(width, width, heads, dropout)
        self.crossattention = None if cross_width is None else _Attention(width, cross_width, heads, dropout)
        self.intermediate = _Intermediate(width, hidden)
        self.output = _Output(hidden, width, dropout)

    def forward(
        self,
        hidden: Float[Tensor, "B L D"],
        mask: Bool[Tensor, "B L"] | None,
        context: Float[Tensor, "B S C"] | None = None,
        context_mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        hidden = self.attention(hidden, hidden, mask)
        if self.crossattention is not None:
            assert context is not None
            hidden = self.crossattention(hidden, context, context_mask)
        return self.output(self.intermediate(hidden), hidden)


class BertTokenHead(nn.Module):
    """The logits of the vocabulary for each token; the decoder's weights are the word embeddings."""

    def __init__(self, embeddings: nn.Embedding) -> None:
        super().__init__()
        self.predictions = _Predictions(embeddings)

    def forward(self, tokens: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return self.predictions(tokens)


class AttentionWeights(nn.Module):
    """Scaled dot-product attention, whose weights can be recorded.

    A mask tells what is attended to: (B, S) by all vectors, or (B, L, S) by each.

    Attributes:
        recorded: where each call leaves its weights, (B, H, L, S), with their graph; None records nothing, so that the
            fused kernels need never hold them.
    """

    def __init__(self, width: int, context_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width, width)
        self.value = nn.Linear(context_width, width)
        self.heads, self.dropout = heads, dropout
        self.recorded: list[Tensor] | None = None

    def forward(self, hidden: Tensor, context: Tensor, mask: Tensor | None) -> Float[Tensor, "B L D"]:
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(hidden), self.key(context), self.value(context))
        )
        allowed = None if mask is None else mask[:, None, None] if mask.ndim == 2 else mask[:, None]
        rate = self.dropout if self.training else 0.0
        if self.recorded is None:
            attended = scaled_dot_product_attention(query, key, value, allowed, rate)
        else:
            weights = _weights(query, key, allowed)
            self.recorded.append(weights)
            attended = dropout(weights, rate) @ value
        return attended.transpose(1, 2).flatten(2)


def _weights(query: Tensor, key: Tensor, allowed: Tensor | None) -> Float[Tensor, "B H L S"]:
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    return (scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)).softmax(-1)


class _Attention(nn.Module):
    def __init__(self, width: int, context_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self = AttentionWeights(width, context_width, heads, dropout)
        self.output = _Output(width, width, dropout)

    def forward(self, hidden: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        return self.output(self.self(hidden, context, mask), hidden)


class _Intermediate(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        return gelu(self.dense(hidden))


class _Output(nn.Module):
    """The second half of every sub-layer: a matrix, dropout, the residual, the norm."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class _Predictions(nn.Module):
    def __init__(self, embeddings: nn.Embedding) -> None:
        super().__init__()
        vocab_size, width = embeddings.weight.shape
        self.transform = _Transform(width)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.decoder = nn.Linear(width, vocab_size)
        self.decoder.weight, self.decoder.bias = embeddings.weight, self.bias

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.transform(tokens))


class _Transform(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, LAYER_NORM_EPS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.LayerNorm(gelu(self.dense(tokens)))
