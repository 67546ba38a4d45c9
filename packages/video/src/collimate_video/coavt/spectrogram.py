"""Patches of spectrograms as tokens, for an audio tower made as a vision transformer.

Gong et al. 2021, AST, arXiv 2104.01778, without the overlap of its patches, as in CAV-MAE and CoAVT.

Shape legend: B sounds, F frames, M bands, N tokens, D width.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from collimate.encoders.base import waves
from collimate_video.vatt.tokens import Positions, Tokens


class SpectrogramPatches(Tokens):
    """Squares of a spectrogram, on the grid (time, band).

    Args:
        frames, bands: F and M that positions are made for; other F are taken, and positions resized. What is no whole
            patch at the end is not heard.
        patch: the side of a square.
        width: D.

    Raises:
        ValueError: there is no whole patch.
    """

    def __init__(self, frames: int = 1024, bands: int = 128, patch: int = 16, width: int = 768) -> None:
        super().__init__()
        if not 1 <= patch <= min(frames, bands):
            raise ValueError(f"Spectrograms of {frames} frames and {bands} bands have no squares of side {patch}.")
        self.frames, self.bands, self.patch, self.width = frames, bands, patch, width
        self.proj = nn.Conv2d(1, width, patch, patch)
        self.positions = Positions((frames // patch, bands // patch), width)

    def forward(self, inputs: Float[Tensor, "B F M"]) -> tuple[Float[Tensor, "B N D"], tuple[int, ...]]:
        """Raises ValueError where the inputs are no spectrograms of so many bands and at least one patch."""
        if inputs.ndim != 3 or inputs.shape[2] != self.bands or inputs.shape[1] < self.patch:
            raise ValueError(
                f"Spectrograms are (batch, frames, {self.bands}) of {self.patch} or more frames; got "
                f"{tuple(inputs.shape)}."
            )
        maps = self.proj(inputs[:, None])
        grid = (maps.shape[2], maps.shape[3])
        return maps.flatten(2).mT + self.positions(grid), grid

    def example(self) -> Float[Tensor, "B F M"]:
        return waves(2, self.frames, self.bands)
