"""Objects as peaks of a map from above: what a detector is taught, what it says, and how boxes are read from it.

Yin, Zhou, Krähenbühl 2021, Center-based 3D Object Detection and Tracking, CVPR, arXiv 2006.11275; constants as in
open-mmlab/OpenPCDet, dense_heads/center_head.py (Apache-2.0). For each class a heat map with a Gaussian at the cell of
every object; at these cells the offset within the cell, the height of the centre, the logarithms of length, width and
height, and sine and cosine of the heading.

Penalty-reduced focal loss, with p the probability and h the Gaussian, over all cells and classes:

    L_heat = - 1/M Σ { (1 - p)^2 log p               at an object's cell
                     { (1 - h)^4 p^2 log (1 - p)     elsewhere

Shape legend: B maps, K classes, H W rows and columns, M objects, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from collimate import distributed
from collimate.distributed import Group
from collimate_3d.detection.nms import rotated_nms
from collimate_3d.grid import BEVGrid

CHANNELS = {"offset": 2, "z": 1, "size": 3, "heading": 2}
"""What is regressed: cells, metres, logarithms of metres, sine and cosine."""

HEAT_BIAS = -2.19  # a probability of 0.1 everywhere (OpenPCDet)
MIN_OVERLAP, MIN_RADIUS = 0.1, 2  # of the Gaussians (OpenPCDet)
LARGEST = 20.0  # ours, in metres: no road user is longer; keeps the exponential of an untaught network finite


class Targets(NamedTuple):
    """What the maps should be."""

    heat: Float[Tensor, "B K H W"]
    """the Gaussians"""
    cells: Int64[Tensor, "M 4"]
    """map, class, row and column of each object"""
    values: Float[Tensor, "M 8"]
    """what is regressed there, in the order of `CHANNELS`"""


class Detections(NamedTuple):
    """The boxes of one map, the surest first."""

    boxes: Float[Tensor, "M 7"]
    scores: Float[Tensor, " M"]
    classes: Int64[Tensor, " M"]


class CenterHead(nn.Module):
    """From a map to heat and boxes: a shared 3 x 3 convolution, then two for each kind of output.

    Args:
        in_channels: D of the map.
        classes: K.
        width: of the convolutions.
    """

    def __init__(self, in_channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.shared = _block(in_channels, width)
        outputs = {"heat": classes, **CHANNELS}
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(_block(width, width), nn.Conv2d(width, out, 3, padding=1))
                for name, out in outputs.items()
            }
        )
        nn.init.constant_(self.heads["heat"][-1].bias, HEAT_BIAS)  # type: ignore[index]

    def forward(self, bev: Float[Tensor, "B D H W"]) -> tuple[Float[Tensor, "B K H W"], Float[Tensor, "B 8 H W"]]:
        """Logits of the heat, and what is regressed in the order of `CHANNELS`."""
        shared = self.shared(bev)
        return self.heads["heat"](shared), torch.cat([self.heads[name](shared) for name in CHANNELS], 1)


def center_targets(
    boxes: Sequence[Float[Tensor, "M 7"]], classes: Sequence[Int64[Tensor, " M"]], grid: BEVGrid, kinds: int
) -> Targets:
    """What the maps of some sweeps should be. Objects whose centre lies beyond the map are left out.

    Args:
        boxes: of each sweep.
        classes: of each box, from 0 to `kinds` - 1.
        grid: of the maps.
        kinds: K.
    """
    device = boxes[0].device
    heat = torch.zeros(len(boxes), kinds, *grid.shape, device=device)
    cells, values = [], []
    rows, columns = (torch.arange(extent, device=device) for extent in grid.shape)
    for number, (own, kind) in enumerate(zip(boxes, classes, strict=True)):
        at = grid.cells_of(own[:, :2]) + 0.5
        column, row = at.floor().long().unbind(1)
        inside = (column >= 0) & (column < grid.shape[1]) & (row >= 0) & (row < grid.shape[0])
        own, kind, at, column, row = (each[inside] for each in (own, kind, at, column, row))
        radius = _radii(own, grid)
        apart = (rows[:, None] - row[:, None, None]).square() + (columns - column[:, None, None]).square()
        near = (rows[:, None] - row[:, None, None]).abs().maximum((columns - column[:, None, None]).abs())
        sigma = (2 * radius + 1) / 6
        drawn = (-apart / (2 * sigma.square())[:, None, None]).exp() * (near <= radius[:, None, None])
        index = kind[:, None, None].expand_as(drawn)
        heat[number].scatter_reduce_(0, index, drawn, "amax")
        cells.append(torch.stack([torch.full_like(kind, number), kind, row, column], 1))
        offset = at - torch.stack([column, row], 1)
        heading = torch.stack([own[:, 6].sin(), own[:, 6].cos()], 1)
        values.append(torch.cat([offset, own[:, 2:3], own[:, 3:6].clamp_min(1e-2).log(), heading], 1))
    return Targets(heat, torch.cat(cells), torch.cat(values))


def heat_loss(logits: Float[Tensor, "B K H W"], targets: Targets, group: Group = None) -> Float[Tensor, ""]:
    """L_heat, over the objects of all ranks; where there is none at all, the sum over cells."""
    real = torch.zeros_like(targets.heat, dtype=torch.bool)
    real[tuple(targets.cells.unbind(1))] = True
    away = (1 - targets.heat).pow(4) * logits.sigmoid().square() * functional.softplus(logits)
    there = (-logits).sigmoid().square() * functional.softplus(-logits)
    # Two objects of a class in one cell are one peak, and two of M, as in the published code.
    return torch.where(real, there, away).sum() * distributed.global_share(distributed.row_counts(targets.cells, group))


def box_loss(predicted: Float[Tensor, "B 8 H W"], targets: Targets, group: Group = None) -> Float[Tensor, ""]:
    """The L1 distance at each object's cell, summed over what is regressed: its mean over the objects of all ranks."""
    sweep, _, row, column = targets.cells.unbind(1)
    apart = (predicted[sweep, :, row, column] - targets.values).abs().sum()
    return apart * distributed.global_share(distributed.row_counts(targets.cells, group))


@torch.no_grad()
def decoded(
    logits: Float[Tensor, "B K H W"],
    predicted: Float[Tensor, "B 8 H W"],
    grid: BEVGrid,
    least_score: float = 0.1,
    most: int = 100,
    overlap: float = 0.1,
) -> list[Detections]:
    """Boxes at the peaks of the heat: cells that none of their eight neighbours exceeds.

    Args:
        least_score: below which there is no object.
        most: peaks of each map, over all classes, before overlapping ones are left out.
        overlap: IoU from above, beyond which the less sure of two boxes of a class is left out.
    """
    scores = logits.float().sigmoid()
    peaks = scores * (functional.max_pool2d(scores, 3, 1, 1) == scores)
    found = []
    for own, values in zip(peaks, predicted.float(), strict=True):
        flat = own.flatten()
        best = flat.topk(min(most, len(flat)))
        place = best.indices[best.values >= least_score]
        score = best.values[: len(place)]
        kind, row, column = (
            place // (grid.shape[0] * grid.shape[1]),
            place // grid.shape[1] % grid.shape[0],
            place % grid.shape[1],
        )
        boxes = _boxes(values[:, row, column].T, row, column, grid)
        # Classes lie far apart, so that one pass leaves out what overlaps within each.
        spread = boxes.clone()
        spread[:, 0] += kind * 1e5
        kept = rotated_nms(spread, score, overlap)
        found.append(Detections(boxes[kept], score[kept], kind[kept]))
    return found


def _boxes(values: Float[Tensor, "M 8"], row: Tensor, column: Tensor, grid: BEVGrid) -> Float[Tensor, "M 7"]:
    offset, z, size, heading = values.split(list(CHANNELS.values()), 1)
    cell, origin = values.new_tensor(grid.cell), values.new_tensor(grid.origin)
    xy = (torch.stack([column, row], 1) + offset) * cell + origin
    sides = size.clamp_max(math.log(LARGEST)).exp()
    return torch.cat([xy, z, sides, torch.atan2(heading[:, :1], heading[:, 1:])], 1)


def _radii(boxes: Float[Tensor, "M 7"], grid: BEVGrid) -> Float[Tensor, " M"]:
    """Cells around an object's own to which its Gaussian reaches: CornerNet's three cases, as published code solves
    them (OpenPCDet, centernet_utils.py)."""
    length, width = boxes[:, 3] / grid.cell[0], boxes[:, 4] / grid.cell[1]
    total, area, o = length + width, length * width, MIN_OVERLAP
    cases = [
        (1.0, total, area * (1 - o) / (1 + o)),
        (4.0, 2 * total, area * (1 - o)),
        (4 * o, -2 * o * total, area * (o - 1)),
    ]
    roots = [(b + (b.square() - 4 * a * c).clamp_min(0).sqrt()) / 2 for a, b, c in cases]
    return torch.stack(roots).amin(0).floor().clamp_min(MIN_RADIUS)


def _block(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
