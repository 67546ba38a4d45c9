"""Maps seen from above: read at any place, warped, and made of voxels.

Maps are (B, C, H, W) with rows of y and columns of x; cells (x, y) count from 0 at the centre of the first cell.

Shape legend: B maps, C channels, H rows, W columns, P places, V voxels.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from collimate_3d.grid import BEVGrid
from collimate_3d.operators.segments import segment_mean

NEAR = 1e-6
"""Cells by which a place may miss a cell's centre and is at it: rounding of a warp that takes cells to cells."""


def sample_map(
    features: Float[Tensor, "B C H W"], cells: Float[Tensor, "B P 2"], inside_only: bool = False
) -> Float[Tensor, "B C P"]:
    """A map read bilinearly; what lies beyond its cells is zero, and fades out over half a cell around them.

    At the centre of a cell it is that cell, exactly.

    Args:
        cells: x and y in cells.
        inside_only: zero at places beyond the outermost centres, where nothing is interpolated.
    """
    nearest = cells.round()
    cells = torch.where((cells - nearest).abs() < NEAR, nearest, cells)
    low = cells.floor()
    share = (cells - low).to(features.dtype)
    flat, (rows, columns) = features.flatten(2), features.shape[2:]
    found = features.new_zeros(*features.shape[:2], cells.shape[1])
    for right in (0, 1):
        for down in (0, 1):
            x, y = low[..., 0] + right, low[..., 1] + down
            weight = (share[..., 0] if right else 1 - share[..., 0]) * (share[..., 1] if down else 1 - share[..., 1])
            inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
            place = torch.where(inside, y * columns + x, 0).long()
            values = flat.gather(2, place[:, None].expand(-1, flat.shape[1], -1))
            found = found + values * (weight * inside)[:, None]
    if inside_only:
        edge = cells.new_tensor([columns - 1, rows - 1])
        found = found * ((cells >= 0) & (cells <= edge)).all(-1)[:, None]
    return found


def warp_map(
    features: Float[Tensor, "B C H W"], motion: Float[Tensor, "B 4 4"], grid: BEVGrid
) -> Float[Tensor, "B C H W"]:
    """Maps of one sweep as another would have them, where the world stands still.

    Only x and y of each cell's centre and the upper left 2 x 2 of the rotation are used: sensors stand upright.

    Args:
        motion: for each map what leads from the OTHER sweep, whose cells are filled, into the map's own frame.
        grid: of both.
    """
    motion = motion.double()
    places = cell_centres(grid).to(features.device) @ motion[:, :2, :2].mT + motion[:, None, :2, 3]
    return sample_map(features, grid.cells_of(places)).unflatten(2, grid.shape)


def cell_centres(grid: BEVGrid) -> Float64[Tensor, "P 2"]:
    """x and y of all cells' centres, row by row, in metres; float64, as warps that take cells to cells need."""
    rows, columns = (torch.arange(extent, dtype=torch.float64) + 0.5 for extent in grid.shape)
    x, y = grid.origin[0] + columns * grid.cell[0], grid.origin[1] + rows * grid.cell[1]
    return torch.stack([x.expand(grid.shape), y[:, None].expand(grid.shape)], -1).flatten(0, 1)


def collapse_to_map(
    features: Float[Tensor, "V C"], cells: Int64[Tensor, "V 3"], batch: int, shape: tuple[int, int]
) -> Float[Tensor, "B C H W"]:
    """The mean of the voxels over each cell of the map; zero where there is none.

    Args:
        features: of occupied voxels.
        cells: the map's (number, row, column) of each.
        batch: B.
        shape: H and W.

    Raises:
        ValueError: a voxel lies beyond the map.
    """
    size = cells.new_tensor([batch, *shape])
    if bool(((cells < 0) | (cells >= size)).any()):
        low, high = cells.amin(0).tolist(), cells.amax(0).tolist()
        raise ValueError(f"There are voxels over cells {low} to {high}; the maps have {size.tolist()}.")
    place = (cells[:, 0] * shape[0] + cells[:, 1]) * shape[1] + cells[:, 2]
    mean = segment_mean(features, place, batch * shape[0] * shape[1])
    return mean.unflatten(0, (batch, *shape)).permute(0, 3, 1, 2)


def occupied(features: Float[Tensor, "B C H W"]) -> Bool[Tensor, "B H W"]:
    """Cells in which anything is."""
    return (features != 0).any(1)
