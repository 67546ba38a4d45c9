"""Any image tower as a video tower: it sees each frame on its own.

The mean over frames of a strong image-text model is the yardstick of every video model; with its tokens, any vision
transformer can stand where ALPRO has its TimeSformer.

Shape legend: B clips, T frames, L tokens of a frame, D width.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from collimate.encoders import Encoder
from collimate.encoders.base import waves
from collimate.encoding import Encoding


class FrameEncoder(Encoder):
    """An image tower on each frame of a clip: `pooled` is the mean over frames, `tokens` are those of all frames.

    Args:
        image_encoder: the image tower. Tokens on a grid (height, width) come on a grid (time, height, width).
        frames: T of the example that exports are traced with; clips of any length are taken.
    """

    def __init__(self, image_encoder: Encoder, frames: int = 4) -> None:
        super().__init__()
        self.image_encoder, self.frames = image_encoder, frames
        self.width = image_encoder.width

    def forward(self, inputs: Float[Tensor, "B T 3 H W"], mask: Tensor | None = None) -> Encoding:
        """Encode a batch of clips.

        Raises:
            ValueError: these are no clips.
        """
        if inputs.ndim != 5:
            raise ValueError(f"Clips are (batch, frames, 3, height, width); got {tuple(inputs.shape)}.")
        clips, frames = inputs.shape[:2]
        seen = self.image_encoder(inputs.flatten(0, 1))
        pooled = seen.pooled.unflatten(0, (clips, frames)).mean(1)
        if seen.tokens is None or seen.grid is None or seen.prefix:
            return Encoding(pooled)
        tokens = seen.tokens.unflatten(0, (clips, frames)).flatten(1, 2)
        return Encoding(pooled, tokens, grid=(frames, *seen.grid))

    def example(self) -> Float[Tensor, "B T 3 H W"] | None:
        one = self.image_encoder.example()
        return None if one is None else waves(2, self.frames, *one.shape[1:])
