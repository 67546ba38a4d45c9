"""How much boxes of any heading share, seen from above and in space; exact.

In the frame of box B, with half sides a and b, the area that a polygon A shares with it is the integral over x in
[-a, a] of the length of A's section that lies in [-b, b]. By Green's theorem it is a sum over A's edges, taken
counter-clockwise:

    |A ∩ B| = - Σ_edges ∫ clamp(y(x), -b, b) dx    over the part of the edge whose x lies in [-a, a],

where y is linear along an edge, so that each integral is that of a clamped ramp: a few additions. It equals clipping A
by the sides of B one after another (Sutherland and Hodgman 1974), without lists of vertices of changing length, without
sorting, and continuously: coinciding corners and sides need no tolerance. The arithmetic is float64. Pairs whose
centres lie farther apart than the sum of their half diagonals are not computed at all.

Neither the margin of 1 cm in OpenPCDet's kernel nor the missing tolerance of KITTI's, which gives 0 for some identical
boxes, is here; both agree with these values within 0.02 elsewhere.

Shape legend: M, K boxes, P pairs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from collimate.kernels.threads import for_each

BLOCK = 2**12  # pairs computed at a time: their numbers fit a core's cache, and torch gives them one thread


def bev_iou(one: Float[Tensor, "M 7"], other: Float[Tensor, "K 7"]) -> Float[Tensor, "M K"]:
    """Shared area of footprints over their union, from 0 to 1; 0 where both have no area.

    Differentiable wherever the boxes have an area. The dtype is that of the first boxes.
    """
    first, second = near_pairs(one, other)
    shared = shared_areas(one[first], other[second])
    areas = one[first, 3:5].double().prod(1) + other[second, 3:5].double().prod(1)
    return _matrix(one, other, first, second, _ratio(shared, areas - shared))


def iou_3d(one: Float[Tensor, "M 7"], other: Float[Tensor, "K 7"]) -> Float[Tensor, "M K"]:
    """Shared volume over the volume of the union, from 0 to 1; 0 where both have no volume. Differentiable likewise."""
    first, second = near_pairs(one, other)
    shared = shared_volumes(one[first], other[second])
    volumes = one[first, 3:6].double().prod(1) + other[second, 3:6].double().prod(1)
    return _matrix(one, other, first, second, _ratio(shared, volumes - shared))


def paired_ious(
    one: Float[Tensor, "P 7"], other: Float[Tensor, "P 7"]
) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """IoU from above and in space of pairs given one by one, float64."""
    near = (one[:, :2] - other[:, :2]).double().square().sum(1) <= _reaches(one, other).square()
    first, second = one[near], other[near]
    area = shared_areas(first, second)
    volume = area * _shared_heights(first, second)
    found = []
    for shared, sides in ((area, slice(3, 5)), (volume, slice(3, 6))):
        whole = first[:, sides].double().prod(1) + second[:, sides].double().prod(1) - shared
        found.append(near.new_zeros(len(one), dtype=torch.float64).index_put((near,), _ratio(shared, whole)))
    return found[0], found[1]


def near_pairs(
    one: Float[Tensor, "M 7"], other: Float[Tensor, "K 7"]
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"]]:
    """The pairs whose circumscribed circles meet: all that can share anything."""
    rows, found = max(1, BLOCK // max(len(other), 1)), []
    with torch.no_grad():
        for start in range(0, len(one), rows):
            part = one[start : start + rows, None]
            apart = (part[..., :2] - other[:, :2]).double().square().sum(-1)
            first, second = (apart <= _reaches(part, other).square()).nonzero(as_tuple=True)
            found.append((first + start, second))
    if not found:
        none = torch.zeros(0, dtype=torch.int64, device=one.device)
        return none, none
    first, second = zip(*found, strict=True)
    return torch.cat(first), torch.cat(second)


def shared_volumes(one: Float[Tensor, "P 7"], other: Float[Tensor, "P 7"]) -> Float[Tensor, " P"]:
    """Cubic metres that paired boxes share, float64."""
    return shared_areas(one, other) * _shared_heights(one, other)


def shared_areas(one: Float[Tensor, "P 7"], other: Float[Tensor, "P 7"]) -> Float[Tensor, " P"]:
    """Square metres that the footprints of paired boxes share, float64."""
    if len(one) <= BLOCK or (torch.is_grad_enabled() and (one.requires_grad or other.requires_grad)):
        parts = [_shared(first, second) for first, second in zip(one.split(BLOCK), other.split(BLOCK), strict=True)]
        return torch.cat(parts)
    found = one.new_empty(len(one), dtype=torch.float64)

    def compute(first: int) -> None:
        block = slice(first, first + BLOCK)
        found[block] = _shared(one[block], other[block])

    for_each(compute, range(0, len(one), BLOCK), one.device)
    return found


def _shared(one: Float[Tensor, "p 7"], other: Float[Tensor, "p 7"]) -> Float[Tensor, " p"]:
    one, other = one.double(), other.double()
    x, y = _corners_seen_from(one, other)
    half = other[:, 3:5] / 2
    a, b = half[:, :1], half[:, 1:]
    x_next, y_next = x.roll(-1, 1), y.roll(-1, 1)
    run = x_next - x
    steep = run == 0
    slope = torch.where(steep, 0.0, (y_next - y) / torch.where(steep, 1.0, run))
    start, stop = torch.minimum(torch.maximum(x, -a), a), torch.minimum(torch.maximum(x_next, -a), a)
    heights = _mean_of_clamped(y + (start - x) * slope, y + (stop - x) * slope, b)
    return ((start - stop) * heights).sum(1).clamp_min(0)


def _corners_seen_from(
    one: Float[Tensor, "p 7"], other: Float[Tensor, "p 7"]
) -> tuple[Float[Tensor, "p 4"], Float[Tensor, "p 4"]]:
    """x and y of the first boxes' corners, counter-clockwise, in the frames of the others."""
    cosine, sine = other[:, 6:].cos(), other[:, 6:].sin()
    x, y = one[:, :1] - other[:, :1], one[:, 1:2] - other[:, 1:2]  # first: far from the origin products would round
    x, y = x * cosine + y * sine, y * cosine - x * sine
    turned = one[:, 6:] - other[:, 6:]
    cosine, sine = turned.cos(), turned.sin()
    along = one[:, 3:4] / 2 * one.new_tensor([1, -1, -1, 1])
    across = one[:, 4:5] / 2 * one.new_tensor([1, 1, -1, -1])
    return x + along * cosine - across * sine, y + along * sine + across * cosine


def _mean_of_clamped(
    one: Float[Tensor, "p 4"], other: Float[Tensor, "p 4"], b: Float[Tensor, "p 1"]
) -> Float[Tensor, "p 4"]:
    """The mean of clamp(y, -b, b) while y goes evenly from one value to another."""
    low, high = torch.minimum(one, other), torch.maximum(one, other)
    first, last = torch.minimum(torch.maximum(low, -b), b), torch.minimum(torch.maximum(high, -b), b)
    length = high - low
    level = length == 0
    # Each length is a difference of neighbours, so that their shares are exact even of the shortest ramp.
    above, below = (high - torch.maximum(low, b)).clamp_min(0), (torch.minimum(high, -b) - low).clamp_min(0)
    between = (first + last) / 2
    ramp = (between * (last - first) + b * (above - below)) / torch.where(level, 1.0, length)
    return torch.where(level, between, ramp)


def _shared_heights(one: Float[Tensor, "P 7"], other: Float[Tensor, "P 7"]) -> Float[Tensor, " P"]:
    one, other = one.double(), other.double()
    top = torch.minimum(one[:, 2] + one[:, 5] / 2, other[:, 2] + other[:, 5] / 2)
    bottom = torch.maximum(one[:, 2] - one[:, 5] / 2, other[:, 2] - other[:, 5] / 2)
    return (top - bottom).clamp_min(0)


def _reaches(one: Float[Tensor, "*some 7"], other: Float[Tensor, "*others 7"]) -> Float[Tensor, "*both"]:
    """The sum of half diagonals."""
    return (
        torch.linalg.vector_norm(one[..., 3:5].double(), dim=-1)
        + torch.linalg.vector_norm(other[..., 3:5].double(), dim=-1)
    ) / 2


def _ratio(shared: Float[Tensor, " P"], union: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    empty = union <= 0
    return torch.where(empty, 0.0, shared / torch.where(empty, 1.0, union))


def _matrix(one: Tensor, other: Tensor, first: Tensor, second: Tensor, values: Tensor) -> Float[Tensor, "M K"]:
    empty = values.new_zeros(len(one), len(other))
    return empty.index_put((first, second), values).to(one.dtype)
