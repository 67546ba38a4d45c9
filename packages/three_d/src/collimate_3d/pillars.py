"""The features of pillars, without the padding that published code computes with.

Lang et al. 2019, PointPillars, arXiv 1812.05784; open-mmlab/OpenPCDet, pcdet/models/backbones_3d/vfe/pillar_vfe.py
(Apache-2.0). With the mean m of a pillar's points and its centre c, a point enters as

    (x, y, z, features, xyz - m, xyz - c[, |xyz|]),

and each layer is Linear without bias, batch norm, ReLU, maximum over the pillar; layers before the last have half the
width, and hand on each point's own vector beside the maximum.

Published code pads pillars to K points with zeros, which batch norm turns into relu(bias) and which then take part in
the maximum and, in training, in the statistics. Here all padding of a pillar is one row, counted as often as it would
occur: the results are the same.

Shape legend: P points, V pillars, R = P + V' rows with V' pillars that are not full, C channels of a point, K points of
a pillar at most, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from collimate_3d.grid import VoxelGrid
from collimate_3d.operators.segments import segment_max, segment_mean
from collimate_3d.operators.voxels import Voxelisation

PILLAR_WIDTHS = (64,)  # OpenPCDet, pointpillar.yaml of KITTI


class PillarFeatures(nn.Module):
    """The pillar feature net. Parameters carry the official names.

    Args:
        grid: where the pillars stand.
        channels: C.
        max_points: K.
        widths: of the layers; the last one is D.
        with_distance: whether a point's distance from the origin is one more input.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        channels: int = 4,
        max_points: int = 32,
        widths: Sequence[int] = PILLAR_WIDTHS,
        with_distance: bool = False,
    ) -> None:
        super().__init__()
        self.grid, self.max_points, self.with_distance, self.width = grid, max_points, with_distance, widths[-1]
        inputs = (channels + 6 + with_distance, *widths[:-1])
        outputs = (*(width // 2 for width in widths[:-1]), widths[-1])
        self.pfn_layers = nn.ModuleList(PillarLayer(*each) for each in zip(inputs, outputs, strict=True))

    def forward(self, points: Float[Tensor, "P C"], pillars: Voxelisation) -> Float[Tensor, "V D"]:
        """The features of each pillar.

        Args:
            pillars: of these points, with at most K of them in each.
        """
        count = len(pillars.coords)
        member = pillars.voxel >= 0
        rows, pillar = self._decorated(points[member], pillars.voxel[member], pillars)
        padding = (self.max_points - pillars.points).clamp_min(0)
        short = padding.nonzero().flatten()
        rows = torch.cat([rows, rows.new_zeros(len(short), rows.shape[1])])
        pillar = torch.cat([pillar, short])
        times = torch.cat([torch.ones_like(pillar[: len(pillar) - len(short)]), padding[short]])
        for layer in self.pfn_layers[:-1]:
            rows = layer(rows, times)
            rows = torch.cat([rows, segment_max(rows, pillar, count)[pillar]], 1)
        return segment_max(self.pfn_layers[-1](rows, times), pillar, count)

    def _decorated(
        self, points: Tensor, pillar: Int[Tensor, " P"], pillars: Voxelisation
    ) -> tuple[Float[Tensor, "P D"], Int[Tensor, " P"]]:
        xyz = points[:, :3]
        mean = segment_mean(xyz, pillar, len(pillars.coords))[pillar]
        centre = self.grid.centres_of(pillars.coords[:, 1:])[pillar]
        parts = [points, xyz - mean, xyz - centre]
        if self.with_distance:
            parts.append(xyz.norm(dim=1, keepdim=True))
        return torch.cat(parts, 1), pillar


class PillarLayer(nn.Module):
    """Linear, batch norm and ReLU on rows that count several times."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width, bias=False)
        self.norm = CountedNorm(width)

    def forward(self, rows: Float[Tensor, "R C"], times: Int[Tensor, " R"]) -> Float[Tensor, "R D"]:
        return self.norm(self.linear(rows), times).relu()


class CountedNorm(nn.Module):
    """Batch norm over rows of which some count several times, with the parameters of torch's.

    Statistics are each rank's own.

    Args:
        channels: C.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-3, momentum: float = 0.01) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, rows: Float[Tensor, "R C"], times: Int[Tensor, " R"]) -> Float[Tensor, "R C"]:
        total = int(times.sum())
        if not self.training or total < 2:  # one row has no variance
            mean, variance = self.running_mean, self.running_var
        else:
            share = (times.to(self.weight.dtype) / total)[:, None]
            wide = rows.to(self.weight.dtype)
            mean = (wide * share).sum(0)
            variance = ((wide - mean).square() * share).sum(0)
            self._track(mean.detach(), variance.detach() * total / (total - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (rows.to(scale.dtype) - mean) * scale + self.bias

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1
