"""Farthest-point sampling: each time the point that lies farthest from all that were chosen.

Eldar et al. 1997; Qi et al. 2017, PointNet++, arXiv 1706.02413. With D_j the squared distance of point j to the nearest
chosen one, the next is argmax_j D_j, the lowest index where several are equal, and D_j becomes min(D_j, |p_j - p|^2).

On a CPU, points of a large cloud lie in buckets of neighbours with their bounding boxes. A box that is no nearer to the
chosen point than the largest D of its bucket holds nothing that changes, and is skipped: most are, once a few points
are chosen. Rounding is monotonic, so that the skipped distances could not have been smaller in float32 either: the
choice is the same as without buckets.

Shape legend: B clouds, N points, S samples, G buckets of M points.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

BUCKETED_FROM = 4096  # ours: smaller clouds go side by side, which costs less than choosing buckets
BUCKET = 64  # ours
VOTENET_DEAD_ZONE = 1e-3  # square metres: the kernels that VoteNet uses never choose points so near to the origin


@torch.no_grad()
def farthest_points(
    xyz: Float[Tensor, "B N 3"],
    samples: int,
    start: int | Int[Tensor, " B"] = 0,
    dead_zone: float | None = None,
) -> Int[Tensor, "B S"]:
    """Which points to take, int64, in the order of choice.

    Where more are asked for than there are different points, the first one of those that may be chosen is repeated.

    Args:
        xyz: finite; computed in float32. No gradient flows.
        samples: S.
        start: the first sample, whatever it is; one for all clouds, or one each.
        dead_zone: points with |p|^2 up to this, in square metres, are not chosen and do not count
            (`VOTENET_DEAD_ZONE`); None for none.

    Raises:
        ValueError: there is no point, one is not finite, or no sample is wanted.
    """
    if xyz.ndim != 3 or xyz.shape[2] != 3 or not xyz.shape[1] or samples < 1:
        raise ValueError(f"Sampling needs points (B, N, 3) and a number of samples; got {tuple(xyz.shape)}, {samples}.")
    xyz = xyz.detach().float()
    if not bool(xyz.isfinite().all()):
        raise ValueError(
            "A point is NaN or infinite: leave such points out, as `PointCloud.of` does, or pad with copies."
        )
    first = torch.as_tensor(start, device=xyz.device).expand(len(xyz))
    blind = torch.zeros_like(xyz[..., 0], dtype=torch.bool)
    if dead_zone is not None:
        blind = _squared(*xyz.unbind(-1)) <= dead_zone
    if xyz.device.type == "cpu" and xyz.shape[1] >= BUCKETED_FROM:
        rows = zip(xyz.numpy(), blind.numpy(), first.tolist(), strict=True)
        return torch.stack([torch.from_numpy(_by_buckets(*row, samples)) for row in rows])
    return _side_by_side(xyz, blind, first, samples)


def _side_by_side(xyz: Tensor, blind: Tensor, first: Tensor, samples: int) -> Int[Tensor, "B S"]:
    """All clouds at once, in place."""
    x, y, z = (axis.contiguous() for axis in xyz.unbind(-1))
    nearest = torch.full_like(x, torch.inf).masked_fill_(blind, -1.0)
    distance, part = torch.empty_like(x), torch.empty_like(x)
    chosen = torch.empty(len(xyz), samples, dtype=torch.int64, device=xyz.device)
    last = first[:, None].long()
    for step in range(samples):
        chosen[:, step] = last[:, 0]
        if step == samples - 1:
            break
        torch.sub(x, x.gather(1, last), out=distance).square_()
        distance.add_(torch.sub(y, y.gather(1, last), out=part).square_())
        distance.add_(torch.sub(z, z.gather(1, last), out=part).square_())
        torch.minimum(nearest, distance, out=nearest)
        last = nearest.argmax(1, keepdim=True)
    return chosen


def _by_buckets(xyz: Float32[np.ndarray, "N 3"], blind: np.ndarray, first: int, samples: int) -> Int[np.ndarray, " S"]:
    """One cloud. numpy, because what is left to do at each step is small, and its calls cost less."""
    order = _buckets(xyz)  # (G, M), filled up with points of the same bucket
    places = np.ascontiguousarray(xyz[order].transpose(2, 0, 1))
    low, high = places.min(2), places.max(2)
    nearest = np.where(blind[order], np.float32(-1), np.float32(np.inf))
    most = nearest.max(1)
    farthest = np.where(most > 0, order[np.arange(len(order)), nearest.argmax(1)], len(xyz))
    chosen = np.empty(samples, np.int64)
    last = first
    for step in range(samples):
        chosen[step] = last
        if step == samples - 1:
            break
        point = xyz[last][:, None]
        gap = np.maximum(low - point, point - high)
        np.maximum(gap, 0, out=gap)
        near = np.flatnonzero(_squared(*gap) < most)
        if len(near):
            distances = _squared(*(places[:, near] - point[:, :, None]))
            np.minimum(distances, nearest[near], out=distances)
            nearest[near] = distances
            top = distances.argmax(1)
            rows = np.arange(len(near))
            most[near], farthest[near] = distances[rows, top], order[near, top]
        best = most.max()
        last = int(farthest[most == best].min()) if best >= 0 else 0
    return chosen


def _buckets(xyz: Float32[np.ndarray, "N 3"]) -> Int[np.ndarray, "G M"]:
    """Neighbours by their place on a Z-shaped curve; within a bucket by their index, so that the lowest is first."""
    low = xyz.min(0)
    extent = float((xyz.max(0) - low).max()) or 1.0
    cells = ((xyz - low).astype(np.float64) * (1023 / extent)).astype(np.int64)
    code = sum(_spread(cells[:, axis]) << axis for axis in range(3))
    count = -(-len(xyz) // BUCKET)
    order = np.argsort(code, kind="stable")
    filled = np.concatenate([order, np.repeat(order[-1:], count * BUCKET - len(order))]).reshape(count, BUCKET)
    return np.sort(filled, axis=1)


def _spread(cells: np.ndarray) -> np.ndarray:
    """Two zeros before each of ten bits."""
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        cells = (cells | cells << shift) & mask
    return cells


def _squared(x, y, z):
    """x^2 + y^2 + z^2, in this order everywhere, so that distances are equal to the last bit."""
    return x * x + y * y + z * z
