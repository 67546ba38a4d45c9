"""The camera that films: frames of a moving scene, one after the other.

Shape legend: T frames, S side of a frame in pixels.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from jaxtyping import UInt8

from collimate_world.motion import at
from collimate_world.picture import Picture
from collimate_world.scene import Scene

CLIP_RATE = 10.0  # frames a second


class Clip:
    """A moving scene seen by the camera.

    Args:
        scene: what is seen, as it is at time 0; see `moving`.
        frames: T.
        size: S.
        rate: frames a second.

    Raises:
        ValueError: there are no frames, or no rate.
    """

    def __init__(self, scene: Scene, frames: int = 16, size: int = 64, rate: float = CLIP_RATE) -> None:
        if frames < 1 or not rate > 0:
            raise ValueError(f"A clip has at least one frame and a rate above 0; not {frames} frames at {rate}.")
        self.scene, self.size, self.rate = scene, size, rate
        self.pictures = [Picture(at(scene, number / rate), size) for number in range(frames)]

    @cached_property
    def pixels(self) -> UInt8[np.ndarray, "T S S 3"]:
        """RGB; row 0 of a frame is the top."""
        return np.stack([picture.pixels for picture in self.pictures])
