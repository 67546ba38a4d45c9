"""Videos to clips: some frames, as a picture's processor would make them, scaled while they are decoded.

Shape legend: B clips, T frames, S side in pixels.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from collimate.data import ClipShape
from collimate.processing import ImageProcessor, Processor
from collimate_video.reading import Framing, RawVideo, open_video
from collimate_video.sampling import Sampler, SegmentStarts


class VideoProcessor(Processor):
    """A clip of T frames of each video, as bytes; `finish` normalises it on its device.

    Frames are resized as `images` says, but by the scaler of the decoder, which differs from Pillow's by a few grey
    levels. ALPRO evaluates frames that it squashes: `ImageProcessor(224, resize="squash")`.

    Args:
        frames: T. Of videos with fewer frames, some stand several times.
        images: size, resizing and normalisation of the frames; CLIP's, which are ALPRO's too, if None.
        sampler: which frames; the first of each of T equal parts if None, as ALPRO evaluates.

    Attributes:
        clip: how a `BatchSchedule` wants clips cut out, for `DenseClips`; None outside of one.
    """

    def __init__(self, frames: int = 4, images: ImageProcessor | None = None, sampler: Sampler | None = None) -> None:
        if frames < 1:
            raise ValueError(f"A clip has at least one frame, not {frames}.")
        self.frames = frames
        self.images = images or ImageProcessor()
        self.sampler = sampler or SegmentStarts()
        self.clip: ClipShape | None = None

    @property
    def size(self) -> int:
        """S."""
        return self.images.size

    def __call__(self, raw: RawVideo) -> UInt8[Tensor, "T 3 S S"]:
        """One video to bytes.

        Args:
            raw: an opened video, the bytes of a file or its path, or an array (T, H, W, 3) of bytes.

        Raises:
            Undecodable: it is damaged, or no video.
        """
        video = open_video(raw)
        return video.frames(self.sampler(video.edges, self.frames), self.framing)

    def framing(self, width: int, height: int) -> Framing:
        """How frames of this size are seen, as `images` would see them."""
        x, y, left, top = self.images.placement(width, height)
        size = (self.size, self.size)
        scaled = max(1, round(x * width)), max(1, round(y * height))
        return Framing(*scaled, round(left), round(top), size, self.images.interpolation)

    def finish(self, batch: Shaped[Tensor, "B T 3 S S"]) -> Float[Tensor, "B T 3 S S"]:
        """Bytes to normalised float32. A floating-point batch counts as normalised already: it is unchanged."""
        return self.images.finish(batch.flatten(0, 1)).unflatten(0, batch.shape[:2])

    def shaped(self, shape: ClipShape) -> VideoProcessor:
        """The same for clips of another length and side."""
        other = self.changed(frames=shape.frames, images=self.images.shaped(shape.crop))
        other.clip = shape
        return other

    def example(self) -> UInt8[np.ndarray, "T H W 3"]:
        picture = np.asarray(self.images.example())
        return np.stack([np.roll(picture, 3 * frame, axis=1) for frame in range(2 * self.frames)])
