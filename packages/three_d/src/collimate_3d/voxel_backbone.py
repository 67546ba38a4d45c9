"""The sparse backbone of SECOND and Voxel R-CNN, as OpenPCDet has it.

open-mmlab/OpenPCDet, pcdet/models/backbones_3d/spconv_backbone.py (Apache-2.0): every convolution is without bias, then
batch norm, then ReLU. From the means of the points of each voxel:

    submanifold w1, w1 | stride 2: w2, w2, w2 | stride 2: w3, w3, w3 | stride 2: w4, w4, w4 | kernel (3, 1, 1): w

The third stride pads y and x alone, and the last one is (2, 1, 1). Parameters carry the official names.

Shape legend: V voxels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from collimate_3d.sparse import (
    Backend,
    SiteNorm,
    SparseConv3d,
    SparseConvolution,
    SparseSequential,
    SparseVoxels,
    SubmanifoldConv3d,
    strided_shape,
)
from collimate_3d.sparse.sites import Triple

WIDTHS = (16, 32, 64, 64)  # OpenPCDet, as of SECOND on KITTI
OUT_WIDTH = 128  # OpenPCDet
STRIDE = 8
"""Voxels along x and y in one of the last level."""


class Levels(NamedTuple):
    """What the backbone makes of a batch, from fine to coarse; a voxel of `conv1` is one of the input."""

    conv1: SparseVoxels
    conv2: SparseVoxels
    conv3: SparseVoxels
    conv4: SparseVoxels
    out: SparseVoxels


class VoxelBackBone8x(nn.Module):
    """Sparse voxels to sparse voxels eight times as long and wide, and sixteen times as high.

    Args:
        in_channels: C of the input.
        widths: channels of the four levels.
        out_width: channels of the last one.
        backend: of the convolutions; see `SparseConvolution`.
    """

    def __init__(
        self,
        in_channels: int = 4,
        widths: Sequence[int] = WIDTHS,
        out_width: int = OUT_WIDTH,
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.out_width = out_width
        self.conv_input = _layer(SubmanifoldConv3d(in_channels, first, backend=backend))
        self.conv1 = SparseSequential(_layer(SubmanifoldConv3d(first, first, backend=backend)))
        self.conv2 = _level(first, second, 1, backend)
        self.conv3 = _level(second, third, 1, backend)
        self.conv4 = _level(third, fourth, (0, 1, 1), backend)
        self.conv_out = _layer(SparseConv3d(fourth, out_width, (3, 1, 1), (2, 1, 1), backend=backend))

    def forward(self, voxels: SparseVoxels) -> Levels:
        """All levels.

        Raises:
            ValueError: the grid is too small to be halved so often: it has at least 25 cells along z, and one along y
                and x.
        """
        conv1 = self.conv1(self.conv_input(voxels))
        conv2 = self.conv2(conv1)
        conv3 = self.conv3(conv2)
        conv4 = self.conv4(conv3)
        return Levels(conv1, conv2, conv3, conv4, self.conv_out(conv4))

    def out_shape(self, shape: Triple) -> Triple:
        """Extent of the last level's grid (z, y, x) for an input of this one.

        Raises:
            ValueError: it is too small.
        """
        for level in (self.conv2, self.conv3, self.conv4, self.conv_out):
            layer = next(each for each in level.modules() if isinstance(each, SparseConv3d))
            shape = strided_shape(shape, layer.kernel, layer.stride, layer.padding)
        return shape


def _layer(convolution: SparseConvolution) -> SparseSequential:
    return SparseSequential(convolution, SiteNorm(convolution.out_channels), nn.ReLU())


def _level(width_in: int, width: int, padding: int | Triple, backend: Backend) -> SparseSequential:
    return SparseSequential(
        _layer(SparseConv3d(width_in, width, 3, 2, padding, backend=backend)),
        _layer(SubmanifoldConv3d(width, width, backend=backend)),
        _layer(SubmanifoldConv3d(width, width, backend=backend)),
    )
