"""The overlap of rotated boxes as OpenPCDet's kernel has it, margin and all: for comparing with numbers made by it.

The polygon that two footprints share is made of the points where their sides cross, and of the corners of each that lie
in the other, where a corner counts as inside up to `MARGIN` beyond a side. So boxes that touch share a little, and IoUs
are off by up to about 0.003 (open-mmlab/OpenPCDet, iou3d_nms). With a margin of 0 it is KITTI's own evaluation kernel,
in which coinciding corners may be missed. For everything else there is `collimate_3d.rotated_iou`.

Shape legend: M, K boxes, P pairs, V points of a polygon.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collimate_3d.boxes import footprints
from collimate_3d.rotated_iou import near_pairs

MARGIN = 1e-2  # metres
LEAST = 1e-8  # below which unions are taken for it


def published_bev_iou(
    one: Float[Tensor, "M 7"], other: Float[Tensor, "K 7"], margin: float = MARGIN
) -> Float[Tensor, "M K"]:
    """IoU of footprints by the published kernel, without gradient."""
    shared = published_areas(one, other, margin)
    areas = one[:, None, 3:5].prod(-1) + other[:, 3:5].prod(-1) - shared
    return shared / areas.clamp_min(LEAST)


def published_iou_3d(
    one: Float[Tensor, "M 7"], other: Float[Tensor, "K 7"], margin: float = MARGIN
) -> Float[Tensor, "M K"]:
    """IoU in space by the published kernel, without gradient."""
    half, half_other = one[:, None, 5] / 2, other[:, 5] / 2
    top = torch.minimum(one[:, None, 2] + half, other[:, 2] + half_other)
    bottom = torch.maximum(one[:, None, 2] - half, other[:, 2] - half_other)
    shared = published_areas(one, other, margin) * (top - bottom).clamp_min(0)
    volumes = one[:, None, 3:6].prod(-1) + other[:, 3:6].prod(-1) - shared
    return shared / volumes.clamp_min(LEAST)


@torch.no_grad()
def published_areas(
    one: Float[Tensor, "M 7"], other: Float[Tensor, "K 7"], margin: float = MARGIN
) -> Float[Tensor, "M K"]:
    """Square metres that each pair of footprints shares, by the published kernel."""
    grown = torch.cat([one[:, :3], one[:, 3:5] + 4 * margin, one[:, 5:]], 1)  # the margin reaches beyond the circle
    first, second = near_pairs(grown, other)
    points, valid = _points(one[first].double(), other[second].double(), margin)
    count = valid.sum(1).clamp_min(1)
    middle = (points * valid[..., None]).sum(1) / count[:, None]
    apart = points - middle[:, None]
    around = torch.atan2(apart[..., 1], apart[..., 0]).masked_fill(~valid, torch.inf)
    apart = apart.gather(1, around.argsort(1)[..., None].expand_as(apart))
    last = torch.arange(apart.shape[1], device=one.device) >= count[:, None]
    apart = torch.where(last[..., None], apart[:, :1], apart) - apart[:, :1]
    x, y = apart.unbind(-1)
    areas = (x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]).sum(1).abs() / 2
    return areas.new_zeros(len(one), len(other)).index_put((first, second), areas).to(one.dtype)


def _points(
    one: Float[Tensor, "P 7"], other: Float[Tensor, "P 7"], margin: float
) -> tuple[Float[Tensor, "P V 2"], Bool[Tensor, "P V"]]:
    """The candidates of the polygon, and which of them are points of it."""
    corners, others = footprints(one), footprints(other)
    side, side_other = corners.roll(-1, 1) - corners, others.roll(-1, 1) - others
    between = others[:, None] - corners[:, :, None]
    turn = _cross(side[:, :, None], side_other[:, None])
    safe = torch.where(turn == 0, 1.0, turn)
    along = _cross(between, side_other[:, None]) / safe
    along_other = _cross(between, side[:, :, None]) / safe
    crossing = (turn != 0) & (along > 0) & (along < 1) & (along_other > 0) & (along_other < 1)
    crossings = corners[:, :, None] + along[..., None] * side[:, :, None]
    points = torch.cat([crossings.flatten(1, 2), others, corners], 1)
    held = [_inside(others, one, margin), _inside(corners, other, margin)]
    return points, torch.cat([crossing.flatten(1), *held], 1)


def _inside(corners: Float[Tensor, "P 4 2"], boxes: Float[Tensor, "P 7"], margin: float) -> Bool[Tensor, "P 4"]:
    cosine, sine = boxes[:, 6:].cos(), boxes[:, 6:].sin()
    x, y = (corners - boxes[:, None, :2]).unbind(-1)
    half = boxes[:, 3:5] / 2 + margin
    return ((x * cosine + y * sine).abs() < half[:, :1]) & ((y * cosine - x * sine).abs() < half[:, 1:])


def _cross(one: Float[Tensor, "*some 2"], other: Float[Tensor, "*some 2"]) -> Float[Tensor, "*some"]:
    return one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]
