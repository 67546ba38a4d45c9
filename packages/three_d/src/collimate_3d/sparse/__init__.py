"""Sparse voxels, their convolutions in plain torch, and the weights of published networks."""

from collimate_3d.sparse.convolution import (
    Backend,
    SiteNorm,
    SparseConv3d,
    SparseConvolution,
    SparseInverseConv3d,
    SparseSequential,
    SubmanifoldConv3d,
    sparse_convolution,
)
from collimate_3d.sparse.sites import Rulebook, VoxelSites, strided_shape
from collimate_3d.sparse.voxels import SparseVoxels
from collimate_3d.sparse.weights import fitted_weights

__all__ = [
    "Backend",
    "Rulebook",
    "SiteNorm",
    "SparseConv3d",
    "SparseConvolution",
    "SparseInverseConv3d",
    "SparseSequential",
    "SparseVoxels",
    "SubmanifoldConv3d",
    "VoxelSites",
    "fitted_weights",
    "sparse_convolution",
    "strided_shape",
]
