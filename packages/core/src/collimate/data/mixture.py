"""Mixtures: several sources as one endless stream, in given proportions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from collimate.data.order import Permutation
from collimate.data.source import Order, Source

BLOCK = 1000
"""Samples within which the proportions hold exactly; so a weight is at least a thousandth of their sum."""

MAX_REPLACEMENTS = 100
"""Samples tried in the place of one that is corrupt."""


class Draw(NamedTuple):
    """What stands at one position of a stream: a position of an epoch of one of the sources."""

    source: int
    epoch: int
    position: int


class Mixture:
    """An endless stream over sources, each of which goes through its own epochs.

    Which sample stands at which position is a pure function of the seed. One source alone is a mixture too.

    Args:
        sources: none of them empty.
        weights: the share of each in the stream, in any unit; by their lengths if None.
        seed: of all shuffling.

    Raises:
        ValueError: an empty source, or a weight that is not positive or below a thousandth of the sum.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        self.sources, self.seed = list(sources), seed
        if not self.sources:
            raise ValueError("A mixture needs at least one source.")
        if empty := [source.name for source in self.sources if len(source) == 0]:
            raise ValueError(f"No samples in {', '.join(empty)}.")
        self.weights = [float(len(source)) for source in self.sources] if weights is None else list(weights)
        if len(self.weights) != len(self.sources):
            raise ValueError(f"{len(self.weights)} weights for {len(self.sources)} sources.")
        if min(self.weights) <= 0:
            raise ValueError(
                f"Every weight of a mixture (data.train) must be positive, got {self.weights}: leave a source out "
                "instead of giving it 0."
            )
        self._shares = largest_remainder(self.weights, BLOCK)
        for source, weight, share in zip(self.sources, self.weights, self._shares, strict=True):
            if share == 0:
                raise ValueError(f"The weight {weight:g} of {source.name} is less than 1/{BLOCK} of the sum.")
        self._labels = np.repeat(np.arange(len(self.sources)), self._shares)
        self._block = lru_cache(maxsize=8)(self._shuffled_block)
        self._order = lru_cache(maxsize=4 * len(self.sources))(self._epoch_order)

    def __len__(self) -> int:
        """Samples of all sources together: what one epoch of a single source covers."""
        return sum(map(len, self.sources))

    def __reduce__(self) -> tuple[type, tuple[list[Source], list[float], int]]:
        return type(self), (self.sources, self.weights, self.seed)

    def draw(self, position: int) -> Draw:
        """What stands at a position of the stream."""
        block, place = divmod(position, BLOCK)
        labels, ranks = self._block(block)
        source = int(labels[place])
        epoch, within = divmod(block * self._shares[source] + int(ranks[place]), len(self.sources[source]))
        return Draw(source, epoch, within)

    def index(self, draw: Draw) -> int:
        """The index, in its source, of what was drawn."""
        return self._order(draw.source, draw.epoch)[draw.position]

    def replacements(self, draw: Draw) -> Iterator[Draw]:
        """The draw itself, then those to take in its place, where it is corrupt: from half an epoch further on."""
        yield draw
        size = len(self.sources[draw.source])
        for step in range(min(MAX_REPLACEMENTS, size - 1)):
            yield draw._replace(position=(draw.position + size // 2 + step) % size)

    def counts(self, positions: int) -> dict[str, int]:
        """Samples drawn from each source among the first so many positions of the stream."""
        blocks, rest = divmod(positions, BLOCK)
        partial = np.bincount(self._block(blocks)[0][:rest], minlength=len(self.sources))
        totals: dict[str, int] = {}
        for source, share, more in zip(self.sources, self._shares, partial, strict=True):
            totals[source.name] = totals.get(source.name, 0) + blocks * share + int(more)
        return totals

    def _shuffled_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each place of a block, and how many of that source came before it in the block."""
        if len(self.sources) == 1:  # nothing to mix: the source's own order stands
            return self._labels, np.arange(BLOCK)
        shuffle = Permutation(BLOCK, self.seed, block)
        labels = self._labels[[shuffle[place] for place in range(BLOCK)]]
        ranks = np.empty(BLOCK, dtype=np.int64)
        for source, share in enumerate(self._shares):
            ranks[labels == source] = np.arange(share)
        return labels, ranks

    def _epoch_order(self, source: int, epoch: int) -> Order:
        return self.sources[source].order(self.seed + source, epoch)  # equal lengths, yet unlike orders


def largest_remainder(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to the weights that sum to `total`."""
    quotas = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    shares = np.floor(quotas).astype(np.int64)
    missing = total - int(shares.sum())
    shares[np.argsort(shares - quotas, kind="stable")[:missing]] += 1
    return shares.tolist()
