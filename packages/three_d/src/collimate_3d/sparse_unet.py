"""A U-Net on sparse voxels: a feature for each point of rooms and objects of any size.

After Graham, Engelcke, van der Maaten 2018, arXiv 1711.10275, section 4: submanifold blocks at each resolution, halved
by a convolution of kernel and stride 2, brought back by its inverse to the very same sites, and joined with what was
there. Blocks are residual, as in what followed it (PointContrast's Res16UNet).

Shape legend: B clouds, N points of a cloud with padding, C channels of a point, V voxels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from collimate.encoders import Encoder
from collimate.encoders.base import waves
from collimate.encoding import Encoding
from collimate_3d.operators import segment_mean, voxelise_unbounded
from collimate_3d.points import PointBatch
from collimate_3d.sparse import (
    Backend,
    SiteNorm,
    SparseConv3d,
    SparseInverseConv3d,
    SparseSequential,
    SparseVoxels,
    SubmanifoldConv3d,
)


class SparseUNet(Encoder):
    """Point clouds to a feature of each point.

    A voxel enters as 1, the mean of where its points lie in it (from -1/2 to 1/2), and the means of their features:
    moved by whole cells, a cloud is encoded alike. `tokens` are the points in their order, each with the feature of its
    voxel, `mask` tells which are real; `pooled` is the mean over voxels, 0 for an empty cloud.

    Args:
        channels: C; x, y, z in metres among them.
        cell: side of a voxel in metres.
        widths: of the levels, from fine to coarse; the first is D.
        blocks: residual blocks of each level, down and up.
        backend: of the convolutions; see `SparseConvolution`.

    Raises:
        ValueError: there is no level, or no extent.
    """

    def __init__(
        self,
        channels: int = 6,
        cell: float = 0.02,  # PointGroup and others on ScanNet
        widths: Sequence[int] = (16, 32, 48, 64, 80),
        blocks: int = 2,
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        if cell <= 0 or not widths or channels < 3:
            raise ValueError(f"A U-Net needs a level, x, y, z and a cell; got {widths}, {channels} and {cell:g} m.")
        self.channels, self.cell, self.width = channels, cell, widths[0]
        self.stem = SubmanifoldConv3d(channels + 1, widths[0], backend=backend)
        self.down = nn.ModuleList(_blocks(width, width, blocks, backend) for width in widths)
        steps = list(pairwise(widths))
        self.halve = nn.ModuleList(
            _step(SparseConv3d(fine, coarse, 2, 2, 1, backend=backend)) for fine, coarse in steps
        )
        self.rise = nn.ModuleList(SparseInverseConv3d(coarse, fine, 2, 2, 1) for fine, coarse in steps)
        self.up = nn.ModuleList(_blocks(2 * fine, fine, blocks, backend) for fine, _ in steps)
        self.norm = SiteNorm(self.width)

    def forward(self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None) -> Encoding:
        """Encode point clouds.

        Args:
            inputs: x, y, z in metres and features; rows of NaN are padding.
            mask: True where a point is real; where its position is finite, if None.

        Raises:
            ValueError: the points have other channels, or lie too far apart for voxels of this size.
        """
        if inputs.ndim != 3 or inputs.shape[2] != self.channels:
            raise ValueError(f"Expected points (clouds, points, {self.channels}); got {tuple(inputs.shape)}.")
        batch = PointBatch.of_padded(inputs, mask)
        voxels, voxel = self.voxels(batch)
        found = self.levels(voxels)[0]
        real = inputs[..., :3].isfinite().all(-1) if mask is None else inputs[..., :3].isfinite().all(-1) & mask
        tokens = found.features.new_zeros(*real.shape, self.width).masked_scatter(
            real[..., None], found.features[voxel]
        )
        return Encoding(found.means(), tokens, real)

    def voxels(self, batch: PointBatch) -> tuple[SparseVoxels, Tensor]:
        """The voxels that enter, and which of them each point lies in, int64 (P,)."""
        found, shape = voxelise_unbounded(batch.xyz, batch.cloud, batch.batch_size, self.cell)
        places = batch.xyz / self.cell
        rows = torch.cat([torch.ones_like(places[:, :1]), places - places.floor() - 0.5, batch.points[:, 3:]], 1)
        means = segment_mean(rows, found.voxel, len(found.coords))
        return SparseVoxels.build(means, found.coords, shape, batch.batch_size), found.voxel

    def levels(self, voxels: SparseVoxels) -> list[SparseVoxels]:
        """The voxels of every level on the way up, from fine to coarse, for objectives that read several."""
        voxels = self.stem(voxels)
        passed = []
        for depth, blocks in enumerate(self.down):
            voxels = blocks(voxels)
            passed.append(voxels)
            if depth < len(self.halve):
                voxels = self.halve[depth](voxels)
        for depth in reversed(range(len(self.up))):
            fine = passed[depth]
            risen = self.rise[depth](voxels, fine.sites)
            voxels = self.up[depth](fine.with_features(torch.cat([fine.features, risen.features], 1)))
            passed[depth] = voxels
        passed[0] = passed[0].with_features(self.norm(passed[0].features).relu())
        return passed

    def features(
        self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None
    ) -> list[Float[Tensor, "B _"]]:
        """The mean over the voxels of each level, from fine to coarse."""
        return [level.means() for level in self.levels(self.voxels(PointBatch.of_padded(inputs, mask))[0])]

    def example(self) -> Float[Tensor, "B N C"]:
        shares = waves(2, 100, self.channels)
        return torch.cat([shares[..., :3] * 10 * self.cell, shares[..., 3:]], -1)


class ResidualBlock(nn.Module):
    """Two submanifold convolutions beside a shortcut, norm and ReLU before each.

    Args:
        width_in, width: channels; where they differ, the shortcut is a matrix.
        backend: of the convolutions.
    """

    def __init__(self, width_in: int, width: int, backend: Backend = "torch") -> None:
        super().__init__()
        self.shortcut = nn.Identity() if width_in == width else nn.Linear(width_in, width, bias=False)
        self.convolutions = SparseSequential(
            SiteNorm(width_in),
            nn.ReLU(),
            SubmanifoldConv3d(width_in, width, backend=backend),
            SiteNorm(width),
            nn.ReLU(),
            SubmanifoldConv3d(width, width, backend=backend),
        )

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        return voxels.with_features(self.convolutions(voxels).features + self.shortcut(voxels.features))


def _blocks(width_in: int, width: int, count: int, backend: Backend) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width_in if i == 0 else width, width, backend) for i in range(count)))


def _step(convolution: SparseConv3d) -> SparseSequential:
    return SparseSequential(SiteNorm(convolution.in_channels), nn.ReLU(), convolution)
