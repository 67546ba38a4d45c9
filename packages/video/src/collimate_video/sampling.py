"""Which frames of a video make a clip.

A sampler reads when each frame begins to be shown, and when the last one ends (`Frames.edges`), and gives times. Where
a video has fewer frames than are wanted, frames stand several times. Draws are from Python's global generator, which
the loader seeds for each sample.

Shape legend: N frames of a video, T frames of a clip.
"""

from __future__ import annotations

import random

import numpy as np
from jaxtyping import Float64

from collimate.configurable import Configurable

Edges = Float64[np.ndarray, " N+1"]


class Sampler(Configurable):
    """Times of a clip's frames."""

    def __call__(self, edges: Edges, count: int) -> list[float]:
        """T times, rising, in seconds.

        Args:
            edges: when each frame begins, from 0 on, and when the last one ends.
            count: T.
        """
        raise NotImplementedError


class SegmentStarts(Sampler):
    """The first frame of each of T equal parts: how ALPRO evaluates (datasets/dataset_base.py, `uniform`)."""

    def __call__(self, edges: Edges, count: int) -> list[float]:
        return (edges[-1] * np.arange(count) / count).tolist()


class SegmentCentres(Sampler):
    """The middle of each of T equal parts."""

    def __call__(self, edges: Edges, count: int) -> list[float]:
        return (edges[-1] * (np.arange(count) + 0.5) / count).tolist()


class SegmentDraws(Sampler):
    """One time out of each of T equal parts (TSN, arXiv 1608.00859)."""

    def __call__(self, edges: Edges, count: int) -> list[float]:
        return [float(edges[-1]) * (part + random.random()) / count for part in range(count)]


class Draws(Sampler):
    """T frames, no two the same: how ALPRO trains for retrieval and questions."""

    def __call__(self, edges: Edges, count: int) -> list[float]:
        return _drawn(edges[:-1], count)


class HalfDraws(Sampler):
    """T / 2 frames out of each half, no two the same: how ALPRO pre-trains (`headtail`). The second has the odd one."""

    def __call__(self, edges: Edges, count: int) -> list[float]:
        starts = edges[:-1]
        middle = max(1, len(starts) // 2)
        second = starts[middle:] if len(starts) > 1 else starts
        return _drawn(starts[:middle], count // 2) + _drawn(second, count - count // 2)


class Window(Sampler):
    """Frames a fixed time apart, from a random moment on: a dense clip.

    A clip longer than the video starts with it, and repeats its last frame.

    Args:
        stride: seconds from one frame to the next.
        centred: take the clip in the middle of the video, for evaluation.

    Raises:
        ValueError: the stride is not above 0.
    """

    def __init__(self, stride: float, centred: bool = False) -> None:
        if not stride > 0:
            raise ValueError(f"The stride is a time above 0 in seconds, not {stride}.")
        self.stride, self.centred = stride, centred

    def __call__(self, edges: Edges, count: int) -> list[float]:
        spare = max(0.0, float(edges[-1]) - count * self.stride)
        start = spare / 2 if self.centred else random.uniform(0, spare)
        return (start + self.stride * np.arange(count)).tolist()


def _drawn(starts: Float64[np.ndarray, " N"], count: int) -> list[float]:
    """So many of these, in order; each as often as any other, but for one, where there are too few."""
    times, rest = divmod(count, len(starts))
    chosen = [*range(len(starts))] * times + random.sample(range(len(starts)), rest)
    return starts[sorted(chosen)].tolist()
