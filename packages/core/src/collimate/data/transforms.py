"""Training transforms of pictures; the evaluation transform is the `ImageProcessor` of the method.

Shape legend: S side in pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes

from collimate.data.preparation import Augmentation
from collimate.data.regions import Box, Placement, clipped, is_seen, placed_box
from collimate.processing import ImageProcessor
from collimate.processing.image import RawImage

Crop = tuple[int, int, int, int]
"""left, top, right, bottom, in pixels"""


class ImageAugmentation(Augmentation):
    """A random resized crop, and whatever else of torchvision one wants after it.

    Only the pixels that are needed are decoded: a JPEG is read at the smallest scale that still has a pixel for each
    one of the result. All randomness is from the global generators, which the loader seeds for each sample.

    Args:
        scale: least and greatest share of the picture's area that is kept. CLIP's 0.9-1.0 unless given.
        ratio: least and greatest width / height of the crop.
        horizontal_flip: probability of mirroring. Captions that say left and right speak against it.
        color_jitter: brightness, contrast, saturation and hue, as torchvision's `ColorJitter`.
        grayscale: probability of dropping the colour.
        then: further torchvision v2 transforms (or any other callable) on uint8 (3, S, S).
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.0,
        color_jitter: tuple[float, float, float, float] | None = None,
        grayscale: float = 0.0,
        then: Sequence[Callable[..., Any]] = (),  # a narrower type would keep recipes from naming a class of transforms
    ) -> None:
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self.after: list[Callable[[Tensor], Tensor]] = []
        if horizontal_flip:
            self.after.append(v2.RandomHorizontalFlip(horizontal_flip))
        if color_jitter is not None:
            self.after.append(v2.ColorJitter(*color_jitter))
        if grayscale:
            self.after.append(v2.RandomGrayscale(grayscale))
        self.after += then

    def __call__(self, raw: RawImage, processor: ImageProcessor) -> UInt8[Tensor, "3 S S"]:
        """One picture, cropped at random, in the size and interpolation of the processor."""
        pixels, _ = self._cropped(raw, processor)
        for transform in self.after:
            pixels = transform(pixels)
        return pixels

    def with_boxes(self, raw: RawImage, processor: ImageProcessor, boxes: Sequence[Box]) -> tuple[Tensor, list[Box]]:
        """The picture as above, and where boxes come to lie in it; those of which nothing is left are all zeros.

        Raises:
            TypeError: one of the further transforms cannot tell.
        """
        pixels, placement = self._cropped(raw, processor)
        side = processor.size
        cropped = [clipped(placed_box(box, placement), side, side) for box in boxes]
        left = [number for number, box in enumerate(cropped) if is_seen(box)]
        corners = torch.tensor([cropped[number] for number in left]).view(-1, 4)
        moved: Any = BoundingBoxes(corners, format="XYXY", canvas_size=(side, side))  # type: ignore[call-overload]
        for transform in self.after:
            if not isinstance(transform, v2.Transform):
                raise TypeError(f"{transform} cannot say where boxes come to lie; torchvision's v2 transforms can.")
            pixels, moved = transform(pixels, moved)
        found: list[Box] = [(0.0, 0.0, 0.0, 0.0)] * len(boxes)
        for number, corners in zip(left, moved.tolist(), strict=True):
            found[number] = tuple(corners)
        return pixels, found

    def _cropped(self, raw: RawImage, processor: ImageProcessor) -> tuple[Tensor, Placement]:
        """A random part of the picture, and where its points lie."""
        image = processor.opened(raw)
        left, top, right, bottom = random_box(*image.size, self.scale, self.ratio)
        pixels = crop_and_resize(image, (left, top, right, bottom), processor.size, processor.interpolation)
        pixels = processor.toned(pixels)
        x, y = processor.size / (right - left), processor.size / (bottom - top)
        return pixels, (x, y, -left * x, -top * y)


class StrongImageAugmentation(ImageAugmentation):
    """What methods use that contrast two views of one picture: crop, colour, blur, mirror and RandAugment.

    As TCL (Yang et al. 2022, arXiv 2202.10401) pre-trains: a crop of at least a fifth of the area; colour jitter
    (0.4, 0.4, 0.4, 0.1) with probability 0.8; grey with 0.2; Gaussian blur of 0.1 to 2 pixels with 0.5; mirroring; and
    two operations of `SpatialRandAugment` at level 7 of 10. The ranges of its operations are torchvision's.

    Args:
        scale: least and greatest share of the picture's area that is kept.
        horizontal_flip: probability of mirroring. Captions that say left and right speak against it.
    """

    def __init__(self, scale: tuple[float, float] = (0.2, 1.0), horizontal_flip: float = 0.5) -> None:
        super().__init__(
            scale,
            horizontal_flip=horizontal_flip,
            then=[
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5),  # 13 pixels: three deviations on each side
                SpatialRandAugment(num_ops=2, magnitude=7, num_magnitude_bins=11),  # levels 0 to 10
            ],
        )


def rand_augment_operations(*names: str) -> dict[str, Any]:
    """Some of the operations of torchvision's RandAugment: these, and those that change neither colour nor contrast.

    A subclass of RandAugment sets them as its `_AUGMENTATION_SPACE`, torchvision's own way of choosing them.
    """
    moving = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    chosen = ("Identity", *names, "Brightness", "Sharpness", *moving)  # their order decides what a seed draws
    return {name: v2.RandAugment._AUGMENTATION_SPACE[name] for name in chosen}


class SpatialRandAugment(v2.RandAugment):
    """torchvision's RandAugment without the operations on colour and contrast, whose names captions hold."""

    _AUGMENTATION_SPACE = rand_augment_operations("AutoContrast", "Equalize")


def random_box(width: int, height: int, scale: Sequence[float], ratio: Sequence[float]) -> Crop:
    """A box of random area, shape and place, as torchvision's RandomResizedCrop draws it.

    After ten draws that do not fit, the largest central box of an allowed shape.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        shape = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop_and_resize(image: Image.Image, box: Crop, size: int, interpolation: str = "bicubic") -> UInt8[Tensor, "3 S S"]:
    """The box of a picture, resized with antialiasing, as RGB; its memory is channels last.

    torch's resize of bytes is several times as fast as Pillow's and differs from it by less than 0.05 grey levels on
    average. At a reduced scale the box is rounded to that scale's pixels.

    Args:
        image: best not loaded yet, so that a JPEG can be decoded at a fraction of its size.
        box: in pixels of the full size.
    """
    left, top, right, bottom = box
    width, height = image.size
    # The decoder's scale that leaves at least one pixel for each of the result's.
    image.draft("RGB", (math.ceil(width * size / (right - left)), math.ceil(height * size / (bottom - top))))
    x, y = image.width / width, image.height / height
    left, top = min(round(left * x), image.width - 1), min(round(top * y), image.height - 1)
    right, bottom = max(left + 1, round(right * x)), max(top + 1, round(bottom * y))
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    mode = functional.InterpolationMode(interpolation)
    return functional.resized_crop(pixels, top, left, bottom - top, right - left, [size, size], mode, antialias=True)
