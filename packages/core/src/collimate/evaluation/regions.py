"""What lies where in a picture, as data say it, and where it lies once the picture is processed.

The field `regions.json` of a sample is a list of objects, each in one of two forms, all in pixels of the picture as it
is stored:

- `{"box": [x0, y0, x1, y1], "phrase": "a small red circle", "name": "red circle"}`: two corners, the far edges not
  included; the words for it; and, if it has one, the class;
- `{"bbox": [x, y, width, height], "category": "bear", "phrases": []}`, as COCO writes it.

A table has it in a column `regions` or `boxes`. Where the exact shape of the regions is known, the field
`instances.png` is a picture of one channel: 0 for none of them, n for the n-th of the list.

Shape legend: H W pixels of the processed picture, N boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Placement = tuple[float, float, float, float]
"""Scale and shift of a picture's x and y, as `ImageProcessor.placement` gives them."""


@dataclass(frozen=True)
class Region:
    """A box in a picture.

    Attributes:
        box: x0, y0, x1, y1 in pixels, the far edges not included.
        phrase: the words for what is in it.
        name: its class, or None.
    """

    box: tuple[float, float, float, float]
    phrase: str
    name: str | None = None


def regions_of(value: Sequence[Mapping[str, Any]]) -> list[Region]:
    """The regions of a decoded field.

    Raises:
        ValueError: it is in neither form; says which.
    """
    return [_region(each) for each in value]


def placed(regions: Sequence[Region], placement: Placement) -> Float[Tensor, "N 4"]:
    """The boxes of some regions in the processed picture; they may reach beyond it."""
    scale_x, scale_y, shift_x, shift_y = placement
    boxes = torch.tensor([region.box for region in regions]).view(-1, 4)
    return boxes * torch.tensor([scale_x, scale_y] * 2) + torch.tensor([shift_x, shift_y] * 2)


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
    """A map of instances where the processed picture has them: each pixel takes what its centre comes from."""
    scale_x, scale_y, shift_x, shift_y = placement
    rows = ((torch.arange(height) + 0.5 - shift_y) / scale_y).long().clamp(0, instances.shape[0] - 1)
    columns = ((torch.arange(width) + 0.5 - shift_x) / scale_x).long().clamp(0, instances.shape[1] - 1)
    return instances[rows][:, columns]


def _region(each: Mapping[str, Any]) -> Region:
    name = each.get("name", each.get("category"))
    phrase = each.get("phrase") or next(iter(each.get("phrases") or ()), name)
    if phrase is None or not ("box" in each or "bbox" in each):
        raise ValueError(f"A region has a box and a phrase or a name, or COCO's bbox and category; not {dict(each)}.")
    if "box" in each:
        x0, y0, x1, y1 = map(float, each["box"])
    else:
        x0, y0, wide, high = map(float, each["bbox"])
        x1, y1 = x0 + wide, y0 + high
    return Region((x0, y0, x1, y1), str(phrase), None if name is None else str(name))
