"""Means and maxima over the rows that belong to one segment: the points of a voxel, of a pillar, of a cloud.

On CUDA the last bits of sums depend on the order in which rows happen to be added, unless
`torch.use_deterministic_algorithms` is on.

Shape legend: P rows, S segments, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


def segment_sum(values: Float[Tensor, "P C"], segment: Int[Tensor, " P"], count: int) -> Float[Tensor, "S C"]:
    """The sum of each segment's rows, 0 for an empty one; float32 at least, also for half precision.

    Args:
        segment: int64, of each row, from 0 to `count` - 1; a row of -1 belongs to none.
        count: S.
    """
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return wide.new_zeros(count + 1, values.shape[1]).index_add(0, _slots(segment, count), wide)[:count]


def segment_mean(values: Float[Tensor, "P C"], segment: Int[Tensor, " P"], count: int) -> Float[Tensor, "S C"]:
    """The mean of each segment's rows, 0 for an empty one; arguments as of `segment_sum`."""
    total = segment_sum(values, segment, count)
    return total / segment_count(segment, count).clamp_min(1)[:, None].to(total.dtype)


def segment_max(values: Float[Tensor, "P C"], segment: Int[Tensor, " P"], count: int) -> Float[Tensor, "S C"]:
    """The maximum of each segment's rows, 0 for an empty one; arguments as of `segment_sum`.

    Where several rows share a maximum, its gradient is shared among them.
    """
    index = _slots(segment, count)[:, None].expand_as(values)
    empty = values.new_zeros(count + 1, values.shape[1])
    return empty.scatter_reduce(0, index, values, "amax", include_self=False)[:count]


def segment_count(segment: Int[Tensor, " P"], count: int) -> Int[Tensor, " S"]:
    """How many rows each segment has."""
    return torch.bincount(_slots(segment, count), minlength=count + 1)[:count]


class Groups(NamedTuple):
    """Rows gathered by their key."""

    keys: Int[Tensor, " S"]
    """int64: the keys that occur, ascending"""
    group: Int[Tensor, " P"]
    """int64: which of them each row has"""
    rank: Int[Tensor, " P"]
    """int64: the place of each row among those of its key, in the order of rows"""
    first: Int[Tensor, " S"]
    """int64: the first row of each key"""


def grouped(keys: Int[Tensor, " P"]) -> Groups:
    """Rows of equal keys, by one stable sort."""
    ordered, order = keys.sort(stable=True)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=starts[1:])
    heads = starts.nonzero().flatten()
    ordinal = starts.cumsum(0) - 1
    rank = torch.arange(len(keys), device=keys.device) - heads[ordinal]
    group = torch.empty_like(ordinal).index_copy_(0, order, ordinal)
    return Groups(ordered[heads], group, torch.empty_like(rank).index_copy_(0, order, rank), order[heads])


def _slots(segment: Int[Tensor, " P"], count: int) -> Int[Tensor, " P"]:
    """Rows of no segment go to one behind the last."""
    return torch.where(segment < 0, count, segment)
