"""A few learned queries that look at a clip through the layers of a BERT, alone or together with a text: a Q-Former.

Li et al. 2023, BLIP-2, arXiv 2301.12597, section 3.1; salesforce/LAVIS, blip2_models/Qformer.py; in CoAVT, arXiv
2401.12264, as its query encoder. Queries and texts share the BERT's self-attention; the queries alone attend to the
clip, in every second layer, and have MLPs of their own, which begin as those of the BERT. Who sees whom:

    look     queries see queries                                the text is not there
    match    queries and text see both
    tell     queries see queries, a token sees queries and the tokens up to itself

Shape legend: B clips or texts, N queries, L tokens of a text, M of a clip, D width, C width of the clip's tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from timm.layers import Mlp  # type: ignore[attr-defined]
from torch import Tensor, nn

from collimate.encoders import Bert
from collimate.encoders.bert_layers import LAYER_NORM_EPS, AttentionWeights

QUERY_STD = 0.02  # blip2_models/blip2.py; equal queries would stay equal


class QueryEncoder(nn.Module):
    """The queries, and what they have beside a BERT's layers.

    Args:
        bert: whose layers they go through. It belongs to the method, and is no part of these weights.
        queries: N.
        cross_width: C.
        cross_every: a layer in so many attends to the clip, the first of them too.
        init_std: of the weights of the attention to clips.
    """

    def __init__(self, bert: Bert, queries: int, cross_width: int, cross_every: int, init_std: float) -> None:
        super().__init__()
        self._bert = (bert,)  # in a tuple, where it is not registered
        self.queries = nn.Parameter(torch.randn(1, queries, bert.width) * QUERY_STD)
        self.layers = nn.ModuleList(
            _QueryLayer(layer, bert.width, None if number % cross_every else cross_width, init_std)
            for number, layer in enumerate(bert.layers)
        )

    def look(self, clip: Float[Tensor, "B M C"]) -> list[Float[Tensor, "B N D"]]:
        """The queries in front of each layer, and behind the last one."""
        states = [self._first(len(clip))]
        for shared, own in zip(self._bert[0].layers, self.layers, strict=True):
            states.append(own(shared.attention(states[-1], states[-1], None), clip))
        return states

    def match(
        self, clip: Float[Tensor, "B M C"], text: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B N D"]:
        """The queries behind the last layer, which have seen the text as well.

        Args:
            text: the embeddings of its tokens.
        """
        queries = self._first(len(clip))
        count = queries.shape[1]
        mask = torch.cat([mask.new_ones(len(mask), count), mask], 1)
        for shared, own in zip(self._bert[0].layers, self.layers, strict=True):
            both = torch.cat([queries, text], 1)
            queries, text = shared.attention(both, both, mask).split([count, text.shape[1]], 1)
            queries, text = own(queries, clip), shared.output(shared.intermediate(text), text)
        return queries

    def tell(
        self, states: list[Float[Tensor, "B N D"]], text: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L D"]:
        """The tokens behind the last layer, each of which has seen the queries and what stands before it.

        Args:
            states: of `look`.
            text: the embeddings of its tokens.
        """
        length = text.shape[1]
        past = torch.ones(length, length, dtype=torch.bool, device=text.device).tril() & mask[:, None]
        allowed = torch.cat([past.new_ones(len(text), length, states[0].shape[1]), past], 2)
        for shared, queries in zip(self._bert[0].layers, states[:-1], strict=True):
            text = shared.attention(text, torch.cat([queries, text], 1), allowed)
            text = shared.output(shared.intermediate(text), text)
        return text

    def _first(self, count: int) -> Float[Tensor, "B N D"]:
        embeddings = self._bert[0].embeddings
        return embeddings.dropout(embeddings.LayerNorm(self.queries)).expand(count, -1, -1)


class _QueryLayer(nn.Module):
    """What queries pass behind the self-attention of a layer: attention to the clip, where there is one, and an MLP."""

    def __init__(self, shared: nn.Module, width: int, cross_width: int | None, init_std: float) -> None:
        super().__init__()
        attention, inner, outer = shared.attention.self, shared.intermediate.dense, shared.output.dense  # type: ignore[union-attr]
        self.dropout = nn.Dropout(attention.dropout)  # type: ignore[arg-type]
        self.cross = None
        if cross_width is not None:
            self.cross = AttentionWeights(width, cross_width, attention.heads, attention.dropout)  # type: ignore[arg-type]
            self.cross_out = nn.Linear(width, width)
            self.cross_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
            for module in (*self.cross.children(), self.cross_out):
                nn.init.normal_(module.weight, std=init_std)  # type: ignore[arg-type]
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.mlp = Mlp(width, inner.out_features)  # type: ignore[arg-type]
        self.mlp_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.mlp.fc1.load_state_dict(inner.state_dict())  # type: ignore[arg-type]
        self.mlp.fc2.load_state_dict(outer.state_dict())  # type: ignore[arg-type]

    def forward(self, queries: Float[Tensor, "B N D"], clip: Float[Tensor, "B M C"]) -> Float[Tensor, "B N D"]:
        if self.cross is not None:
            seen = self.cross_out(self.cross(queries, clip, None))
            queries = self.cross_norm(queries + self.dropout(seen))
        return self.mlp_norm(queries + self.dropout(self.mlp(queries)))
