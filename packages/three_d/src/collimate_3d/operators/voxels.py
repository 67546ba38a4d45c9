"""Points into voxels, all of them or as many as published detectors keep; and pillars, which are voxels of one layer.

Nothing loops over voxels or clouds. Points that lie outside the grid, or beyond a limit, are counted, not hidden.

Shape legend: P points, B clouds, V voxels, K points of a voxel at most, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collimate_3d.grid import VoxelGrid
from collimate_3d.operators.segments import grouped

MOST_CELLS = 2**19  # ours, along one axis


class Voxelisation(NamedTuple):
    """Which points lie in which voxels."""

    coords: Int[Tensor, "V 4"]
    """int32: cloud, z, y, x"""
    voxel: Int[Tensor, " P"]
    """int64: the voxel of each point, -1 for those that are in none"""
    slot: Int[Tensor, " P"]
    """int64: the place of each point among those of its voxel, in the order of points, from 0; -1 outside the grid"""
    points: Int[Tensor, " V"]
    """int64: how many points each voxel has"""

    @property
    def left_out(self) -> int:
        """How many points are in no voxel."""
        return int((self.voxel < 0).sum())


def voxelise(xyz: Float[Tensor, "P 3"], cloud: Int[Tensor, " P"], grid: VoxelGrid) -> Voxelisation:
    """Every point that lies in the grid, into voxels in the order of (cloud, z, y, x).

    Args:
        xyz: in metres.
        cloud: int64, the cloud of each point, from 0 on.
    """
    return _voxelise(xyz, cloud, grid)[0]


def voxelise_limited(
    xyz: Float[Tensor, "P 3"],
    cloud: Int[Tensor, " P"],
    grid: VoxelGrid,
    max_points: int,
    max_voxels: int,
) -> Voxelisation:
    """As published detectors do: the first points of each voxel, the first voxels of each cloud.

    Within a cloud, voxels are in the order in which points first appear in them (spconv's `PointToVoxel`). Clouds need
    not lie one behind the other, but voxels do.

    Args:
        max_points: K; further points of a voxel are left out.
        max_voxels: of a cloud; further voxels are left out, while points of kept ones still come in.

    Raises:
        ValueError: a limit is not positive.
    """
    if max_points < 1 or max_voxels < 1:
        raise ValueError(f"Limits are at least 1; got {max_points} points of {max_voxels} voxels.")
    full, first = _voxelise(xyz, cloud, grid)
    owner = full.coords[:, 0].long()
    order = (owner * (len(xyz) + 1) + first).argsort()
    counts = torch.bincount(owner)
    rank = torch.arange(len(order), device=xyz.device) - (counts.cumsum(0) - counts)[owner[order]]
    kept = order[rank < max_voxels]
    renamed = torch.full_like(full.points, -1).index_copy_(0, kept, torch.arange(len(kept), device=xyz.device))
    voxel = full.voxel
    if len(kept):
        voxel = torch.where((voxel >= 0) & (full.slot < max_points), renamed[voxel], -1)
    return Voxelisation(full.coords[kept], voxel, full.slot, full.points[kept].clamp_max(max_points))


def voxelise_unbounded(
    xyz: Float[Tensor, "P 3"], cloud: Int[Tensor, " P"], clouds: int, cell: float
) -> tuple[Voxelisation, tuple[int, int, int]]:
    """Every point, into cubes that begin at the least one of each cloud; and the extent (z, y, x) of all clouds.

    A cloud that is moved by whole cells has the same voxels.

    Args:
        xyz: in metres, finite.
        cloud: int64, the cloud of each point, from 0 to `clouds` - 1.
        clouds: B.
        cell: side of a cube in metres.

    Raises:
        ValueError: the cloud is too large for such cells, or a point is not finite.
    """
    if not bool(xyz.isfinite().all()):
        raise ValueError(
            "A point is NaN or infinite: `PointCloud.of` and `PointBatch.of_padded` leave such points out."
        )
    if not len(xyz):
        return _in_cells(xyz.long(), torch.zeros_like(cloud, dtype=torch.bool), cloud, (1, 1, 1))[0], (1, 1, 1)
    places = (xyz / cell).floor()
    if float(places.abs().max()) >= MOST_CELLS:
        raise ValueError(f"Coordinates reach {float(xyz.abs().max()):g} m, more than {MOST_CELLS} cells of {cell:g} m.")
    cells = places.long().flip(-1)
    lowest = cells.new_full((clouds, 3), MOST_CELLS)
    lowest.scatter_reduce_(0, cloud[:, None].expand_as(cells), cells, "amin")
    cells = cells - lowest[cloud]
    depth, height, width = (cells.amax(0) + 1).tolist()
    if clouds * depth * height * width >= 2**62:
        raise ValueError(
            f"Points reach over {depth} x {height} x {width} cells of {cell:g} m, too many to be numbered."
        )
    everywhere = torch.ones_like(cloud, dtype=torch.bool)
    return _in_cells(cells, everywhere, cloud, (depth, height, width))[0], (depth, height, width)


def padded_voxels(found: Voxelisation, features: Float[Tensor, "P C"], max_points: int) -> Float[Tensor, "V K C"]:
    """The points of each voxel, in their order, 0 where it has fewer than K.

    Args:
        max_points: K; where a voxel has more, the first ones.
    """
    taken = (found.voxel >= 0) & (found.slot < max_points)
    padded = features.new_zeros(len(found.coords) * max_points, features.shape[1])
    rows = found.voxel[taken] * max_points + found.slot[taken]
    return padded.index_copy(0, rows, features[taken]).unflatten(0, (-1, max_points))


def _voxelise(
    xyz: Float[Tensor, "P 3"], cloud: Int[Tensor, " P"], grid: VoxelGrid
) -> tuple[Voxelisation, Int[Tensor, " V"]]:
    """All voxels, and the first point of each."""
    return _in_cells(*grid.cells_of(xyz), cloud, grid.shape)


def _in_cells(
    cells: Int[Tensor, "P 3"], inside: Bool[Tensor, " P"], cloud: Int[Tensor, " P"], shape: tuple[int, int, int]
) -> tuple[Voxelisation, Int[Tensor, " V"]]:
    depth, height, width = shape
    keys = ((cloud.long() * depth + cells[:, 0]) * height + cells[:, 1]) * width + cells[:, 2]
    rows = inside.nonzero().flatten()
    found = grouped(keys[rows])
    nowhere = torch.full((len(cells),), -1, device=cells.device)
    voxel, slot = (nowhere.index_copy(0, rows, each) for each in (found.group, found.rank))
    points = torch.bincount(found.group, minlength=len(found.keys))
    return Voxelisation(_coords(found.keys, shape), voxel, slot, points), rows[found.first]


def _coords(keys: Int[Tensor, " V"], shape: tuple[int, int, int]) -> Int[Tensor, "V 4"]:
    depth, height, width = shape
    cloud, y, x = keys // (depth * height * width), keys // width % height, keys % width
    return torch.stack([cloud, keys // (height * width) % depth, y, x], 1).int()
