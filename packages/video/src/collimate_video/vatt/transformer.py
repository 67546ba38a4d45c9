"""A transformer on tokens, of one modality or shared by several, and the tower that it makes with a modality's tokens.

VATT, arXiv 2104.11178, sections 3.2 to 3.4; google-research/vatt, modeling/backbones. Pre-norm, biases, GELU; a learned
token in front, whose last state is the feature. DropToken leaves out a random share of the tokens in training, after
their positions were added.

Shape legend: B samples, N tokens, K of them kept, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from collimate.configurable import Configurable
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate_video.vatt.tokens import INITIAL_STD, LAYER_NORM_EPS, Tokens

DropBy = Literal["sample", "batch"]


class TokenTransformer(nn.Module, Configurable):
    """Layers over any tokens of one width. The defaults are VATT's Base.

    Args:
        width: D.
        layers, heads, hidden: of the transformer; hidden is the width of the MLPs.
        dropout: in training.
        init_std: of random weights; see `collimate.encoders.Bert`.

    Raises:
        ValueError: heads do not divide the width.
    """

    def __init__(
        self,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        dropout: float = 0.1,
        init_std: float = INITIAL_STD,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"A width of {width} does not divide into {heads} heads.")
        self.width = width
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, hidden, dropout, "gelu", LAYER_NORM_EPS, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        for name, parameter in self.layers.named_parameters():
            if parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=init_std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self, tokens: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """One pass.

        Args:
            mask: True where a token is real; None for all.
        """
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=None if mask is None else ~mask)
        return self.dropout(self.norm(tokens))


class TokenEncoder(Encoder):
    """A modality's tokens through a transformer: `pooled` is the learned token in front, `tokens` are all others.

    Args:
        tokens: the modality's.
        transformer: its own; None where it is to share one, which `share` then gives it.
        drop: the share of tokens that are left out in training; not of texts.
        drop_by: `sample` draws anew for each sample; `batch` once for all of them, as the released code.
        dropout: of the tokens with their positions, in training.
        head_width: width of a matrix with a GELU after the transformer, which makes a modality's own feature of a
            shared one; None for no such matrix.

    Raises:
        ValueError: the widths differ, or words were to be dropped.
    """

    def __init__(
        self,
        tokens: Tokens,
        transformer: TokenTransformer | None = None,
        drop: float = 0.0,
        drop_by: DropBy = "sample",
        dropout: float = 0.1,
        head_width: int | None = None,
    ) -> None:
        super().__init__()
        _check(tokens, drop, drop_by)
        self.width = head_width or tokens.width
        self.drop = drop
        self.drop_by: DropBy = drop_by
        self.tokens, self.transformer = tokens, transformer
        self.first = nn.Parameter(torch.empty(1, 1, tokens.width))
        nn.init.trunc_normal_(self.first, std=INITIAL_STD)
        self.dropout = nn.Dropout(dropout)
        self.head = None if head_width is None else nn.Sequential(nn.Linear(tokens.width, head_width), nn.GELU())
        self._shared: tuple[TokenTransformer, ...] = ()
        if transformer is not None:
            _check_width(tokens, transformer)

    def share(self, transformer: TokenTransformer) -> None:
        """Use this transformer, which belongs to someone else: it is no part of this encoder's weights.

        Raises:
            ValueError: the encoder has its own, or the widths differ.
        """
        if self.transformer is not None:
            raise ValueError("This encoder has a transformer of its own: build it without, to share one.")
        _check_width(self.tokens, transformer)
        self._shared = (transformer,)  # in a tuple, where it is not registered

    def forward(self, inputs: Tensor, mask: Bool[Tensor, "B N"] | None = None) -> Encoding:
        """Encode a batch.

        Args:
            mask: True where a token is real, for texts.

        Raises:
            ValueError: there is no transformer.
        """
        tokens, grid = self.tokens(inputs)
        tokens = self.dropout(tokens)
        dropped = self.training and self.drop > 0
        if dropped:
            tokens = kept_tokens(tokens, self.drop, self.drop_by)
        tokens = torch.cat([self.first.expand(len(tokens), -1, -1), tokens], 1)
        seen = self._trunk(tokens, None if mask is None else pad(mask, (1, 0), value=True))
        seen = seen if self.head is None else self.head(seen)
        on_grid = len(grid) > 1 and not dropped
        return Encoding(seen[:, 0], seen[:, 1:], mask, grid if on_grid else None)

    def example(self) -> Tensor:
        return self.tokens.example()

    @property
    def _trunk(self) -> TokenTransformer:
        if self.transformer is None and not self._shared:
            raise ValueError("This encoder has no transformer: build it with one, or let it `share` one.")
        return self.transformer or self._shared[0]


def kept_tokens(tokens: Float[Tensor, "B N D"], drop: float, by: DropBy) -> Float[Tensor, "B K D"]:
    """DropToken: K = (1 - drop) N of the tokens, rounded down but at least one, drawn anew each time."""
    batch, count, width = tokens.shape
    kept = max(1, int((1 - drop) * count))
    draws = torch.rand(batch if by == "sample" else 1, count, device=tokens.device)
    places = draws.argsort(1)[:, :kept].expand(batch, -1)
    return tokens.gather(1, places[:, :, None].expand(-1, -1, width))


def _check(tokens: Tokens, drop: float, drop_by: str) -> None:
    if not 0 <= drop < 1 or (drop and not tokens.droppable):
        raise ValueError(f"drop is a share from 0 to below 1, and 0 for words; got {drop}.")
    if drop_by not in ("sample", "batch"):
        raise ValueError(f"drop_by is 'sample' or 'batch', not {drop_by!r}.")


def _check_width(tokens: Tokens, transformer: TokenTransformer) -> None:
    if tokens.width != transformer.width:
        raise ValueError(f"Tokens of width {tokens.width} do not fit a transformer of width {transformer.width}.")
