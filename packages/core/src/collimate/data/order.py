"""Orders: which sample stands at which position of an epoch.

Each is a bijection, a pure function of its keys, computed one position at a time: nothing is stored but what
the shards themselves need, however many samples there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np

_WORD = (1 << 64) - 1


class Permutation:
    """A pseudo-random bijection of `range(size)`: a Feistel network, walked until it falls inside the range.

    Args:
        size: how many positions.
        keys: integers; another key gives another permutation. The same on every machine and version.
    """

    def __init__(self, size: int, *keys: int) -> None:
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        digest = blake2b(repr(keys).encode(), digest_size=64).digest()
        self._rounds = [int.from_bytes(digest[start : start + 8], "little") for start in range(0, 64, 8)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self.size:
            raise IndexError(f"Position {position} of {self.size}.")
        half, mask = self._half, (1 << self._half) - 1
        while True:  # the network permutes a power of 4, less than four times as large as the range
            left, right = position >> half, position & mask
            for key in self._rounds:
                mixed = (right ^ key) * 0x9E3779B97F4A7C15 & _WORD
                mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 & _WORD
                left, right = right, left ^ mixed >> 64 - half
            position = left << half | right
            if position < self.size:
                return position


class ShardOrder:
    """Shuffles the shards, lays them end to end, and shuffles inside windows of what results.

    The concatenation is cut into `lanes` ranges of equal length; position p lies in lane p mod lanes. With a
    multiple of the number of ranks as lanes, each rank reads its own shards only. What is left when lanes do
    not divide the samples comes last.

    Args:
        counts: samples of each shard.
        seed, epoch: what the order depends on.
        lanes: ranges that are read side by side.
        window: samples that are shuffled together within a lane.
    """

    def __init__(self, counts: Sequence[int], seed: int, epoch: int, lanes: int = 1, window: int = 8192) -> None:
        sizes = np.asarray(counts, dtype=np.int64)
        shuffle = Permutation(len(sizes), seed, epoch)
        shards = np.array([shuffle[place] for place in range(len(sizes))], dtype=np.int64)
        self._ends = np.cumsum(sizes[shards])  # of each shard, in the concatenation
        # From a place in the concatenation to an index of the source: what to add, by shard.
        self._shift = (np.cumsum(sizes) - sizes)[shards] - (self._ends - sizes[shards])
        self._lane = int(sizes.sum()) // lanes
        self._lanes, self._window, self._seed, self._epoch = lanes, window, seed, epoch

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < len(self):
            raise IndexError(f"Position {position} of {len(self)}.")
        place = position
        if position < self._lane * self._lanes:
            step, lane = divmod(position, self._lanes)
            window, offset = divmod(step, self._window)
            first = window * self._window
            size = min(self._window, self._lane - first)
            place = lane * self._lane + first + permutation(size, self._seed, self._epoch, lane, window)[offset]
        return place + int(self._shift[np.searchsorted(self._ends, place, side="right")])


class WeightedOrder:
    """Draws with replacement: an index at each position, as often as its weight says. No bijection, and endless.

    Args:
        ends: the running sum of the weights.
        seed, epoch: what the draws depend on, beside the position.
    """

    def __init__(self, ends: np.ndarray, seed: int, epoch: int) -> None:
        self._ends, self._seed, self._epoch = ends, seed, epoch

    def __getitem__(self, position: int) -> int:
        digest = blake2b(repr((self._seed, self._epoch, position)).encode(), digest_size=8).digest()
        share = (int.from_bytes(digest, "little") >> 11) / 2**53  # as many bits as a double has
        return int(np.searchsorted(self._ends, share * self._ends[-1], side="right"))


@lru_cache(maxsize=1024)
def permutation(size: int, *keys: int) -> Permutation:
    """The last ones asked for are kept."""
    return Permutation(size, *keys)
