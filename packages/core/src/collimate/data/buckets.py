"""Batches of samples that are alike in length, so that little of them is padding.

The stream is cut into windows of several batches. The samples of a window are put in the order of their sizes, which
sources know without reading, cut into batches, and the batches shuffled. So a batch is a pure function of its step, for
any number of ranks and workers, and a run goes on in the middle of a window without reading what was seen. Each rank
gets its share of the same batch, and with it samples of like length.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

from torch.utils.data import Sampler

from collimate.data.mixture import Mixture
from collimate.data.order import Permutation
from collimate.data.source import Source


class LengthBuckets:
    """Which positions of a stream make up the batch of each step.

    Args:
        mixture: of sources that have `size_of`.
        batch_size: of each rank.
        ranks: that share each batch.
        window: batches that are sorted together. The more, the less padding, and the less random are batches.

    Raises:
        ValueError: the window is no number of batches, or a source cannot say how long its samples are.
    """

    def __init__(self, mixture: Mixture, batch_size: int, ranks: int, window: int) -> None:
        if window < 1:
            raise ValueError(f"Samples are sorted within windows of 1 batch or more, not of {window}.")
        for source in mixture.sources:
            check_sizes(source)
        self.mixture, self.stride, self.ranks, self.window = mixture, batch_size * ranks, ranks, window
        self._sorted = lru_cache(maxsize=2)(self._sort)

    def __reduce__(self) -> tuple[type, tuple[Mixture, int, int, int]]:
        return type(self), (self.mixture, self.stride // self.ranks, self.ranks, self.window)

    def positions(self, step: int, rank: int) -> list[int]:
        """The positions of a rank's batch."""
        window, place = divmod(step, self.window)
        batch = Permutation(self.window, self.mixture.seed, window)[place]
        return self._sorted(window)[batch * self.stride + rank : (batch + 1) * self.stride : self.ranks]

    def _sort(self, window: int) -> list[int]:
        first = window * self.window * self.stride
        return sorted(range(first, first + self.window * self.stride), key=lambda place: (self._size(place), place))

    def _size(self, position: int) -> float:
        draw = self.mixture.draw(position)
        return self.mixture.sources[draw.source].size_of(self.mixture.index(draw))  # type: ignore[attr-defined]


def check_sizes(source: Source) -> None:
    """See whether a source has `size_of`: index -> how long a sample is, in any unit, without reading it.

    Raises:
        ValueError: it has not.
    """
    if not hasattr(source, "size_of"):
        raise ValueError(
            f"{source.name} cannot say how long its samples are without reading them: write it as shards with "
            "`collimate data shard`, or do not sort it by length."
        )


class BucketedPositions(Sampler[list[int]]):
    """The positions of each batch of one rank, from a step on, without end."""

    def __init__(self, buckets: LengthBuckets, start: int, rank: int) -> None:
        self.buckets, self.start, self.rank = buckets, start, rank

    def __iter__(self) -> Iterator[list[int]]:
        return (self.buckets.positions(step, self.rank) for step in count(self.start))
