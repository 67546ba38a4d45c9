"""What the boxes of a scene's objects say of each other, as numbers for graph layers; and which objects are neighbours.

Boxes are rows of six numbers: the centre and the full extents, in metres, axis-aligned.

Shape legend: B scenes, M objects of a scene, N objects, E edges.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

SMALLEST = 1e-3  # ours, in metres: flat boxes are that thick where logarithms are taken
DISTANCE_EPS = 1e-10  # 3d-vista/3D-VisTA, model/vision/basic_modules.py
CLUES = 27
PLACES = 5  # numbers of a pair, in 3D-VisTA


def corners(boxes: Float[Tensor, "... 6"]) -> Float[Tensor, "... 8 3"]:
    """The corners of boxes, x varying slowest."""
    signs = torch.tensor([-0.5, 0.5], dtype=boxes.dtype, device=boxes.device)
    unit = torch.cartesian_prod(signs, signs, signs)
    return boxes[..., None, :3] + unit * boxes[..., None, 3:]


def position_clues(corners: Float[Tensor, "... 8 3"]) -> Float[Tensor, "... 27"]:
    """Where a box lies: its centre, and its corners from there.

    As in leolyj/3D-VLP, models/pretrain_module/relation_module.py. No gradient runs into the box.
    """
    corners = corners.detach()
    center = (corners.amax(-2) + corners.amin(-2)) / 2
    return torch.cat([center, (corners - center[..., None, :]).flatten(-2)], -1)


def box_overlap(one: Float[Tensor, "*#rows 6"], other: Float[Tensor, "*#rows 6"]) -> Float[Tensor, "*rows"]:
    """Intersection over union of axis-aligned boxes, row by row; 0 where neither has a volume."""
    low = torch.maximum(one[..., :3] - one[..., 3:] / 2, other[..., :3] - other[..., 3:] / 2)
    high = torch.minimum(one[..., :3] + one[..., 3:] / 2, other[..., :3] + other[..., 3:] / 2)
    shared = (high - low).clamp_min(0).prod(-1)
    union = one[..., 3:].prod(-1) + other[..., 3:].prod(-1) - shared
    return torch.where(union > 0, shared / union, 0.0)


def box_numbers(boxes: Float[Tensor, "N 6"]) -> Float[Tensor, "N 8"]:
    """Centre, extents, volume and longest extent: what `pair_numbers` compares."""
    size = boxes[:, 3:].clamp_min(SMALLEST)
    return torch.cat([boxes[:, :3], size, size.prod(1, keepdim=True), size.amax(1, keepdim=True)], 1)


def point_numbers(points: Float[Tensor, "P 3"]) -> Float[Tensor, " 11"]:
    """Mean, standard deviation (unbiased), extents, volume and longest extent of an object's points, as 3DSSG has them.

    Raises:
        ValueError: an object has fewer than two points.
    """
    if len(points) < 2:
        raise ValueError(f"An object's points have a spread where there are two or more; it has {len(points)}.")
    size = points.amax(0) - points.amin(0)
    return torch.cat([points.mean(0), points.std(0), size, size.prod()[None], size.amax()[None]])


def pair_numbers(numbers: Float[Tensor, "N 8"], edges: Int64[Tensor, "2 E"]) -> Float[Tensor, "E 8"]:
    """Of each edge, subject against object: the difference of centres, and logarithms of the ratios of all else.

    As in ShunChengWu/3DSSG, `EdgeDescriptor_8`.

    Args:
        numbers: `box_numbers`; all but the centres positive.
        edges: subject and object of each.
    """
    subject, target = numbers[edges[0]], numbers[edges[1]]
    return torch.cat([subject[:, :3] - target[:, :3], (subject[:, 3:] / target[:, 3:]).log()], 1)


def pair_places(
    centers: Float[Tensor, "B M 3"], given: Bool[Tensor, "B M"] | None = None, normalize: bool = True
) -> Float[Tensor, "B M M 5"]:
    """Of each pair i, j, with d = centre i - centre j: |d|, d_z / |d|, |d_xy| / |d|, d_y / |d_xy|, d_x / |d_xy|.

    As in 3D-VisTA: the distance, and sines and cosines of the two angles under which j sees i. No gradient.

    Args:
        centers: in metres.
        given: which rows are objects; in 3D-VisTA padding counts, too, where distances are divided.
        normalize: divide distances by the largest of the scene.
    """
    found = places_of(centers.detach()[:, :, None] - centers.detach()[:, None])
    distance = found[..., 0]
    counted = distance if given is None else distance * (given[:, :, None] & given[:, None])
    largest = counted.amax((1, 2), keepdim=True).clamp_min(math.sqrt(DISTANCE_EPS))
    return torch.cat([(distance / largest if normalize else distance)[..., None], found[..., 1:]], -1)


def places_of(offset: Float[Tensor, "*rows 3"]) -> Float[Tensor, "*rows 5"]:
    """The five numbers of `pair_places`, with distances in metres, from the differences d of centres."""
    x, y, z = offset.unbind(-1)
    across = (x.square() + y.square() + DISTANCE_EPS).sqrt()
    distance = (offset.square().sum(-1) + DISTANCE_EPS).sqrt()
    return torch.stack([distance, z / distance, across / distance, y / across, x / across], -1)


def pair_offsets(centers: Float[Tensor, "B M 3"]) -> Float[Tensor, "B M M 4"]:
    """Of each pair i, j: where j lies as i sees it, centre j - centre i, and how far. As in 3D-VLP; no gradient."""
    offset = centers.detach()[:, None] - centers.detach()[:, :, None]
    return torch.cat([offset, offset.norm(dim=-1, keepdim=True)], -1)


@torch.no_grad()
def nearest(centers: Float[Tensor, "B M 3"], given: Bool[Tensor, "B M"], k: int) -> Bool[Tensor, "B M M"]:
    """Entry [j, i] is True where j is one of the k objects nearest to i: the edges j -> i, as subject and object.

    An object is no neighbour of itself. Scenes of k objects or fewer are connected wholly; of equally far ones any.

    Args:
        centers: in metres.
        given: which rows are objects; the others have no edges.
        k: at least 1.
    """
    distance = (centers[:, :, None] - centers[:, None]).norm(dim=-1)
    own = torch.eye(centers.shape[1], dtype=torch.bool, device=centers.device)
    apart = given[:, :, None] & given[:, None] & ~own
    distance = distance.masked_fill(~apart, torch.inf)
    order = distance.topk(min(k, centers.shape[1]), dim=1, largest=False).indices
    return torch.zeros_like(apart).scatter_(1, order, True) & apart
