"""Sweeps as maps from above: by sparse voxels, by pillars, and either with a two-dimensional backbone behind it.

Shape legend: B clouds, N points of a cloud with padding, P real points, C channels of a point, V voxels, H W rows and
columns of a map, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collimate.encoders import Encoder
from collimate.encoders.base import waves
from collimate.encoding import Encoding
from collimate_3d.bev import BEVBackbone, bev_encoding, bev_map
from collimate_3d.grid import BEVGrid, VoxelGrid
from collimate_3d.operators import Voxelisation, segment_mean, voxelise, voxelise_limited
from collimate_3d.pillars import PILLAR_WIDTHS, PillarFeatures
from collimate_3d.points import PointBatch
from collimate_3d.sparse import Backend, SparseVoxels
from collimate_3d.voxel_backbone import OUT_WIDTH, STRIDE, WIDTHS, Levels, VoxelBackBone8x
from collimate_3d.weights import load_weights, published_weights

OFFICIAL = {"backbone_3d.": "lift.backbone_3d.", "vfe.": "lift.vfe.", "backbone_2d.": "backbone_2d."}
"""OpenPCDet's names, and those of `BEVEncoder`."""


class VoxelEncoder(Encoder):
    """The sparse backbone of SECOND on the means of the points of each voxel.

    Yan, Mao, Li 2018, SECOND (Sensors 18, 3337), in OpenPCDet's form; see `VoxelBackBone8x`. `tokens` are the cells of
    the map from above, layers side by side, `mask` tells which of them hold a voxel, `pooled` is the mean over those.

    Args:
        grid: range and voxels. The network sees one empty layer more above it, as in OpenPCDet.
        channels: C; x, y, z among them.
        max_points: of a voxel, further ones are left out of its mean; all are taken if None.
        max_voxels: of a cloud, those that appear later are left out; all are kept if None. OpenPCDet trains with 16000
            on KITTI, and evaluates with 40000.
        widths, out_width, backend: as of `VoxelBackBone8x`.

    Attributes:
        width: D, which is the number of the last level's channels times its layers.
        bev: where the cells of the map lie.

    Raises:
        ValueError: the grid is too small to be halved so often, or a limit is not positive.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        channels: int = 4,
        max_points: int | None = 5,
        max_voxels: int | None = None,
        widths: Sequence[int] = WIDTHS,
        out_width: int = OUT_WIDTH,
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        self.grid, self.channels = grid, channels
        self.max_points, self.max_voxels = _checked(max_points, max_voxels)
        self.backbone_3d = VoxelBackBone8x(channels, widths, out_width, backend)
        depth, height, width = grid.shape
        self.shape = (depth + 1, height, width)
        layers, rows, columns = self.backbone_3d.out_shape(self.shape)
        self.bev = grid.bev.coarser(STRIDE, (rows, columns))
        self.width = out_width * layers

    def forward(self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None) -> Encoding:
        """Encode sweeps.

        Args:
            inputs: x, y, z in metres and further channels; rows of NaN are padding.
            mask: True where a point is real; where its position is finite, if None.

        Raises:
            ValueError: the points have other channels.
        """
        return self.encoding(self.levels(self.batch(inputs, mask)).out)

    def batch(self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None) -> PointBatch:
        """The real points of stacked sweeps."""
        return PointBatch.of_padded(_checked_points(inputs, self.channels), mask)

    def voxels(self, batch: PointBatch) -> SparseVoxels:
        """The means of the points of each voxel."""
        found = self.voxelised(batch)
        means = segment_mean(batch.points, found.voxel, len(found.coords))
        return SparseVoxels.build(means, found.coords, self.shape, batch.batch_size)

    def voxelised(self, batch: PointBatch) -> Voxelisation:
        """Which points lie in which voxels."""
        return _voxelised(batch, self.grid, self.max_points, self.max_voxels)

    def levels(self, batch: PointBatch) -> Levels:
        """The sparse voxels of every level, for detectors and objectives that read single ones.

        `levels(batch).out.sites.find` tells which voxel lies at which (cloud, z, y, x).
        """
        return self.backbone_3d(self.voxels(batch))

    def encoding(self, voxels: SparseVoxels) -> Encoding:
        """Voxels of the last level as a map from above."""
        _, rows, columns = voxels.shape
        occupied = torch.zeros(voxels.batch_size, rows, columns, dtype=torch.bool, device=voxels.features.device)
        cloud, _, y, x = voxels.coords.long().unbind(1)
        occupied[cloud, y, x] = True
        return bev_encoding(voxels.bev(), occupied)

    def features(
        self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """The map from above after each level, its layers side by side."""
        return [level.bev() for level in self.levels(self.batch(inputs, mask))]

    def example(self) -> Float[Tensor, "B N C"]:
        return _example(self.grid, self.channels)


class PillarEncoder(Encoder):
    """The pillars of PointPillars: a small network on the points of each, its maximum at the pillar's place.

    Lang et al. 2019, arXiv 1812.05784, in OpenPCDet's form; see `PillarFeatures`. `tokens` are the cells of the map
    from above, `mask` tells which of them are pillars, `pooled` is the mean over those.

    Args:
        grid: range and pillars: a grid of one layer.
        channels: C; x, y, z among them.
        max_points: of a pillar; further ones are left out.
        max_pillars: of a cloud, those that appear later are left out; all are kept if None. OpenPCDet trains with 16000
            on KITTI, and evaluates with 40000.
        widths: of the layers of the network; the last one is D.
        with_distance: whether the network sees the distance of each point, too.

    Attributes:
        bev: where the cells of the map lie.

    Raises:
        ValueError: the grid has several layers, or a limit is not positive.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        channels: int = 4,
        max_points: int = 32,  # OpenPCDet, pointpillar.yaml of KITTI
        max_pillars: int | None = None,
        widths: Sequence[int] = PILLAR_WIDTHS,
        with_distance: bool = False,
    ) -> None:
        super().__init__()
        if grid.shape[0] != 1:
            raise ValueError(f"Pillars stand in one layer; the grid has {grid.shape[0]}: make its cells as high as it.")
        self.grid, self.channels = grid, channels
        self.max_points, self.max_pillars = max_points, _checked(max_points, max_pillars)[1]
        self.vfe = PillarFeatures(grid, channels, max_points, widths, with_distance)
        self.width, self.bev = self.vfe.width, grid.bev

    def forward(self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None) -> Encoding:
        """Encode sweeps; arguments as of `VoxelEncoder.forward`."""
        batch = PointBatch.of_padded(_checked_points(inputs, self.channels), mask)
        found = _voxelised(batch, self.grid, self.max_points, self.max_pillars)
        pillars = SparseVoxels.build(self.vfe(batch.points, found), found.coords, self.grid.shape, batch.batch_size)
        occupied = pillars.with_features(torch.ones_like(pillars.features[:, :1])).bev()[:, 0] > 0
        return bev_encoding(pillars.bev(), occupied)

    def example(self) -> Float[Tensor, "B N C"]:
        return _example(self.grid, self.channels)


class BEVEncoder(Encoder):
    """A map from above and the two-dimensional backbone behind it: SECOND with voxels, PointPillars with pillars.

    `tokens` are the cells of the last map, none of them masked, `pooled` is their mean.

    Args:
        lift: a `VoxelEncoder` or a `PillarEncoder`.
        neck: takes as many channels as `lift` is wide; that of SECOND on KITTI if None.

    Attributes:
        bev: where the cells of the map lie.

    Raises:
        ValueError: the neck's output is not of whole cells.
    """

    def __init__(self, lift: VoxelEncoder | PillarEncoder, neck: BEVBackbone | None = None) -> None:
        super().__init__()
        self.lift = lift
        self.backbone_2d = neck or BEVBackbone(lift.width)
        self.width = self.backbone_2d.width
        shape, cell, origin = lift.bev
        stride = self.backbone_2d.stride
        rows, columns = (round(extent / stride) for extent in shape)
        self.bev = BEVGrid((rows, columns), (cell[0] * stride, cell[1] * stride), origin)

    def forward(self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None) -> Encoding:
        """Encode sweeps; arguments as of `VoxelEncoder.forward`."""
        return bev_encoding(self.map(inputs, mask))

    def map(self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, "B D H W"]:
        """The last map, for a head of detection."""
        return self.backbone_2d(bev_map(self.lift(inputs, mask)))

    def example(self) -> Tensor | None:
        return self.lift.example()

    def load_official(self, checkpoint: str | PathLike[str] | Mapping[str, Tensor]) -> None:
        """Take the weights of a detector of OpenPCDet, of which the heads are left out; spconv 1 and 2 alike.

        Raises:
            CheckpointError: the file is damaged, or its network has other sizes.
        """
        load_weights(self, published_weights(checkpoint, OFFICIAL))


def _voxelised(batch: PointBatch, grid: VoxelGrid, max_points: int | None, max_voxels: int | None) -> Voxelisation:
    if max_points is None and max_voxels is None:
        return voxelise(batch.xyz, batch.cloud, grid)
    most = max(1, len(batch.points))
    return voxelise_limited(batch.xyz, batch.cloud, grid, max_points or most, max_voxels or most)


def _checked(max_points: int | None, max_voxels: int | None) -> tuple[int | None, int | None]:
    if (max_points is not None and max_points < 1) or (max_voxels is not None and max_voxels < 1):
        raise ValueError(f"Limits are at least 1, or None; got {max_points} points of {max_voxels} voxels.")
    return max_points, max_voxels


def _checked_points(inputs: Tensor, channels: int) -> Tensor:
    if inputs.ndim != 3 or inputs.shape[2] != channels:
        raise ValueError(
            f"This encoder reads points (clouds, points, {channels}): x, y, z and {channels - 3} features; got "
            f"{tuple(inputs.shape)}."
        )
    return inputs


def _example(grid: VoxelGrid, channels: int) -> Float[Tensor, "B N C"]:
    """Two sweeps of points all over the grid."""
    shares = waves(2, 200, channels)
    low, high = torch.tensor(grid.low), torch.tensor(grid.high)
    xyz = low + (high - low) * (0.5 + 0.49 * shares[..., :3])
    return torch.cat([xyz, 0.5 + 0.5 * shares[..., 3:]], -1)
