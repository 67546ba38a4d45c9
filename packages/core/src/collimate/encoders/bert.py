"""BERT as a text tower, and as the encoder that fuses texts with pictures or videos, of the ALBEF family.

Devlin et al. 2019, BERT, arXiv 1810.04805. ALBEF (Li et al. 2021, arXiv 2107.07651) and TCL (Yang et al. 2022, arXiv
2202.10401) split its layers: those below `fusion_layer` read the text alone, the others are given cross-attention to
the tokens of a picture. ALPRO (Li et al. 2022, arXiv 2112.09583) has no cross-attention: its upper layers read the
tokens of the text and of the video one after the other. In the words of the official code:

    mode text           bert(ids, mask)
    mode fusion         bert.fuse(text, image), or bert.fuse_joined(text, video)
    mode multi_modal    bert.fuse(bert(ids, mask), image)

Shape legend: B texts, L text tokens, P tokens of what is fused, H heads, D width, C its width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from collimate.encoders.base import Encoder, strides
from collimate.encoders.bert_layers import INITIAL_STD, PADDING, BertEmbeddings, BertLayer, BertTokenHead
from collimate.encoders.bert_weights import fill_bert
from collimate.encoding import Encoding


class Bert(Encoder):
    """BERT, whose upper layers may fuse a text with another modality. Every parameter has its official name.

    As a tower it gives the tokens after the text layers; `pooled` is the first one, [CLS].

    Args:
        pretrained: initial weights: a folder as transformers writes it, a hub id such as `bert-base-uncased`, or a file
            with a state dict, such as a checkpoint of ALBEF, TCL or ALPRO. The sizes must be those of the weights.
            Cross-attention and token head stay random where the weights have none.
        vocab_size: V.
        context_length: the longest text in tokens.
        width: D.
        layers: of both kinds.
        heads: H, attention heads.
        hidden: width of the MLPs.
        fusion_layer: the first layer that fuses; None where none does.
        cross_width: C, the width of the tokens that fusion layers attend to; None where they have no cross-attention.
        token_head: whether there is a head that predicts tokens, for `token_logits`.
        dropout: of embeddings, attention weights and sub-layers, in training.
        grad_checkpointing: recompute activations in the backward pass.
        init_std: of random weights. BERT's 0.02 suits a width of 768; narrow towers set out sooner with
            about width^-1/2.

    Raises:
        ValueError: the sizes contradict each other.
        CheckpointError: the weights are missing, damaged, or of another model.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        vocab_size: int = 30522,
        context_length: int = 512,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        fusion_layer: int | None = None,
        cross_width: int | None = None,
        token_head: bool = False,
        dropout: float = 0.1,
        grad_checkpointing: bool = False,
        init_std: float = INITIAL_STD,
    ) -> None:
        super().__init__()
        self.fusion_layer = layers if fusion_layer is None else fusion_layer
        _check(width, heads, layers, self.fusion_layer, cross_width)
        self.width, self.cross_width, self.grad_checkpointing = width, cross_width, grad_checkpointing
        self.embeddings = BertEmbeddings(vocab_size, context_length, width, dropout)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(
            BertLayer(width, heads, hidden, dropout, cross_width if number >= self.fusion_layer else None)
            for number in range(layers)
        )
        self.cls = BertTokenHead(self.embeddings.word_embeddings) if token_head else None
        self.apply(partial(_initialise, std=init_std))
        if pretrained is not None:
            sizes = {
                "vocab_size": vocab_size,
                "max_position_embeddings": context_length,
                "hidden_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "intermediate_size": hidden,
            }
            fill_bert(self, pretrained, sizes)

    def forward(self, inputs: Int64[Tensor, "B L"], mask: Bool[Tensor, "B L"] | None = None) -> Encoding:
        """Encode texts by the layers below `fusion_layer`.

        Args:
            inputs: ids.
            mask: True where a token is real; where its id is not 0, BERT's padding, unless given.

        Raises:
            ValueError: the texts are longer than `context_length`.
        """
        mask = inputs != PADDING if mask is None else mask
        return self._through(self.layers[: self.fusion_layer], self.embeddings(inputs), mask)

    def fuse(self, text: Encoding, other: Encoding) -> Encoding:
        """Texts that have looked at pictures: the layers from `fusion_layer` on, with cross-attention.

        Args:
            text: what `forward` gave, B texts.
            other: B pictures, one for each text: tokens (B, P, C), padding masked.

        Returns:
            the text's tokens (B, L, D), fused; `pooled` is the first one.

        Raises:
            ValueError: there is no cross-attention, or the two do not fit each other.
        """
        if self.cross_width is None:
            raise ValueError("This Bert has no cross-attention: build it with `cross_width`, or use `fuse_joined`.")
        tokens, _ = _pairs(text, other, self.cross_width)
        return self._through(self.layers[self.fusion_layer :], tokens, text.mask, other)

    def fuse_joined(self, text: Encoding, other: Encoding) -> Encoding:
        """Texts and videos that have looked at each other: self-attention over the tokens of both, text first.

        Args:
            text: what `forward` gave, B texts.
            other: B videos, one for each text: tokens (B, P, D), padding masked.

        Returns:
            the tokens of both (B, L + P, D), fused; `pooled` is the first one.

        Raises:
            ValueError: the fusion layers have cross-attention, or there are none, or the two do not fit each other.
        """
        if self.cross_width is not None:
            raise ValueError("The fusion layers of this Bert have cross-attention: use `fuse`, or drop `cross_width`.")
        if self.fusion_layer == len(self.layers):
            raise ValueError("This Bert has no layers that fuse: build it with `fusion_layer`.")
        joined = torch.cat(_pairs(text, other, self.width), dim=1)
        masked = text.mask is not None or other.mask is not None
        mask = torch.cat([text.token_mask, other.token_mask], dim=1) if masked else None
        return self._through(self.layers[self.fusion_layer :], joined, mask)

    def token_logits(self, tokens: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Which token of the vocabulary each vector stands for. Choose the masked ones first: V is large.

        Raises:
            ValueError: there is no such head.
        """
        if self.cls is None:
            raise ValueError("This Bert predicts no tokens: build it with `token_head=True`.")
        return self.cls(tokens)

    @contextmanager
    def cross_attention(self) -> Iterator[list[Float[Tensor, "B H L P"]]]:
        """Within, the cross-attention weights are kept: the list yielded grows by one for each fusion layer, in order.

        They carry their graph, for explanations by their gradient:

            with bert.cross_attention() as weights:
                score = head(bert.fuse(text, image).pooled)[:, 1].sum()
            gradient = torch.autograd.grad(score, weights[2])
        """
        recorded: list[Tensor] = []
        attentions: list[Any] = [layer.crossattention.self for layer in self.layers if layer.crossattention]
        for attention in attentions:
            attention.recorded = recorded
        try:
            yield recorded
        finally:
            for attention in attentions:
                attention.recorded = None

    @property
    def layers(self) -> Any:
        """All layers, those of the text first."""
        return self.encoder.layer

    def example(self) -> Int64[Tensor, "B L"]:
        words = self.embeddings.word_embeddings.num_embeddings
        return strides(2, min(16, self.embeddings.position_embeddings.num_embeddings), below=words)

    def _through(self, layers: Any, hidden: Tensor, mask: Tensor | None, other: Encoding | None = None) -> Encoding:
        context = () if other is None else (other.tokens, other.mask)
        recompute = self.grad_checkpointing and self.training and torch.is_grad_enabled()
        for layer in layers:
            if recompute:
                hidden = checkpoint(layer, hidden, mask, *context, use_reentrant=False)
            else:
                hidden = layer(hidden, mask, *context)
        return Encoding(hidden[:, 0], hidden, mask)


def _check(width: int, heads: int, layers: int, fusion_layer: int, cross_width: int | None) -> None:
    if width % heads:
        raise ValueError(f"A width of {width} does not divide into {heads} heads.")
    if not 0 <= fusion_layer <= layers:
        raise ValueError(f"fusion_layer is one of the {layers} layers, counted from 0, not {fusion_layer}.")
    if cross_width is not None and fusion_layer == layers:
        raise ValueError("cross_width is for the layers from `fusion_layer` on, but there are none: give fusion_layer.")


def _pairs(text: Encoding, other: Encoding, width: int) -> tuple[Tensor, Tensor]:
    """The tokens of both, which fit each other."""
    if text.tokens is None or other.tokens is None:
        raise ValueError("Fusion needs the tokens of both sides.")
    if len(text.tokens) != len(other.tokens) or other.tokens.shape[2] != width:
        raise ValueError(
            f"Fusion takes one picture or video for each text, of tokens of width {width}; got "
            f"{tuple(text.tokens.shape)} and {tuple(other.tokens.shape)}."
        )
    return text.tokens, other.tokens


def _initialise(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])
