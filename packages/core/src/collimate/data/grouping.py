"""Batches whose samples belong together: P labels with K samples each, no label twice, a sample with its neighbours.

A recipe names one as `data.sampling`. A batch is made of groups of equal size. Which sample stands where is a pure
function of (seed, step, group, member), so that the state of a run stays one integer: runs resume exactly, and any
number of ranks that share a batch share the same one. The members of a group stand side by side on one rank.

Samples are read from anywhere: shards should be local. Labels are read once, when training begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from hashlib import blake2b
from os import PathLike
from typing import Any

import numpy as np

from collimate.configurable import Configurable
from collimate.data.classes import labels_of
from collimate.data.decoding import LABELS, naming, value_of
from collimate.data.mixture import MAX_REPLACEMENTS, Draw, Mixture
from collimate.data.order import permutation
from collimate.data.source import CorruptSample, Source

NO_LABEL = -1


class Groups(ABC):
    """The groups of a run's batches, over one source."""

    @abstractmethod
    def index(self, step: int, group: int, member: int, attempt: int = 0) -> int:
        """The sample at one place of a batch.

        Args:
            step: of the run.
            group: of the batch, counted over all ranks.
            member: of the group.
            attempt: how many samples for this place have turned out to be corrupt.
        """


class BatchSampling(Configurable):
    """How the samples of a batch belong together. A recipe names one as `data.sampling`.

    Attributes:
        size: samples of a group.
    """

    size: int = 1

    def groups(self, source: Source, per_batch: int, seed: int) -> Groups:
        """The groups of all batches.

        Args:
            source: what to sample.
            per_batch: groups of a batch, over all ranks.
            seed: of all draws.

        Raises:
            ValueError: the source cannot fill such batches.
        """
        raise NotImplementedError


class PerLabel(BatchSampling):
    """P labels a batch, none of them twice, and K samples of each: for supervised contrast.

    P is the batch by K. All labels come equally often, a label's samples in turn; a label with fewer than K samples
    repeats them.

    Args:
        samples: K.
        key: the key of a sample under which its label lies, a string or a number; its `labels.json` or `cls` if None,
            of several labels the first. Samples without one are left out.
    """

    def __init__(self, samples: int = 4, key: str | None = None) -> None:
        if samples < 1:
            raise ValueError(f"A label has at least one sample in a batch, not {samples}.")
        self.size, self.key = samples, key

    def groups(self, source: Source, per_batch: int, seed: int) -> Groups:
        return _LabelGroups(labels_in(source, self.key), per_batch, self.size, seed, source.name)


class DistinctLabels(BatchSampling):
    """No label twice in a batch, each sample once an epoch as far as that goes: for contrast of identities.

    Where a label has more samples than the epoch has batches, the rest of them, others each time, is passed over; and
    so is what does not fill a batch.

    Args:
        key: as of `PerLabel`.
    """

    def __init__(self, key: str | None = None) -> None:
        self.key = key

    def groups(self, source: Source, per_batch: int, seed: int) -> Groups:
        return _DistinctGroups(labels_in(source, self.key), per_batch, seed, source.name)


class WithNeighbours(BatchSampling):
    """Each sample with neighbours of it out of a table: mined positives, or negatives that are hard to tell from it.

    Args:
        table: a .npy file of int64 (N, k), the places of each sample's neighbours in the source, the nearest first, -1
            for none; `collimate data neighbours` writes one. A sample without enough of them gets others at random.
        neighbours: of each sample in a batch, drawn from its k anew each time.
    """

    def __init__(self, table: str | PathLike[str], neighbours: int = 1) -> None:
        if neighbours < 1:
            raise ValueError(f"A sample comes with at least one neighbour, not {neighbours}.")
        self.table, self.size = str(table), 1 + neighbours

    def groups(self, source: Source, per_batch: int, seed: int) -> Groups:
        table = np.load(self.table)
        if table.ndim != 2 or len(table) != len(source) or not np.issubdtype(table.dtype, np.integer):
            raise ValueError(
                f"{self.table} holds {table.dtype} {table.shape} for the {len(source)} samples of {source.name}: it "
                "has a row of whole numbers for each. Was it made of these data?"
            )
        if table.size and table.max() >= len(source):
            raise ValueError(f"{self.table} names the sample {table.max()}, of {len(source)} in {source.name}.")
        return _NeighbourGroups(table, per_batch, self.size, seed, source.name)


class GroupedStream(Mixture):
    """An endless stream of one source whose batches are groups.

    Args:
        mixture: of one source; its order is not used.
        sampling: what groups are.
        batch_size: samples of each rank in a step.
        ranks: that share each batch.

    Raises:
        ValueError: there are several sources, or groups do not fill a rank's batch evenly.
    """

    def __init__(self, mixture: Mixture, sampling: BatchSampling, batch_size: int, ranks: int) -> None:
        if len(mixture.sources) > 1:
            raise ValueError(
                f"Groups are sampled from one source, not from {len(mixture.sources)}: join the data into one table or "
                "one set of shards."
            )
        if batch_size % sampling.size:
            raise ValueError(
                f"A rank's batch of {batch_size} cannot be filled with groups of {sampling.size}: set data.batch_size "
                f"to a multiple of {sampling.size}."
            )
        super().__init__(mixture.sources, mixture.weights, mixture.seed)
        self.group_size, self.ranks, self.stride = sampling.size, ranks, batch_size * ranks
        self.groups = sampling.groups(self.sources[0], self.stride // sampling.size, self.seed)

    def __reduce__(self) -> Any:
        return _restored, (self.sources, self.weights, self.seed, self.group_size, self.ranks, self.stride, self.groups)

    def draw(self, position: int) -> Draw:
        return Draw(0, *divmod(position, self.stride))

    def index(self, draw: Draw) -> int:
        attempt, offset = divmod(draw.position, self.stride)
        slot, rank = divmod(offset, self.ranks)  # ranks take positions in turn
        group, member = divmod(slot, self.group_size)
        return self.groups.index(draw.epoch, group * self.ranks + rank, member, attempt)

    def replacements(self, draw: Draw) -> Iterator[Draw]:
        """The draw itself, then others for the same member of the same group."""
        return (
            draw._replace(position=draw.position + attempt * self.stride) for attempt in range(MAX_REPLACEMENTS + 1)
        )

    def counts(self, positions: int) -> dict[str, int]:
        return {self.sources[0].name: positions}


def labels_in(source: Source, key: str | None = None) -> np.ndarray:
    """The label of each sample as a number, (N,) int64, `NO_LABEL` for none; equal labels have equal numbers.

    Args:
        key: as of `PerLabel`.

    Raises:
        ValueError: no sample has a label.
    """
    numbers: dict[str | int, int] = {}
    found = np.full(len(source), NO_LABEL, dtype=np.int64)
    for index in range(len(source)):
        label = _label(source, index, key)
        if label is not None:
            found[index] = numbers.setdefault(label, len(numbers))
    if not numbers:
        raise ValueError(f"{source.name}: no sample has a label under {key or ' or '.join(LABELS)}.")
    return found


class _LabelGroups(Groups):
    """Labels in a new order each round, of which what does not fill a batch is dropped; so no batch has one twice."""

    def __init__(self, labels: np.ndarray, per_batch: int, size: int, seed: int, name: str) -> None:
        self.order = np.argsort(labels, kind="stable")[np.count_nonzero(labels == NO_LABEL) :]
        self.counts = np.bincount(labels[self.order])
        self.firsts = np.cumsum(self.counts) - self.counts
        self.rounds = len(self.counts) // per_batch
        if self.rounds == 0:
            raise ValueError(
                f"{name} has {len(self.counts)} labels, and a batch of {per_batch * size} asks for {per_batch} with "
                f"{size} samples each: set a smaller batch, or more samples of each label."
            )
        self.per_batch, self.size, self.seed = per_batch, size, seed

    def index(self, step: int, group: int, member: int, attempt: int = 0) -> int:
        visit, batch = divmod(step, self.rounds)
        label = permutation(len(self.counts), self.seed, visit)[batch * self.per_batch + group]
        count = int(self.counts[label])
        if attempt >= count:  # nothing of the label can be read
            return int(self.order[_anywhere(len(self.order), self.seed, step, group, member, attempt)])
        if count >= self.size:
            turn, place = divmod(visit, count // self.size)
            place = (place * self.size + member + attempt * self.size) % count
        else:
            turn, place = divmod(visit * self.size + member + attempt, count)
        return int(self.order[self.firsts[label] + permutation(count, self.seed, label, turn, 1)[place]])


class _DistinctGroups(Groups):
    """The samples of an epoch, laid out label after label and dealt out to the epoch's batches in turn.

    No label has more samples than there are batches, so that no batch gets two of them.
    """

    def __init__(self, labels: np.ndarray, per_batch: int, seed: int, name: str) -> None:
        self.order = np.flatnonzero(labels != NO_LABEL)
        self.labels, self.per_batch, self.seed = labels[self.order], per_batch, seed
        counts = np.bincount(self.labels)
        batches = len(self.order) // per_batch
        while batches and np.minimum(counts, batches).sum() // per_batch < batches:
            batches = int(np.minimum(counts, batches).sum()) // per_batch
        if batches == 0:
            raise ValueError(f"{name} has {len(counts)} labels, too few for a batch of {per_batch} without one twice.")
        self.batches, self._epoch, self._deal = batches, -1, np.empty((0, 0), dtype=np.int64)

    def index(self, step: int, group: int, member: int, attempt: int = 0) -> int:
        epoch, batch = divmod(step, self.batches)
        if attempt:
            return int(self.order[_anywhere(len(self.order), self.seed, step, group, attempt)])
        if epoch != self._epoch:
            self._epoch, self._deal = epoch, self._dealt(epoch)
        return int(self._deal[group, permutation(self.batches, self.seed, epoch)[batch]])

    def _dealt(self, epoch: int) -> np.ndarray:
        """The samples of each batch, (groups, batches)."""
        samples = _shuffled(len(self.order), self.seed, epoch, 0)
        rank_of_label = _shuffled(int(self.labels.max()) + 1, self.seed, epoch, 1)
        laid = samples[np.argsort(rank_of_label[self.labels[samples]], kind="stable")]
        labels = self.labels[laid]
        starts = np.flatnonzero(np.diff(labels, prepend=NO_LABEL))
        number = np.arange(len(laid)) - np.repeat(starts, np.diff(starts, append=len(laid)))  # among those of its label
        laid = laid[number < self.batches]
        return self.order[laid[: self.per_batch * self.batches].reshape(self.per_batch, self.batches)]


class _NeighbourGroups(Groups):
    """Samples in a new order each round, each with some of its neighbours."""

    def __init__(self, table: np.ndarray, per_batch: int, size: int, seed: int, name: str) -> None:
        self.rounds = len(table) // per_batch
        if self.rounds == 0:
            raise ValueError(f"{name} has {len(table)} samples, too few for a batch of {per_batch} with neighbours.")
        self.table, self.per_batch, self.size, self.seed = table, per_batch, size, seed

    def index(self, step: int, group: int, member: int, attempt: int = 0) -> int:
        epoch, batch = divmod(step, self.rounds)
        anchor = permutation(len(self.table), self.seed, epoch)[batch * self.per_batch + group]
        if member == 0 and not attempt:
            return anchor
        near = self.table[anchor][self.table[anchor] >= 0]
        place = member - 1 + attempt * (self.size - 1)
        if member and place < len(near):
            return int(near[permutation(len(near), self.seed, epoch, anchor)[place]])
        return _anywhere(len(self.table), self.seed, step, group, member, attempt)


def _restored(
    sources: list[Source],
    weights: list[float],
    seed: int,
    group_size: int,
    ranks: int,
    stride: int,
    groups: Groups,
) -> GroupedStream:
    """In a worker, without reading the labels once more."""
    stream = GroupedStream.__new__(GroupedStream)
    Mixture.__init__(stream, sources, weights, seed)
    stream.group_size, stream.ranks, stream.stride, stream.groups = group_size, ranks, stride, groups
    return stream


def _label(source: Source, index: int, key: str | None) -> str | int | None:
    try:
        sample = source.peek(index, LABELS if key is None else (key,))
        with naming(sample, key or "labels"):
            value = value_of(sample, LABELS if key is None else (key,))
            labels = labels_of(value) if key is None else [value]
    except CorruptSample:
        return None
    return labels[0] if labels else None


def _anywhere(count: int, *keys: int) -> int:
    """One of `range(count)`, drawn by the keys."""
    return _number(*keys) % count


def _shuffled(count: int, *keys: int) -> np.ndarray:
    """`range(count)` in an order drawn by the keys; the same on every machine and version."""
    mixed = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(_number(*keys))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64's finaliser
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")


def _number(*keys: int) -> int:
    return int.from_bytes(blake2b(repr(keys).encode(), digest_size=8).digest(), "little")
