"""Training transforms of clips: what is drawn is drawn once a clip, so that motion stays motion.

Shape legend: T frames, S side in pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from torch import Tensor
from torchvision.transforms import v2

from collimate.data import Augmentation, ClipShape
from collimate.data.transforms import rand_augment_operations, random_box
from collimate_video.processor import VideoProcessor
from collimate_video.reading import Framing, RawVideo, open_video
from collimate_video.sampling import HalfDraws, Sampler


class VideoAugmentation(Augmentation):
    """Other frames of each video each time, one random crop of them, and whatever else of torchvision one wants.

    ALPRO (Li et al. 2022, arXiv 2112.09583) pre-trains with frames that are squashed to 256 x 256, of which a random
    224 x 224 are cut: `scale: [0.765625, 0.765625], ratio: null`, and `then: [ClipRandAugment]`.

    Args:
        sampler: which frames; half of them out of each half of the video if None, as ALPRO pre-trains.
        scale: least and greatest share of the frame's area that is kept.
        ratio: least and greatest width / height of the crop; None for the frame's own, whatever becomes of its shape.
        horizontal_flip: probability of mirroring. Captions that say left and right speak against it.
        then: further torchvision v2 transforms (or any other callable) on uint8 (T, 3, S, S), which v2's see as one.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] | None = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.0,
        then: Sequence[Callable[..., Any]] = (),  # a narrower type would keep recipes from naming a class of transforms
    ) -> None:
        self.sampler = sampler or HalfDraws()
        self.scale, self.ratio = tuple(scale), ratio
        flips = [v2.RandomHorizontalFlip(horizontal_flip)] if horizontal_flip else []
        self.after: list[Callable[..., Any]] = [*flips, *then]

    def __call__(self, raw: RawVideo, processor: VideoProcessor) -> UInt8[Tensor, "T 3 S S"]:
        """One clip, in the length, size and interpolation of the processor."""
        video = open_video(raw)

        def framing(width: int, height: int) -> Framing:
            left, top, right, bottom = random_box(width, height, self.scale, self.ratio or (width / height,) * 2)
            x, y = processor.size / (right - left), processor.size / (bottom - top)
            wide, high = round(width * x), round(height * y)
            left, top = min(round(left * x), wide - processor.size), min(round(top * y), high - processor.size)
            size = (processor.size, processor.size)
            return Framing(wide, high, -left, -top, size, processor.images.interpolation)

        clip = video.frames(self.sampler(video.edges, processor.frames), framing)
        for transform in self.after:
            clip = transform(clip)
        return clip


class DenseClips(Augmentation):
    """SlowFast's training clips: frames at a drawn distance and scale, and a random square of them.

    Under a `MultigridSchedule`, distances and scales are drawn from those of the shape that is asked for: a clip of
    fewer frames still spans up to the time of a full one. facebookresearch/SlowFast, slowfast/datasets/kinetics.py.
    A clip that is longer than its video repeats the last frame.

    Args:
        stride: frames of the video from one of the clip to the next, outside of a schedule.
        sides: the least and the largest shorter side in pixels before cropping, outside of a schedule.
        horizontal_flip: probability of mirroring.
        then: as of `VideoAugmentation`.
    """

    def __init__(
        self,
        stride: int = 2,
        sides: tuple[int, int] = (256, 320),
        horizontal_flip: float = 0.0,
        then: Sequence[Callable[..., Any]] = (),
    ) -> None:
        if stride < 1:
            raise ValueError(f"The stride counts frames, at least 1; not {stride}.")
        self.stride, self.sides = stride, tuple(sides)
        flips = [v2.RandomHorizontalFlip(horizontal_flip)] if horizontal_flip else []
        self.after: list[Callable[..., Any]] = [*flips, *then]

    def __call__(self, raw: RawVideo, processor: VideoProcessor) -> UInt8[Tensor, "T 3 S S"]:
        """One clip, in the length, size and interpolation of the processor."""
        video = open_video(raw)
        shape = processor.clip or ClipShape(
            processor.frames, processor.size, self.stride, self.stride, self.sides[0], self.sides[1]
        )

        def framing(width: int, height: int) -> Framing:
            side = max(round(random.uniform(shape.min_side, shape.max_side)), shape.crop)
            wide, high = (round(edge * side / min(width, height)) for edge in (width, height))
            left, top = random.randint(0, wide - shape.crop), random.randint(0, high - shape.crop)
            return Framing(wide, high, -left, -top, (shape.crop, shape.crop), processor.images.interpolation)

        clip = video.frames(_dense(video.edges[:-1], shape), framing)
        for transform in self.after:
            clip = transform(clip)
        return clip


def _dense(starts: Float64[np.ndarray, " N"], shape: ClipShape) -> list[float]:
    stride = random.randint(shape.stride_low, shape.stride_high)
    places = np.arange(shape.frames) * stride
    first = random.randint(0, max(0, len(starts) - 1 - int(places[-1])))
    return starts[np.minimum(first + places, len(starts) - 1)].tolist()


class ClipRandAugment(v2.RandAugment):
    """RandAugment as ALPRO pre-trains with it: two operations at level 5 of 10, the same ones for all frames.

    Those of salesforce/ALPRO, utils and datasets/randaugment.py, `TemporalConsistentRandomAugment`: identity, contrast,
    brightness, sharpness, shears, shifts, rotation and mirroring. Their ranges are torchvision's. Mirroring, which
    torchvision's RandAugment lacks, is `VideoAugmentation.horizontal_flip`.
    """

    _AUGMENTATION_SPACE = rand_augment_operations("Contrast")

    def __init__(self, num_ops: int = 2, magnitude: int = 5, num_magnitude_bins: int = 11) -> None:
        super().__init__(num_ops, magnitude, num_magnitude_bins)
