"""Raw inputs to tokens with positions: voxels of clips, pieces of waveforms, words.

VATT, arXiv 2104.11178, sections 3.1 and 3.2. A token is a matrix times a piece of the input, plus

    LN( e_time + e_row + e_column )  for videos,    LN( e_place )  for sounds and texts,

with a learned table a direction. The form for one transformer of all modalities has a matrix and a GELU more, before
the positions.

Shape legend: B samples, T frames, H W pixels, S samples of sound, L words, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import interpolate

from collimate.configurable import Configurable
from collimate.encoders.base import strides, waves

LAYER_NORM_EPS = 1e-6  # google-research/vatt, configs
INITIAL_STD = 0.02  # as in every ViT
AUDIBLE = 1e-3  # ours: of a spectrum, what counts as silence under the logarithm


class Tokens(nn.Module, Configurable):
    """From a batch of one modality to tokens (B, N, D) and the grid that they lie on.

    Attributes:
        width: D.
        droppable: whether DropToken may leave some out; not of texts.
    """

    width: int
    droppable = True

    def forward(self, inputs: Tensor) -> tuple[Float[Tensor, "B N D"], tuple[int, ...]]:
        raise NotImplementedError

    def example(self) -> Tensor:
        """A small batch of valid inputs."""
        raise NotImplementedError


class VideoPatches(Tokens):
    """Voxels of clips, on the grid (time, height, width).

    Args:
        frames, image_size: T and the side H = W that positions are made for; others are taken, and positions resized.
        patch: frames, rows and columns of a voxel.
        width: D.
        projected: a matrix and a GELU after the voxels, as for a transformer that modalities share.

    Raises:
        ValueError: voxels do not divide the clip.
    """

    def __init__(
        self,
        frames: int = 32,
        image_size: int = 224,
        patch: tuple[int, int, int] = (4, 16, 16),
        width: int = 768,
        projected: bool = False,
    ) -> None:
        super().__init__()
        self.frames, self.image_size, self.width = frames, image_size, width
        self.patch = (patch[0], patch[1], patch[2])
        grid = self._grid((frames, image_size, image_size))
        self.proj = nn.Conv3d(3, width, self.patch, self.patch)
        self.pre = _pre_projection(width, projected)
        self.positions = Positions(grid, width)

    def forward(self, inputs: Float[Tensor, "B T 3 H W"]) -> tuple[Float[Tensor, "B N D"], tuple[int, ...]]:
        """Raises ValueError where the inputs are no clips that voxels divide."""
        if inputs.ndim != 5 or inputs.shape[2] != 3:
            raise ValueError(f"Clips are (batch, frames, 3, height, width); got {tuple(inputs.shape)}.")
        grid = self._grid((inputs.shape[1], *inputs.shape[3:]))
        tokens = self.pre(self.proj(inputs.transpose(1, 2)).flatten(2).mT)
        return tokens + self.positions(grid), grid

    def example(self) -> Float[Tensor, "B T 3 H W"]:
        return waves(2, self.frames, 3, self.image_size, self.image_size)

    def _grid(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(size % side or not size for size, side in zip(sizes, self.patch, strict=True)):
            raise ValueError(f"Voxels of {self.patch} do not divide clips of {sizes} frames, rows and columns.")
        return tuple(size // side for size, side in zip(sizes, self.patch, strict=True))


class WavePatches(Tokens):
    """Pieces of waveforms.

    Args:
        samples: S that positions are made for; others are taken, and positions resized. What is no whole piece at the
            end is not heard.
        patch: samples of a piece.
        width: D.
        projected: as of `VideoPatches`.
    """

    def __init__(self, samples: int = 153_600, patch: int = 128, width: int = 768, projected: bool = False) -> None:
        super().__init__()
        if not 1 <= patch <= samples:
            raise ValueError(f"A waveform of {samples} samples has no pieces of {patch}.")
        self.samples, self.patch, self.width = samples, patch, width
        self.proj = self._matrix()
        self.pre = _pre_projection(width, projected)
        self.positions = Positions((samples // patch,), width)

    def forward(self, inputs: Float[Tensor, "B S"]) -> tuple[Float[Tensor, "B N D"], tuple[int, ...]]:
        """Raises ValueError where the inputs are no waveforms of at least one piece."""
        if inputs.ndim != 2 or inputs.shape[1] < self.patch:
            raise ValueError(f"Waveforms are (batch, samples), {self.patch} or more; got {tuple(inputs.shape)}.")
        tokens = self.pre(self._pieces(inputs))
        return tokens + self.positions((tokens.shape[1],)), (tokens.shape[1],)

    def example(self) -> Float[Tensor, "B S"]:
        return waves(2, self.samples)

    def _matrix(self) -> nn.Module:
        return nn.Conv1d(1, self.width, self.patch, self.patch)

    def _pieces(self, inputs: Float[Tensor, "B S"]) -> Float[Tensor, "B N D"]:
        return self.proj(inputs[:, None]).mT


class WaveSpectra(WavePatches):
    """Pieces of waveforms by the logarithms of their spectra, in the place of their samples.

    Ours: from random weights, matrices that tell pitches whatever their phase are not learned in a run of minutes.

    Args:
        samples, patch, width, projected: as of `WavePatches`.
    """

    window: Float[Tensor, " patch"]

    def __init__(self, samples: int = 153_600, patch: int = 128, width: int = 768, projected: bool = False) -> None:
        super().__init__(samples, patch, width, projected)
        self.register_buffer("window", torch.hann_window(patch), persistent=False)

    def _matrix(self) -> nn.Module:
        return nn.Linear(self.patch // 2 + 1, self.width)

    def _pieces(self, inputs: Float[Tensor, "B S"]) -> Float[Tensor, "B N D"]:
        pieces = inputs.float().unfold(1, self.patch, self.patch)
        spectra = torch.fft.rfft(pieces * self.window).abs()
        return self.proj((spectra + AUDIBLE).log10() - math.log10(AUDIBLE) / 2)


class WordTokens(Tokens):
    """Words, or pieces of them.

    Args:
        vocab_size: ids lie below it.
        context_length: L, the longest text.
        width: D.
        word_width: of the table of words, in front of a matrix; VATT's word2vec has 300. D, without a matrix, if None.
        projected: as of `VideoPatches`.
    """

    droppable = False

    def __init__(
        self,
        vocab_size: int = 30522,
        context_length: int = 16,
        width: int = 512,
        word_width: int | None = None,
        projected: bool = False,
    ) -> None:
        super().__init__()
        self.vocab_size, self.context_length, self.width = vocab_size, context_length, width
        self.words = nn.Embedding(vocab_size, word_width or width)
        nn.init.trunc_normal_(self.words.weight, std=INITIAL_STD)
        self.proj = nn.Identity() if word_width is None else nn.Linear(word_width, width)
        self.pre = _pre_projection(width, projected)
        self.positions = Positions((context_length,), width)

    def forward(self, inputs: Int64[Tensor, "B L"]) -> tuple[Float[Tensor, "B L D"], tuple[int, ...]]:
        """Raises ValueError where texts are longer than L."""
        length = inputs.shape[1]
        if length > self.context_length:
            raise ValueError(f"Texts have at most {self.context_length} words; these have {length}.")
        return self.pre(self.proj(self.words(inputs))) + self.positions.first(length), (length,)

    def example(self) -> Int64[Tensor, "B L"]:
        return strides(2, self.context_length, below=self.vocab_size)


class Positions(nn.Module):
    """One learned table for each direction of a grid, added and normalised."""

    def __init__(self, grid: Sequence[int], width: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList(nn.Parameter(torch.empty(size, width)) for size in grid)
        for table in self.tables:
            nn.init.trunc_normal_(table, std=INITIAL_STD)
        self.norm = nn.LayerNorm(width, LAYER_NORM_EPS)

    def forward(self, grid: Sequence[int]) -> Float[Tensor, "N D"]:
        """Those of a grid, row by row; where it is not of the size of the tables, they are resized."""
        total: Any = 0.0
        for axis, (table, size) in enumerate(zip(self.tables, grid, strict=True)):
            shape = [1] * len(grid) + [table.shape[1]]
            shape[axis] = size
            total = total + _resized(table, size).view(shape)
        return self.norm(total).flatten(0, -2)

    def first(self, count: int) -> Float[Tensor, "N D"]:
        """The first so many of one direction, as they are: a short text is no text in large steps."""
        return self.norm(self.tables[0][:count])


def _resized(table: Float[Tensor, "M D"], size: int) -> Float[Tensor, "N D"]:
    if len(table) == size:
        return table
    return interpolate(table.T[None], size, mode="linear", align_corners=False)[0].T


def _pre_projection(width: int, projected: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.GELU()) if projected else nn.Identity()
