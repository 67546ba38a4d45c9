"""Where cells lie: the grid that cuts space into voxels, and that of a map seen from above.

Points are x, y, z; arrays of cells lie z, y, x, so that a map from above has rows of y and columns of x.

Shape legend: P points, H W rows and columns of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collimate.configurable import Configurable


class BEVGrid(NamedTuple):
    """Where the cells of a map from above lie, so that maps can be warped and boxes be placed in them.

    Cell (row, column) covers x from `origin[0] + column * cell[0]`, y from `origin[1] + row * cell[1]`, in metres.
    """

    shape: tuple[int, int]
    """rows, along y, and columns, along x"""
    cell: tuple[float, float]
    """extent of a cell along x and y, in metres"""
    origin: tuple[float, float]
    """x and y of the map's lower corner, in metres"""

    def coarser(self, stride: int, shape: tuple[int, int]) -> BEVGrid:
        """That of a map of this shape whose cells are `stride` times as long."""
        return BEVGrid(shape, (self.cell[0] * stride, self.cell[1] * stride), self.origin)

    def cells_of(self, xy: Float[Tensor, "*P 2"]) -> Float[Tensor, "*P 2"]:
        """(column, row) in cells, so that the centre of the first cell is (0, 0): what bilinear sampling asks for."""
        return (xy - xy.new_tensor(self.origin)) / xy.new_tensor(self.cell) - 0.5

    def centres(self, device: torch.device | str | None = None) -> Float[Tensor, "H W 2"]:
        """x and y of the centre of each cell, in metres."""
        rows, columns = (torch.arange(extent, device=device) + 0.5 for extent in self.shape)
        x, y = self.origin[0] + columns * self.cell[0], self.origin[1] + rows * self.cell[1]
        return torch.stack([x.expand(self.shape), y[:, None].expand(self.shape)], -1)


class VoxelGrid(Configurable):
    """Space cut into cells of one size.

    Args:
        low: x, y, z of the lower corner, in metres.
        high: x, y, z of the upper corner, in metres. What lies on it is outside.
        cell: extent of a voxel along x, y, z, in metres. As in OpenPCDet, the grid has as many cells as the rounded
            ratio says.

    Raises:
        ValueError: these are no box and no cells in it.
    """

    def __init__(self, low: Sequence[float], high: Sequence[float], cell: Sequence[float]) -> None:
        if not len(low) == len(high) == len(cell) == 3:
            raise ValueError(f"low, high and cell each give x, y, z; got {low}, {high} and {cell}.")
        if min(cell) <= 0 or any(below >= above for below, above in zip(low, high, strict=True)):
            raise ValueError(f"The range from {tuple(low)} to {tuple(high)} in cells of {tuple(cell)} m is empty.")
        self.low, self.high, self.cell = (tuple(float(each) for each in corner) for corner in (low, high, cell))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Cells along z, y, x."""
        counts = [round((top - base) / step) for base, top, step in zip(self.low, self.high, self.cell, strict=True)]
        return counts[2], counts[1], counts[0]

    @property
    def bev(self) -> BEVGrid:
        """The grid seen from above."""
        return BEVGrid(self.shape[1:], (self.cell[0], self.cell[1]), (self.low[0], self.low[1]))

    def cells_of(self, xyz: Float[Tensor, "P 3"]) -> tuple[Int[Tensor, "P 3"], Bool[Tensor, " P"]]:
        """The cell of each point, int64 z, y, x, and whether it lies in the grid; cells of points that do not are -1.

        Points that are NaN do not.
        """
        low, cell, extents = (xyz.new_tensor(each)[:, None] for each in (self.low, self.cell, self.shape[::-1]))
        places = xyz.T.contiguous().sub(low).div_(cell).floor_()  # axis by axis, which is faster than point by point
        inside = ((places >= 0) & (places < extents)).all(0)
        return torch.where(inside, places, -1.0).long().flip(0).T, inside

    def centres_of(self, cells: Int[Tensor, "P 3"]) -> Float[Tensor, "P 3"]:
        """x, y, z of the centres of cells given as z, y, x, in metres; float32."""
        device = cells.device
        return (cells.flip(-1) + 0.5) * torch.tensor(self.cell, device=device) + torch.tensor(self.low, device=device)
