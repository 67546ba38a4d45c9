"""Boxes in space, in one convention everywhere: (x, y, z, dx, dy, dz, heading).

Centre, length along the heading, width and height, all in metres; heading in radians, counter-clockwise about +z from
+x, in a frame with z up. Other conventions (KITTI's labels in the camera's frame, nuScenes' quaternions) exist in
readers and writers only. Headings are not wrapped unless a function says so.

Shape legend: M, K boxes, N points.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

CORNER_SIGNS = (
    (1, 1, -1),
    (1, -1, -1),
    (-1, -1, -1),
    (-1, 1, -1),
    (1, 1, 1),
    (1, -1, 1),
    (-1, -1, 1),
    (-1, 1, 1),
)
"""On which side of the centre each corner lies: the bottom clockwise as seen from above, then the top
(open-mmlab/OpenPCDet, box_utils.py)."""

BLOCK = 2**22  # pairs of a point and a box that are held at a time


def check_boxes(boxes: Tensor, what: str = "boxes") -> None:
    """Refuse what cannot be boxes.

    Raises:
        ValueError: another shape, values that are not finite, or a side that is negative.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 7:
        raise ValueError(
            f"{what} are (number, 7): x, y, z, length, width, height in metres and heading in radians; got "
            f"{tuple(boxes.shape)}."
        )
    if not bool(boxes.isfinite().all()):
        raise ValueError(f"{what}: box {int((~boxes.isfinite()).any(1).nonzero()[0])} has values that are not finite.")
    if bool((boxes[:, 3:6] < 0).any()):
        number = int((boxes[:, 3:6] < 0).any(1).nonzero()[0])
        raise ValueError(f"{what}: box {number} has a negative side: {boxes[number, 3:6].tolist()} metres.")


def box_corners(boxes: Float[Tensor, "M 7"]) -> Float[Tensor, "M 8 3"]:
    """The corners in the order of `CORNER_SIGNS`."""
    signs = torch.tensor(CORNER_SIGNS, dtype=boxes.dtype, device=boxes.device) / 2
    return _turned(signs * boxes[:, None, 3:6], boxes[:, None, 6]) + boxes[:, None, :3]


def footprints(boxes: Float[Tensor, "M 7"]) -> Float[Tensor, "M 4 2"]:
    """The corners seen from above, counter-clockwise from the front left."""
    return box_corners(boxes)[:, [0, 3, 2, 1], :2]


def into_boxes(points: Float[Tensor, "N 3"], boxes: Float[Tensor, "M 7"]) -> Float[Tensor, "N M 3"]:
    """Points as each box sees them: from its centre, x along its heading."""
    return _turned(points[:, None] - boxes[:, :3], -boxes[:, 6])


def points_in_boxes(
    points: Float[Tensor, "N 3"], boxes: Float[Tensor, "M 7"], margin: float = 0.0
) -> Int64[Tensor, " N"]:
    """The number of the first box that holds each point, -1 for none; a point on a face lies inside.

    Args:
        margin: metres by which boxes are grown on every side.
    """
    if not len(boxes):
        return points.new_full((len(points),), -1, dtype=torch.int64)
    found = []
    for part in points.split(max(1, BLOCK // len(boxes))):
        held = (into_boxes(part, boxes).abs() <= boxes[:, 3:6] / 2 + margin).all(-1)
        found.append(torch.where(held.any(1), held.int().argmax(1), -1))
    return torch.cat(found) if found else points.new_zeros(0, dtype=torch.int64)


def point_counts(points: Float[Tensor, "N 3"], boxes: Float[Tensor, "M 7"]) -> Int64[Tensor, " M"]:
    """How many points lie in each box."""
    counts = points.new_zeros(len(boxes), dtype=torch.int64)
    for part in points.split(max(1, BLOCK // max(len(boxes), 1))):
        counts += (into_boxes(part, boxes).abs() <= boxes[:, 3:6] / 2).all(-1).sum(0)
    return counts


def limit_angle(
    angle: Float[Tensor, "*some"], offset: float = 0.5, period: float = 2 * math.pi
) -> Float[Tensor, "*some"]:
    """Angles moved by whole periods into [-offset, 1 - offset) * period."""
    return angle - torch.floor(angle / period + offset) * period


def heading_difference(one: Float[Tensor, "*some"], other: Float[Tensor, "*some"]) -> Float[Tensor, "*some"]:
    """By how much two headings differ, in [0, pi]."""
    return limit_angle(one - other).abs()


def aligned_bev_iou(one: Float[Tensor, "M 7"], other: Float[Tensor, "K 7"]) -> Float[Tensor, "M K"]:
    """IoU of footprints whose headings are brought to the nearest axis: a cheap overlap for matching anchors."""
    one_low, one_high = _aligned(one)
    other_low, other_high = _aligned(other)
    sides = torch.minimum(one_high[:, None], other_high) - torch.maximum(one_low[:, None], other_low)
    shared = sides.clamp_min(0).prod(-1)
    areas = one[:, None, 3:5].prod(-1) + other[:, 3:5].prod(-1) - shared
    return shared / areas.clamp_min(torch.finfo(areas.dtype).tiny)


def in_range(points: Float[Tensor, "N 3"], bounds: tuple[float, ...]) -> Bool[Tensor, " N"]:
    """Which points lie in (x0, y0, z0, x1, y1, z1), the upper ends excluded."""
    low, high = points.new_tensor(bounds).split(3)
    return ((points >= low) & (points < high)).all(1)


def _turned(vectors: Float[Tensor, "*some 3"], angle: Float[Tensor, "*rest"]) -> Float[Tensor, "*some 3"]:
    """Vectors turned counter-clockwise about z."""
    cosine, sine = angle.cos(), angle.sin()
    x, y, z = vectors.unbind(-1)
    return torch.stack([x * cosine - y * sine, x * sine + y * cosine, z.expand_as(x * cosine)], -1)


def _aligned(boxes: Float[Tensor, "M 7"]) -> tuple[Float[Tensor, "M 2"], Float[Tensor, "M 2"]]:
    along = limit_angle(boxes[:, 6], period=math.pi).abs() < math.pi / 4
    half = torch.where(along[:, None], boxes[:, 3:5], boxes[:, [4, 3]]) / 2
    return boxes[:, :2] - half, boxes[:, :2] + half
