"""Regions in the processed picture: their boxes, their pixels, and maps of instances.

What data say of regions is told in `collimate.data.regions`. Where the exact shape of the regions is known, the field
`instances.png` of a sample is a picture of one channel: 0 for none of them, n for the n-th of the list.

Shape legend: H W pixels of the processed picture, N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from collimate.data.regions import Placement, Region, placed_box


def placed(regions: Sequence[Region], placement: Placement) -> Float[Tensor, "N 4"]:
    """The boxes of some regions in the processed picture; they may reach beyond it."""
    return torch.tensor([placed_box(region.box, placement) for region in regions]).view(-1, 4)


def inside(boxes: Float[Tensor, "N 4"], height: int, width: int) -> Bool[Tensor, "H W"]:
    """The pixels whose centres lie in any of the boxes."""
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    columns = (x >= boxes[:, :1]) & (x < boxes[:, 2:3])
    rows = (y >= boxes[:, 1:2]) & (y < boxes[:, 3:])
    return (rows[:, :, None] & columns[:, None, :]).any(0)


def numbered(boxes: Float[Tensor, "N 4"], height: int, width: int) -> Int64[Tensor, "H W"]:
    """For each pixel the number of its box, from 1; of several, the smallest box; 0 where there is none."""
    found = torch.zeros(height, width, dtype=torch.int64)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for number in areas.argsort(descending=True, stable=True).tolist():
        found[inside(boxes[number : number + 1], height, width)] = number + 1
    return found


def moved(instances: Int64[Tensor, "h w"], placement: Placement, height: int, width: int) -> Int64[Tensor, "H W"]:
    """A map of instances where the processed picture has them: each pixel takes what its centre comes from.

    What comes from outside of the picture, its padding, is 0.
    """
    scale_x, scale_y, shift_x, shift_y = placement
    rows = ((torch.arange(height) + 0.5 - shift_y) / scale_y).floor().long()
    columns = ((torch.arange(width) + 0.5 - shift_x) / scale_x).floor().long()
    high, wide = instances.shape
    found = instances[rows.clamp(0, high - 1)][:, columns.clamp(0, wide - 1)]
    within_rows, within_columns = (rows >= 0) & (rows < high), (columns >= 0) & (columns < wide)
    return found * (within_rows[:, None] & within_columns)
