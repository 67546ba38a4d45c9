"""Negatives: which pairs take part in a contrast, asked for tile by tile (`collimate.kernels.tiles.Keep`).

Shape legend: n queries of this rank, M keys of all ranks in rank order, L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from collimate import distributed
from collimate.kernels.tiles import Keep

HASH_BASE = 0x5851F42D4C957F2D  # the odd multiplier of Knuth's 64-bit congruential generator (MMIX)


@dataclass(frozen=True)
class Distinct:
    """A mask of negatives: pairs of equal id are dropped, but for a query's own key.

    Attributes:
        query_ids, key_ids: ids of this rank's queries and of all keys; same patient, same caption, same image.
        own: the first of this rank's own keys, which stays; None where it is to be dropped like the others.
    """

    query_ids: Int[Tensor, " n"]
    key_ids: Int[Tensor, " M"]
    own: int | None

    def __call__(self, rows: slice, columns: slice) -> Bool[Tensor, "rows columns"]:
        kept = self.query_ids[rows, None] != self.key_ids[columns]
        return kept if self.own is None else kept | _own_pairs(rows, columns, self.own, kept.device)


@dataclass(frozen=True)
class Given:
    """A mask of keys that exist: one that does not is a negative of no query.

    Its own query keeps it, or their losses would be infinite; such pairs get the weight 0 from whoever masks them.

    Attributes:
        key_given: whether each key exists.
        own: the first of this rank's own keys.
    """

    key_given: Bool[Tensor, " M"]
    own: int

    def __call__(self, rows: slice, columns: slice) -> Bool[Tensor, "rows columns"]:
        return self.key_given[columns] | _own_pairs(rows, columns, self.own, self.key_given.device)


@dataclass(frozen=True)
class Both:
    """Pairs that two masks keep."""

    first: Keep
    second: Keep

    def __call__(self, rows: slice, columns: slice) -> Bool[Tensor, "rows columns"] | None:
        first, second = self.first(rows, columns), self.second(rows, columns)
        if first is None or second is None:
            return second if first is None else first
        return first & second


@dataclass(frozen=True)
class Masked:
    """Pairs as the caller holds them: True takes part."""

    mask: Bool[Tensor, "n M"]

    def __call__(self, rows: slice, columns: slice) -> Bool[Tensor, "rows columns"]:
        return self.mask[rows, columns]


def text_ids(tokens: Int[Tensor, "n L"]) -> Int[Tensor, " n"]:
    """One number for each text, equal for equal texts: a polynomial hash modulo 2^64, the same on every rank."""
    powers = torch.full((tokens.shape[1],), HASH_BASE, device=tokens.device).cumprod(0)
    return (tokens * powers).sum(1)


def given_keys(given: Bool[Tensor, " n"], group: distributed.Group = None) -> Given | None:
    """The mask for keys of which some may not exist; None where all of them do, on all ranks."""
    counts = distributed.row_counts(given, group)
    every = distributed.gather(given, group, counts)
    return None if bool(every.all()) else Given(every, distributed.own(counts, group).start)


def kept_pairs(
    ids: Int[Tensor, " n"] | None,
    mask: Bool[Tensor, "n M"] | Keep | None,
    counts: tuple[int, ...],
    group: distributed.Group = None,
) -> Keep | None:
    """The mask that a loss's arguments ask for; None where all pairs take part.

    Raises:
        ValueError: the mask does not span the keys of all ranks.
    """
    if isinstance(mask, Tensor) and mask.shape[1] != sum(counts):
        raise ValueError(
            f"The mask has {mask.shape[1]} columns for {sum(counts)} keys; it spans the keys of all ranks."
        )
    keep = Masked(mask) if isinstance(mask, Tensor) else mask
    if ids is None:
        return keep
    distinct = Distinct(ids, distributed.gather(ids, group, counts), distributed.own(counts, group).start)
    return distinct if keep is None else Both(distinct, keep)


def _own_pairs(rows: slice, columns: slice, own: int, device: torch.device) -> Bool[Tensor, "rows columns"]:
    """True where a query of a tile meets its own key: query i's is own + i."""
    row = torch.arange(rows.start, rows.stop, device=device)
    column = torch.arange(columns.start, columns.stop, device=device)
    return row[:, None] + own == column
