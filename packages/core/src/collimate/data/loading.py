"""Loaders: the endless training stream, and evaluation that sees each sample once.

The training stream is a sequence of positions. Step t of N ranks with B samples each takes the next N*B of
them; rank r those equal to r modulo N. The state is one integer: how many positions all ranks have consumed.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from collimate import distributed
from collimate.configurable import at_least
from collimate.data.buckets import BucketedPositions, LengthBuckets, check_sizes
from collimate.data.captions import CaptionChoice
from collimate.data.mixture import MAX_REPLACEMENTS, Mixture
from collimate.data.plan import BatchPlan, Shape
from collimate.data.preparation import Preparation, TrainingPreparation, collate
from collimate.data.regions import RegionChoice
from collimate.data.source import CorruptSample, Source
from collimate.processing import Processor

log = logging.getLogger(__name__)

Batch = dict[str, Any]
TOLD = "told"
"""The entry of a batch in which workers tell how it was made; loaders take it out."""

REMEDY = "`collimate data verify` lists damaged files: make them anew, leave them out"


class TooManyCorruptSamples(RuntimeError):
    """More samples were corrupt than the set rate allows."""


class TrainLoader:
    """Batches of an endless stream, in virtual epochs of `steps` batches.

    Iterating goes on where the last iteration stopped; workers live on from one epoch to the next. A batch maps each
    modality to a tensor of B rows, and `position` to the rows' places in the stream, int64 (B,).

    Same seed and same batches, whatever the workers: what is random in a sample is seeded by its position. A corrupt
    sample is replaced by the one half an epoch further on, so that no rank falls behind.

    Args:
        mixture: the stream.
        preparation: sample -> row.
        batch_size: B, of each rank.
        steps: batches of each rank in a virtual epoch; one pass over the mixture's samples if None.
        num_workers: processes; 0 loads in this one.
        max_corrupt_rate: the share of corrupt samples at which the run stops.
        rank, world_size: of the process group unless given.
        prefetch: batches that each worker prepares ahead.
        start_method: of the workers: fork, spawn or forkserver; the platform's unless given.
        plan: the size and shape of each batch, in the place of B and of the processors' own shapes.
        bucket_batches: batches that are sorted by length together, and each trimmed to its longest sample; 0 for
            none. See `collimate.data.buckets`.

    Attributes:
        consumed: positions of the stream that all ranks together have taken, or passed over.
        corrupt: (source, reason) -> samples that this rank met.
        worker_seconds: in which this rank's workers read, decoded and prepared the batches that were given out.
    """

    def __init__(
        self,
        mixture: Mixture,
        preparation: TrainingPreparation,
        batch_size: int,
        steps: int | None = None,
        num_workers: int = 0,
        max_corrupt_rate: float = 0.01,
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int = 2,
        start_method: str | None = None,
        plan: BatchPlan | None = None,
        bucket_batches: int = 0,
    ) -> None:
        if bucket_batches and plan is not None:
            raise ValueError("Batches follow a plan, or are sorted by length: not both.")
        self.mixture, self.batch_size, self.plan = mixture, batch_size, plan
        self.rank = distributed.rank() if rank is None else rank
        self.world_size = distributed.world_size() if world_size is None else world_size
        self.steps = steps or max(1, len(mixture) // self._stride)
        self.consumed = 0
        self.corrupt: Counter[tuple[str, str]] = Counter()
        self.worker_seconds = 0.0
        self._ledger = _Ledger(max_corrupt_rate, self.corrupt)
        self._buckets = LengthBuckets(mixture, batch_size, self.world_size, bucket_batches) if bucket_batches else None
        self._dataset = _Stream(mixture, preparation, trim=bucket_batches > 0)
        self._options = _worker_options(num_workers, prefetch, start_method)
        self._batches: Iterator[Batch] | None = None

    @property
    def _stride(self) -> int:
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            yield next(self)

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = iter(DataLoader(self._dataset, batch_sampler=self._positions(), **self._options))
        batch = next(self._batches)
        if self.plan is None:
            self.consumed += self._stride
        else:
            self.consumed = self.plan[self.plan.step_at(self.consumed) + 1].first
        self.worker_seconds += self._ledger.enter(batch, len(batch["position"]))
        return batch

    def _positions(self) -> Sampler[Any]:
        if self._buckets is not None:
            return BucketedPositions(self._buckets, self.consumed // self._stride, self.rank)
        if self.plan is None:
            return _Positions(self.consumed, self.batch_size, self.rank, self.world_size)
        return _PlannedPositions(self.plan, self.plan.step_at(self.consumed), self.rank)

    @property
    def counts(self) -> dict[str, int]:
        """Samples consumed by all ranks from each source."""
        return self.mixture.counts(self.consumed)

    def state_dict(self) -> dict[str, int]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on at another position: nothing that lies before it is read."""
        self.close()
        self.consumed = int(state["consumed"])

    def close(self) -> None:
        """Stop the workers. Iterating starts them anew, at the same position."""
        self._batches = None


class EvalLoader:
    """Each sample once, in order, shared out over the ranks.

    All ranks get equally many batches of equal size. Rows that fill up the end, or stand for a corrupt sample, have
    `valid` False. A batch maps each modality to a tensor of B rows; beside them `index`, int64 (B,), the sample's place
    in the source; `valid`, bool (B,); `key`, the samples' names; and what `also` asks for.

    Args:
        source: what to go through.
        processors: modality -> its raw-to-tensor step; only these modalities are read.
        batch_size: B, of each rank.
        num_workers: processes; 0 loads in this one.
        also: what else batches carry: `label` or `id`, int64 (B,); `captions`, for each row all of its captions, as
            strings; or any key of the samples, decoded. See `Preparation`.
        fields: modality -> keys of a sample, where they are not the registered ones.
        captions: which captions the batch holds, as for `Preparation`; drawn alike in every iteration.
        limit: at most so many samples, evenly spread over the source; all if None.
        max_corrupt_rate, rank, world_size, prefetch, start_method: as for `TrainLoader`.
        views: key of the batch -> the modality that it holds once more.
        regions: which regions the batch holds, as for `Preparation`; drawn alike in every iteration.
        by_length: go through the source in the order of its samples' lengths, and trim each batch to its longest one;
            for sources that have `size_of`. `index` tells their places.
        optional: modalities that a sample may lack, as for `Preparation`.

    Attributes:
        corrupt: (source, reason) -> samples that this rank met, in all iterations.

    Raises:
        ValueError: a number is too small, or the source does not know how long its samples are.
    """

    def __init__(
        self,
        source: Source,
        processors: Mapping[str, Processor],
        batch_size: int,
        num_workers: int = 0,
        also: Sequence[str] = (),
        fields: Mapping[str, Sequence[str]] | None = None,
        captions: Mapping[str, CaptionChoice] | None = None,
        limit: int | None = None,
        max_corrupt_rate: float = 0.01,
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int = 2,
        start_method: str | None = None,
        views: Mapping[str, str] | None = None,
        regions: RegionChoice | None = None,
        by_length: bool = False,
        optional: Sequence[str] = (),
    ) -> None:
        at_least(1, batch_size=batch_size, limit=limit)
        at_least(0, num_workers=num_workers)
        self.source = source
        rank = distributed.rank() if rank is None else rank
        world_size = distributed.world_size() if world_size is None else world_size
        size = len(source) if limit is None else min(limit, len(source))
        indices = [place * len(source) // size for place in range(size)]
        if by_length:
            check_sizes(source)
            indices.sort(key=source.size_of)  # type: ignore[attr-defined]
        stride = batch_size * world_size
        self._mine = [  # the batches of this rank: (index, valid) of each row
            [(indices[min(place, size - 1)], place < size) for place in range(first + rank, first + stride, world_size)]
            for first in range(0, size, stride)
        ]
        self.batch_size = batch_size
        self.corrupt: Counter[tuple[str, str]] = Counter()
        self._ledger = _Ledger(max_corrupt_rate, self.corrupt)
        preparation = Preparation(processors, fields, also, captions, views, regions, optional)
        self._dataset = _Once(source, preparation, by_length)
        self._options = _worker_options(num_workers, prefetch, start_method)

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[Batch]:
        for batch in DataLoader(self._dataset, batch_sampler=self._mine, **self._options):  # type: ignore[arg-type]
            self._ledger.enter(batch, self.batch_size)
            yield batch


class _Told(NamedTuple):
    """Which samples were corrupt, by source, and the seconds in which a worker read and prepared the batch."""

    corrupt: list[tuple[str, CorruptSample]]
    seconds: float


class _Positions(Sampler[list[int]]):
    """The positions of each batch of one rank, from a place in the stream on, without end."""

    def __init__(self, start: int, batch_size: int, rank: int, world_size: int) -> None:
        self.start, self.batch_size, self.rank, self.world_size = start, batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        stride = self.batch_size * self.world_size
        for first in count(self.start, stride):
            yield list(range(first + self.rank, first + stride, self.world_size))


class _Shaped(list[int]):
    """Positions of a batch with the shape that its samples shall have."""

    def __init__(self, positions: Iterable[int], shape: Shape) -> None:
        super().__init__(positions)
        self.shape = shape


class _PlannedPositions(Sampler[_Shaped]):
    """The positions of each batch of one rank, as a plan has them, from a step on, without end."""

    def __init__(self, plan: BatchPlan, start: int, rank: int) -> None:
        self.plan, self.start, self.rank = plan, start, rank

    def __iter__(self) -> Iterator[_Shaped]:
        for step in count(self.start):
            first, size, shape, _ = self.plan[step]
            ranks = self.plan.ranks
            yield _Shaped(range(first + self.rank, first + size * ranks, ranks), shape)


class _Stream(Dataset[Batch]):
    """Positions of a stream to a batch."""

    def __init__(self, mixture: Mixture, preparation: Preparation, trim: bool = False) -> None:
        self.mixture, self.trim = mixture, trim
        self._shaped: dict[Shape, Preparation] = {(): preparation}
        self._downloads = any(getattr(source, "is_remote", False) for source in mixture.sources)

    def __getitems__(self, positions: list[int]) -> Batch:
        if self._downloads:
            self._look_ahead(positions)
        begun = time.perf_counter()
        corrupt: list[tuple[str, CorruptSample]] = []
        preparation = self._prepared(getattr(positions, "shape", ()))
        with restoring_generators():
            batch = collate([self._row(position, preparation, corrupt) for position in positions])
        if self.trim:
            batch = preparation.trimmed(batch)
        batch["position"] = torch.tensor(positions)
        batch[TOLD] = _Told(corrupt, time.perf_counter() - begun)
        return batch

    def _row(self, position: int, preparation: Preparation, corrupt: list[tuple[str, CorruptSample]]) -> dict[str, Any]:
        draw = self.mixture.draw(position)
        source = self.mixture.sources[draw.source]
        for replacement in self.mixture.replacements(draw):
            seed_generators(self.mixture.seed, position)
            try:
                return preparation(source.read(self.mixture.index(replacement)))
            except CorruptSample as error:
                corrupt.append((source.name, error))
        raise _hopeless(source, corrupt)

    def _prepared(self, shape: Shape) -> Preparation:
        if shape not in self._shaped:
            self._shaped[shape] = self._shaped[()].shaped(shape)
        return self._shaped[shape]

    def _look_ahead(self, positions: list[int]) -> None:
        """Tell sources that download what will be needed soon."""
        ahead: dict[int, list[int]] = {}
        for position in positions:
            draw = self.mixture.draw(position)
            source = self.mixture.sources[draw.source]
            later = draw.position + getattr(source, "shuffle_window", 0)
            if getattr(source, "is_remote", False) and later < len(source):
                ahead.setdefault(draw.source, []).append(self.mixture.index(draw._replace(position=later)))
        for number, indices in ahead.items():
            self.mixture.sources[number].prefetch(indices)  # type: ignore[attr-defined]


class _Once(Dataset[Batch]):
    """(index, valid) pairs to a batch."""

    def __init__(self, source: Source, preparation: Preparation, trim: bool = False) -> None:
        self.source, self.preparation, self.trim = source, preparation, trim

    def __getitems__(self, rows: list[tuple[int, bool]]) -> Batch:
        begun = time.perf_counter()
        corrupt: list[tuple[str, CorruptSample]] = []
        found: dict[int, dict[str, Any] | None] = {}
        with restoring_generators():
            for index, _ in rows:
                if index not in found:
                    seed_generators(0, index)
                    found[index] = self._row(index, corrupt)
        stand_in = next((row for row in found.values() if row is not None), None) or self._stand_in(rows, corrupt)
        batch = collate([found[index] or stand_in for index, _ in rows])
        if self.trim:
            batch = self.preparation.trimmed(batch)
        batch["index"] = torch.tensor([index for index, _ in rows])
        batch["valid"] = torch.tensor([valid and found[index] is not None for index, valid in rows])
        batch[TOLD] = _Told(corrupt, time.perf_counter() - begun)
        return batch

    def _row(self, index: int, corrupt: list[tuple[str, CorruptSample]]) -> dict[str, Any] | None:
        try:
            sample = self.source.read(index)
            return {**self.preparation(sample), "key": sample["__key__"]}
        except CorruptSample as error:
            corrupt.append((self.source.name, error))
            return None

    def _stand_in(self, rows: list[tuple[int, bool]], corrupt: list[tuple[str, CorruptSample]]) -> dict[str, Any]:
        """Some readable row, where all of a batch is corrupt: the shapes must be right even there."""
        for step in range(1, MAX_REPLACEMENTS + 1):
            row = self._row((rows[-1][0] + step) % len(self.source), [])
            if row is not None:
                return row
        raise _hopeless(self.source, corrupt)


class _Ledger:
    """Counts what was corrupt, tells of the first of each kind, and stops at the set rate.

    The rate is judged as if at least a thousand samples had been seen, so that one early mishap stops nothing.
    """

    def __init__(self, max_rate: float, counts: Counter[tuple[str, str]]) -> None:
        self.max_rate, self.counts, self.seen = max_rate, counts, 0

    def enter(self, batch: Batch, size: int) -> float:
        """Count a batch, and take out of it what the worker told.

        Returns:
            the seconds in which the worker made it.

        Raises:
            TooManyCorruptSamples: the rate is exceeded.
        """
        self.seen += size
        told: _Told = batch.pop(TOLD)
        for source, error in told.corrupt:
            if (source, error.reason) not in self.counts:
                log.warning("Corrupt sample, replaced; further ones of this kind are only counted. %s", error)
            self.counts[source, error.reason] += 1
        corrupt = sum(self.counts.values())
        if corrupt > self.max_rate * max(self.seen, 1000):
            reasons = "".join(
                f"\n  {count} x {reason}, {source}" for (source, reason), count in self.counts.most_common(10)
            )
            raise TooManyCorruptSamples(
                f"{corrupt} of {self.seen} samples are corrupt, more than max_corrupt_rate={self.max_rate:g} allows:"
                f"{reasons}\n{REMEDY}, or raise data.max_corrupt_rate to train on the others."
            )
        return told.seconds


def seed_generators(seed: int, position: int) -> None:
    """Seed Python's, NumPy's and torch's global CPU generators for the sample at a position of a stream."""
    number = position_seed(seed, position)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)  # noqa: NPY002 - transforms of others draw from it
    torch.default_generator.manual_seed(number >> 1)


def position_seed(seed: int, position: int) -> int:
    """64 bits for the sample at a position of a stream: draws from them do not depend on ranks, nor on resuming."""
    return int.from_bytes(blake2b(f"{seed},{position}".encode(), digest_size=8).digest(), "little")


@contextmanager
def restoring_generators() -> Iterator[None]:
    """Keep this process's generators as they were, unless it is a worker and has nothing else to draw."""
    if get_worker_info() is not None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def _hopeless(source: Source, corrupt: list[tuple[str, CorruptSample]]) -> TooManyCorruptSamples:
    reason = corrupt[-1][1] if corrupt else "nothing could be read"
    return TooManyCorruptSamples(
        f"{source.name}: no usable sample among {max(len(corrupt), 1)} on end; the last: {reason}. {REMEDY}."
    )


def _worker_options(num_workers: int, prefetch: int, start_method: str | None) -> dict[str, Any]:
    workers = {"multiprocessing_context": start_method, "prefetch_factor": prefetch} if num_workers else {}
    return {
        "num_workers": num_workers,
        "generator": torch.Generator(),  # else starting it would draw from the global one, also after resuming
        "collate_fn": _as_it_is,
        "pin_memory": torch.cuda.is_available(),
        **workers,
    }


def _as_it_is(batch: Batch) -> Batch:
    return batch
