"""The two encoders of Le et al. 2023 (arXiv 2301.11716): of speech and of its transcripts.

formiel/fairseq, examples/speech_text_siamese, and the s2t_transformer of fairseq that it builds on: the states, those
of speech after two gated convolutions (kernel 5, stride 2, GLU), times √D, get sinusoidal positions and pass pre-norm
layers.

Departure: padding is zeroed before each convolution, so that a clip's states do not depend on what it is batched with.

Shape legend: B clips or texts, F frames, M mel bands, L tokens, of speech ⌈F / 4⌉, D width.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import glu

from collimate.encoders import Encoder
from collimate.encoders.base import strides, waves
from collimate.encoding import Encoding
from collimate_audio.beats import masked_mean

KERNEL, STRIDE = 5, 2  # arXiv 2301.11716, appendix; formiel/fairseq


class SpeechTransformer(Encoder):
    """A filter bank to a token every four frames; `pooled` is the mean of those that are real.

    The defaults are the medium size of the paper.

    Args:
        width: D.
        layers: of the transformer.
        heads: attention heads.
        hidden: width of the MLPs.
        mel_bands: M.
        channels: between the convolutions, before the gate.
        dropout: of sub-layers, attention and what enters the layers, in training.
    """

    def __init__(
        self,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        hidden: int = 2048,
        mel_bands: int = 80,
        channels: int = 1024,
        dropout: float = 0.15,
    ) -> None:
        super().__init__()
        self.width, self.mel_bands = width, mel_bands
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, KERNEL, STRIDE, KERNEL // 2)
            for before, after in ((mel_bands, channels), (channels // 2, 2 * width))
        )
        self.dropout = nn.Dropout(dropout)
        self.layers = _pre_norm(width, layers, heads, hidden, dropout)

    def forward(self, inputs: Float[Tensor, "B F M"], mask: Bool[Tensor, "B F"] | None = None) -> Encoding:
        states = inputs.mT
        for convolution in self.convolutions:
            if mask is not None:
                states = states.masked_fill(~mask[:, None], 0)
                mask = mask[:, ::STRIDE]  # a state is real where the frame at its middle is
            states = glu(convolution(states), 1)
        tokens = math.sqrt(self.width) * states.mT
        tokens = self.dropout(tokens + sinusoids(tokens.shape[1], self.width, tokens))
        tokens = self.layers(tokens, src_key_padding_mask=None if mask is None else ~mask)
        return Encoding(masked_mean(tokens, mask), tokens, mask)

    def example(self) -> Float[Tensor, "B F M"]:
        return waves(2, 40, self.mel_bands)


class TranscriptTransformer(Encoder):
    """The units of a transcript to a token each; `pooled` is the mean of those that are real.

    The defaults are the medium size of the paper, but for the number of units.

    Args:
        vocab_size: ids lie below it.
        width: D.
        layers: of the transformer.
        heads: attention heads.
        hidden: width of the MLPs.
        dropout: of sub-layers, attention and what enters the layers, in training.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int = 512,
        layers: int = 6,
        heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.15,
    ) -> None:
        super().__init__()
        self.width, self.vocab_size = width, vocab_size
        self.embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)  # fairseq, for embeddings that are multiplied by √D
        self.dropout = nn.Dropout(dropout)
        self.layers = _pre_norm(width, layers, heads, hidden, dropout)

    def forward(self, inputs: Int64[Tensor, "B L"], mask: Bool[Tensor, "B L"] | None = None) -> Encoding:
        tokens = math.sqrt(self.width) * self.embedding(inputs)
        tokens = self.dropout(tokens + sinusoids(tokens.shape[1], self.width, tokens))
        tokens = self.layers(tokens, src_key_padding_mask=None if mask is None else ~mask)
        return Encoding(masked_mean(tokens, mask), tokens, mask)

    def example(self) -> Int64[Tensor, "B L"]:
        return strides(2, 12, below=self.vocab_size)


def _pre_norm(width: int, layers: int, heads: int, hidden: int, dropout: float) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)


def sinusoids(length: int, width: int, like: Tensor) -> Float[Tensor, "length width"]:
    """Positions as sines and cosines of falling frequencies (Vaswani et al. 2017), in the dtype of `like`."""
    rates = torch.exp(torch.arange(width // 2, device=like.device) * -(math.log(10_000) / max(width // 2 - 1, 1)))
    angles = torch.arange(length, device=like.device)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.nn.functional.pad(waves, (0, width % 2)).to(like)
