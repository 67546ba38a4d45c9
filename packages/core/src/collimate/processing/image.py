"""Images: any picture to a square of bytes, and bytes to normalised floats on the device.

Shape legend: B images, S side in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from collimate.configurable import at_least
from collimate.processing.base import Processor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # openai/CLIP, clip/clip.py
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)  # openai/CLIP, clip/clip.py

RawImage = Image.Image | np.ndarray | bytes | str | PathLike[str]


class ImageProcessor(Processor):
    """Resize, crop or pad, and normalise, as CLIP (`shortest`) and SigLIP (`squash`) do for evaluation.

    A picture is resized in its own mode and then turned to RGB, as the official code does; an alpha channel
    is dropped, not blended.

    Args:
        size: S, the side of the result in pixels.
        mean: the RGB mean to subtract, for values in [0, 1]. CLIP's unless given; SigLIP's is 0.5.
        std: the RGB deviation to divide by.
        interpolation: antialiased, by Pillow.
        resize: `shortest` brings the shorter side to S and crops the centre; `squash` brings both to S; `longest`
            brings the longer side to S and pads the shorter one with black on both sides, as open_clip does, so that
            nothing is lost and no shape changed.

    Raises:
        ValueError: S is not positive, or there is no such way to resize.
    """

    def __init__(
        self,
        size: int = 224,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic",
        resize: Literal["shortest", "squash", "longest"] = "shortest",
    ) -> None:
        if resize not in ("shortest", "squash", "longest"):
            raise ValueError(f"resize is 'shortest', 'squash' or 'longest', not {resize!r}.")
        at_least(1, size=size)
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)
        self.interpolation, self.resize = interpolation, resize

    def __call__(self, raw: RawImage) -> UInt8[Tensor, "3 S S"]:
        """One picture to bytes.

        Args:
            raw: a Pillow image, an array (H, W) or (H, W, C) of bytes, an encoded file's bytes, or its path.
        """
        image: Any = self.opened(raw)  # torchvision takes Pillow images, but its annotations do not say so
        mode = transforms.InterpolationMode(self.interpolation)
        width, height = self._resized(*image.size)
        image = transforms.resize(image, [height, width], interpolation=mode, antialias=True)
        return self.toned(
            transforms.pil_to_tensor(transforms.center_crop(image.convert("RGB"), [self.size, self.size]))
        )

    def opened(self, raw: Any) -> Image.Image:
        """The whole picture, of 8 bits a channel; in training, crops are drawn from it."""
        return open_image(raw)

    def toned(self, pixels: UInt8[Tensor, "3 S S"]) -> UInt8[Tensor, "3 S S"]:
        """What is done to the pixels of the result, in training too; nothing unless overridden."""
        return pixels

    def placement(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Where the points of a picture come to lie, so that boxes and masks can follow it.

        Args:
            width, height: of the picture in pixels.

        Returns:
            (scale_x, scale_y, shift_x, shift_y): (x, y) moves to (scale_x x + shift_x, scale_y y + shift_y).
        """
        resized = self._resized(width, height)
        shift_x, shift_y = (  # torchvision's rounding of what is cropped, and of what is padded
            -round((side - self.size) / 2) if side > self.size else (self.size - side) // 2 for side in resized
        )
        return resized[0] / width, resized[1] / height, float(shift_x), float(shift_y)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before cropping or padding."""
        if self.resize == "squash":
            return self.size, self.size
        if self.resize == "longest":  # open_clip's rounding
            ratio = max(width / self.size, height / self.size)
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        shorter = min(width, height)  # torchvision's rounding
        return int(self.size * width / shorter), int(self.size * height / shorter)

    def finish(self, batch: Shaped[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        """Bytes to normalised float32. A floating-point batch counts as normalised already: it is unchanged."""
        if batch.is_floating_point():
            return batch
        scale = torch.tensor(self.std, device=batch.device).mul_(255).reciprocal_().view(3, 1, 1)
        shift = torch.tensor(self.mean, device=batch.device).mul_(-255).view(3, 1, 1)
        return batch.to(torch.float32).add_(shift).mul_(scale)

    def shaped(self, shape: int) -> ImageProcessor:
        """The same for pictures of another side, in pixels."""
        return self.changed(size=shape)

    def example(self) -> Image.Image:
        row, column = np.indices((45, 60), dtype=np.float32)
        waves = [np.sin(row / 5), np.sin(column / 7), np.sin((row + column) / 3)]
        return Image.fromarray((np.stack(waves, axis=-1) * 127 + 128).astype(np.uint8))


def open_image(raw: RawImage) -> Image.Image:
    """A Pillow image from whatever holds one.

    Raises:
        TypeError: it holds none.
        PIL.UnidentifiedImageError: the bytes are no picture.
    """
    if isinstance(raw, Image.Image):
        return raw
    if isinstance(raw, np.ndarray):
        return Image.fromarray(raw)
    if isinstance(raw, bytes):
        return Image.open(io.BytesIO(raw))
    if isinstance(raw, str | PathLike):
        return Image.open(Path(raw))
    raise TypeError(f"Expected a Pillow image, an array, bytes or a path, got a {type(raw).__name__}.")
