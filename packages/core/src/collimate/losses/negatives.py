"""Negatives: which pairs take part in a contrast, asked for tile by tile (`collimate.kernels.tiles.Keep`).

Shape legend: n queries of this rank, M keys of all ranks in rank order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from collimate import distributed
from collimate.kernels.tiles import Keep


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
        if self.own is not None:
            row = torch.arange(rows.start, rows.stop, device=kept.device)
            column = torch.arange(columns.start, columns.stop, device=kept.device)
            kept |= row[:, None] + self.own == column
        return kept


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
