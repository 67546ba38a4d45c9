"""Which points lie around others: within a radius, or the nearest ones; and values gathered from there.

Within a radius, points are sorted once into cells as long as it, so that each centre looks at 27 of them instead of the
whole cloud; where so many are within that K of them stand among the first points, those are looked at alone. All clouds
of a batch go together.

Shape legend: B clouds, N points, M centres, K neighbours, C channels; P = B N, Q = B M.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

AT_ONCE = 2**22  # ours: candidates that are compared at a time; 16 MiB of distances


class Neighbours(NamedTuple):
    """The points around each centre."""

    index: Int[Tensor, "B M K"]
    """int64; where there are fewer than K, the first is repeated; all 0 where there are none"""
    count: Int[Tensor, "B M"]
    """int64: how many there are, K at most"""


@torch.no_grad()
def ball_query(
    xyz: Float[Tensor, "B N 3"],
    centres: Float[Tensor, "B M 3"],
    radius: float,
    neighbours: int,
    inclusive: bool = False,
) -> Neighbours:
    """The points within a radius of each centre, those of the lowest indices first, as the published kernels take them.

    Args:
        xyz, centres: finite, in metres.
        radius: in metres.
        neighbours: K.
        inclusive: whether a point at exactly the radius is within: so in PointNet++ for torch, not so in VoteNet.

    Raises:
        ValueError: there are no points, or radius or K are not positive.
    """
    if not xyz.shape[1] or radius <= 0 or neighbours < 1:
        raise ValueError(
            f"Neighbours need points, a radius and a number; got {tuple(xyz.shape)}, {radius}, {neighbours}."
        )
    cloud = torch.arange(len(xyz), device=xyz.device).repeat_interleave(centres.shape[1])
    found = _Found(centres.reshape(-1, 3), cloud, neighbours, radius**2, inclusive)
    order, starts, lengths = _candidates(xyz, centres, radius)
    share = float(lengths.sum()) / max(1, len(cloud) * xyz.shape[1])
    if share**2 > neighbours / xyz.shape[1]:
        _scan(found, xyz)
    else:
        for rows in _chunks(lengths.sum(1)):
            _search(found, xyz, rows, order, starts[rows], lengths[rows])
    return Neighbours(
        found.filled().view(*centres.shape[:2], neighbours), found.counts.clamp_max(neighbours).view(centres.shape[:2])
    )


@torch.no_grad()
def nearest(points: Float[Tensor, "B N 3"], queries: Float[Tensor, "B M 3"], neighbours: int) -> Int[Tensor, "B M K"]:
    """int64: the nearest points of each query, by their distance; equal distances in no certain order.

    Args:
        neighbours: K, at most N.

    Raises:
        ValueError: there are fewer points.
    """
    if neighbours > points.shape[1]:
        raise ValueError(f"There are {points.shape[1]} points, of which {neighbours} were to be the nearest.")
    px, py, pz = (axis[:, None] for axis in points.unbind(-1))
    found = []
    for some in queries.split(max(1, AT_ONCE // max(1, len(points) * points.shape[1])), 1):
        qx, qy, qz = (axis[..., None] for axis in some.unbind(-1))
        distance = (qx - px).square_().add_((qy - py).square_()).add_((qz - pz).square_())
        found.append(distance.topk(neighbours, largest=False).indices)
    return torch.cat(found, 1) if found else queries.new_zeros(len(queries), 0, neighbours, dtype=torch.int64)


def gathered(values: Shaped[Tensor, "B N C"], index: Int[Tensor, "B ..."]) -> Shaped[Tensor, "B ... C"]:
    """The values at these points of each cloud."""
    flat = index.flatten(1)[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, flat).view(*index.shape, values.shape[2])


def interpolated(
    values: Float[Tensor, "B N C"],
    points: Float[Tensor, "B N 3"],
    queries: Float[Tensor, "B M 3"],
    power: int = 2,
    neighbours: int = 3,
    eps: float = 1e-8,
) -> Float[Tensor, "B M C"]:
    """The values at other places, of the nearest points by the inverse of their distance:

        f(q) = sum_k w_k f_k / sum_k w_k,    w_k = 1 / (|q - p_k|^power + eps).

    Args:
        power: 2 as in PointNet++ for torch, whose weights carry gradients to the points; 1 as in VoteNet, where they
            carry none.
        neighbours: K; all points where there are fewer.

    Raises:
        ValueError: there are no points, or the power is neither.
    """
    if power not in (1, 2) or not points.shape[1]:
        raise ValueError(f"Interpolation needs points and a power of 1 or 2; got {points.shape[1]} and {power}.")
    index = nearest(points, queries, min(neighbours, points.shape[1]))
    with torch.set_grad_enabled(torch.is_grad_enabled() and power == 2):
        squared = (queries[:, :, None] - gathered(points, index)).square().sum(-1)
        weights = 1 / ((squared if power == 2 else squared.sqrt()) + eps)
        weights = weights / weights.sum(-1, keepdim=True)
    return (gathered(values, index) * weights[..., None]).sum(2)


def _candidates(
    xyz: Tensor, centres: Tensor, radius: float
) -> tuple[Int[Tensor, " P"], Int[Tensor, "Q 9"], Int[Tensor, "Q 9"]]:
    """Points in the order of their cells, and where in it the nine rows of cells around each centre lie."""
    everything = torch.cat([xyz, centres], 1).double()
    low = everything.amin((0, 1))
    side = max(radius * (1 + 1e-6), float((everything.amax((0, 1)) - low).max()) / 2**18)
    cells = ((everything - low) / side).long() + 1
    width, height, depth = (cells.amax((0, 1)) + 2).tolist()
    cloud = torch.arange(len(xyz), device=xyz.device)[:, None]
    keys = ((cloud * depth + cells[..., 2]) * height + cells[..., 1]) * width + cells[..., 0]
    ordered, order = keys[:, : xyz.shape[1]].flatten().sort(stable=True)
    steps = torch.tensor([-1, 0, 1], device=xyz.device)
    rows = ((steps[:, None] * height + steps) * width).flatten() + keys[:, xyz.shape[1] :].flatten()[:, None]
    starts = torch.searchsorted(ordered, rows - 1)
    return order, starts, torch.searchsorted(ordered, rows + 1, right=True) - starts


def _chunks(sizes: Int[Tensor, " Q"]) -> list[Int[Tensor, " q"]]:
    """Centres in runs that have at most `AT_ONCE` candidates, or are one centre."""
    ends = sizes.cumsum(0).tolist()
    runs, begin, done = [], 0, 0
    for row, end in enumerate(ends):
        if end - done > AT_ONCE and row > begin:
            runs.append(torch.arange(begin, row, device=sizes.device))
            begin, done = row, ends[row - 1]
    if begin < len(ends):
        runs.append(torch.arange(begin, len(ends), device=sizes.device))
    return runs


class _Found:
    """The neighbours that were found so far, of all centres of the batch."""

    def __init__(self, seeds: Tensor, cloud: Tensor, neighbours: int, limit: float, inclusive: bool) -> None:
        self.seeds, self.cloud, self.limit, self.inclusive = seeds, cloud, limit, inclusive
        self.index = cloud.new_zeros(len(seeds), neighbours)
        self.counts = cloud.new_zeros(len(seeds))

    def within(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Which differences are short enough; they are overwritten."""
        distance = x.square_().add_(y.square_()).add_(z.square_())
        return distance <= self.limit if self.inclusive else distance < self.limit

    def add(self, rows: Int[Tensor, " q"], centre: Tensor, point: Tensor) -> None:
        """Further neighbours, sorted by the centre among `rows`, then by the point; those beyond K are only counted."""
        counts = torch.bincount(centre, minlength=len(rows))
        known = self.counts[rows]
        rank = known[centre] + torch.arange(len(centre), device=centre.device) - (counts.cumsum(0) - counts)[centre]
        kept = rank < self.index.shape[1]
        self.index[rows[centre[kept]], rank[kept]] = point[kept]
        self.counts[rows] = known + counts

    def filled(self) -> Int[Tensor, "Q K"]:
        """The first neighbour again where there are too few."""
        slots = torch.arange(self.index.shape[1], device=self.index.device)
        return torch.where(slots < self.counts[:, None], self.index, self.index[:, :1])


def _search(found: _Found, xyz: Tensor, rows: Tensor, order: Tensor, starts: Tensor, lengths: Tensor) -> None:
    """Compare some centres with the points of the cells around them."""
    counts = lengths.flatten()
    spans = torch.arange(len(counts), device=rows.device).repeat_interleave(counts)
    place = torch.arange(len(spans), device=rows.device) - (counts.cumsum(0) - counts)[spans] + starts.flatten()[spans]
    centre, point = spans // lengths.shape[1], order[place]
    near = found.within(*(xyz.reshape(-1, 3)[point] - found.seeds[rows][centre]).unbind(1))
    centre, point = centre[near], point[near] % xyz.shape[1]
    keys = (centre * xyz.shape[1] + point).sort().values
    found.add(rows, keys // xyz.shape[1], keys % xyz.shape[1])


def _scan(found: _Found, xyz: Tensor) -> None:
    """Compare centres with all points in their order, each until it has K neighbours: soon, where many are within."""
    rows, begin, step = torch.arange(len(found.seeds), device=xyz.device), 0, 4 * found.index.shape[1]
    while begin < xyz.shape[1] and len(rows):
        end = begin + max(1, min(step, AT_ONCE // len(rows)))
        cloud, seeds = found.cloud[rows], found.seeds[rows]
        differences = (xyz[:, begin:end, axis][cloud] - seeds[:, axis, None] for axis in range(3))
        centre, point = found.within(*differences).nonzero().unbind(1)
        found.add(rows, centre, point + begin)
        rows = rows[found.counts[rows] < found.index.shape[1]]
        begin, step = end, 2 * step
