"""What the methods of pre-training on sweeps share: points and their voxels, pairs of points, heads, momentum.

Shape legend: P points of all sweeps, V voxels, B sweeps, K pairs of a sweep at most, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from collimate_3d.grid import VoxelGrid
from collimate_3d.losses import one_pair_a_cell
from collimate_3d.operators.segments import grouped
from collimate_3d.points import PointBatch
from collimate_3d.sparse import SiteNorm, SparseSequential, SparseVoxels
from collimate_3d.voxel_backbone import Levels
from collimate_3d.voxel_encoder import VoxelEncoder

Level = Literal["conv1", "conv2", "conv3", "conv4", "out"]
"""Of `VoxelBackBone8x`."""

STRIDES = {"conv1": 1, "conv2": 2, "conv3": 4, "conv4": 8, "out": 8}
"""Voxels along x and y in one of a level."""


class DrawnPairs(NamedTuple):
    """Points that two views of each sweep share, and of which no two lie in one voxel of either view."""

    first: Int64[Tensor, "B K"]
    """the voxel of the first view; 0 where there is no pair"""
    second: Int64[Tensor, "B K"]
    """that of the second"""
    given: Bool[Tensor, "B K"]
    """which are pairs"""


def pointwise(width: int, hidden: int, out: int) -> SparseSequential:
    """Linear, batch norm, ReLU, Linear on each voxel."""
    return SparseSequential(nn.Linear(width, hidden), SiteNorm(hidden), nn.ReLU(), nn.Linear(hidden, out))


def level_width(levels: nn.Module, level: Level) -> int:
    """Channels of a level of a `VoxelBackBone8x`."""
    name = "conv_out" if level == "out" else level
    return [each.num_features for each in levels.get_submodule(name).modules() if isinstance(each, SiteNorm)][-1]


def cells_at(
    xyz: Float[Tensor, "P 3"], grid: VoxelGrid, levels: Levels, level: Level
) -> tuple[Int64[Tensor, "P 3"], Bool[Tensor, " P"]]:
    """The cell z, y, x of a level's grid in which each point lies, and whether it lies in the grid at all.

    Each level halves the cells. Where the one above is cut off, as along z, the last one counts. The convolution that
    made the level has seen the point's voxel there, so that the cell is occupied if that voxel is.
    """
    cells, inside = grid.cells_of(xyz)
    names = Levels._fields[: Levels._fields.index(level) + 1]
    shapes = [getattr(levels, name).shape for name in names]
    for finer, coarser in pairwise(shapes):
        halved = [2 if less < more else 1 for less, more in zip(coarser, finer, strict=True)]
        cells = torch.minimum(cells // cells.new_tensor(halved), cells.new_tensor(coarser) - 1)
    return cells, inside


def voxels_of_points(batch: PointBatch, grid: VoxelGrid, levels: Levels, level: Level) -> Int64[Tensor, " P"]:
    """The voxel of a level in which each point lies; -1 beyond the range, and where a limit has left the voxel out."""
    cells, inside = cells_at(batch.xyz, grid, levels, level)
    voxels: SparseVoxels = getattr(levels, level)
    return voxels.sites.find(torch.cat([batch.cloud[:, None], cells], 1)).masked_fill(~inside, -1)


def voxels_of_views(
    encoder: VoxelEncoder, points: Sequence[PointBatch], levels: Sequence[Levels], level: Level
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"]]:
    """`voxels_of_points` of two views, whose rows are the same points.

    Raises:
        ValueError: they are views of different sweeps.
    """
    first, second = points
    if not torch.equal(first.ptr, second.ptr):
        raise ValueError(
            f"Views of one sweep have the same points; these have {first.ptr.diff().tolist()} and "
            f"{second.ptr.diff().tolist()}. Both come of one processor, and augmentations leave no point out."
        )
    one, other = (
        voxels_of_points(each, encoder.grid, found, level) for each, found in zip(points, levels, strict=True)
    )
    return one, other


def drawn_pairs(
    first: Int[Tensor, " P"], second: Int[Tensor, " P"], cloud: Int[Tensor, " P"], sweeps: int, most: int
) -> DrawnPairs:
    """At random, at most so many pairs of each sweep.

    Args:
        first, second: the voxel of each point in both views; below 0 for points that a view has lost.
        cloud: the sweep of each point.
        sweeps: B.
        most: K.
    """
    shuffled = torch.randperm(len(first), device=first.device)
    pairs = one_pair_a_cell(shuffled[:, None].expand(-1, 2), first, second)[:, 0]
    owner = cloud[pairs]
    place = grouped(owner).rank if len(pairs) else owner
    kept = place < most
    pairs, owner, place = pairs[kept], owner[kept], place[kept]
    found = [first.new_zeros(sweeps, most).index_put_((owner, place), each[pairs]) for each in (first, second)]
    given = torch.zeros(sweeps, most, dtype=torch.bool, device=first.device)
    given[owner, place] = True
    return DrawnPairs(found[0], found[1], given)


def shared_points(
    encoder: VoxelEncoder, points: Sequence[PointBatch], levels: Sequence[Levels], level: Level, most: int
) -> DrawnPairs:
    """Pairs of points that two views of each sweep show, by their voxels of a level.

    Args:
        points: of both views; a point has the same row in both.
        levels: what the encoder made of them.
        most: K.
    """
    first, second = voxels_of_views(encoder, points, levels, level)
    return drawn_pairs(first, second, points[0].cloud, points[0].batch_size, most)


def occupied_cells(voxels: SparseVoxels) -> Bool[Tensor, "B H W"]:
    """Which cells of the map from above hold a voxel."""
    _, rows, columns = voxels.shape
    found = torch.zeros(voxels.batch_size, rows, columns, dtype=torch.bool, device=voxels.features.device)
    cloud, _, y, x = voxels.coords.long().unbind(1)
    found[cloud, y, x] = True
    return found


def rows_of(features: Float[Tensor, "V D"], index: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
    """The features of some voxels; zeros, with a graph, where there is no voxel at all."""
    if not len(features):
        return features.sum() + features.new_zeros(*index.shape, features.shape[1])
    return features[index]


def ramped_momentum(base: float, step: int, steps: int) -> float:
    """γ = 1 - (1 - γ_base) (cos(π k / K) + 1) / 2: from γ_base to 1 (Grill et al. 2020, BYOL, arXiv 2006.07733)."""
    return 1 - (1 - base) * (math.cos(math.pi * min(step, steps) / max(steps, 1)) + 1) / 2
