"""The same convolutions by spconv (github.com/traveller59/spconv, Apache-2.0), where it is installed.

Weights lie as they do in spconv 2, and outputs are brought into the order of sites, so that either backend can stand in
for the other in the middle of a network. spconv's own pairs of sites are kept with the sites, for submanifold layers.

Its CPU build (2.3.8) computes forward alone where there is no CUDA driver: train with `backend="torch"` there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from collimate_3d.sparse.sites import VoxelSites, keys_of, strided_shape
from collimate_3d.sparse.voxels import SparseVoxels

if TYPE_CHECKING:
    from collimate_3d.sparse.convolution import SparseConv3d, SubmanifoldConv3d

CACHE = "spconv"


def submanifold(layer: SubmanifoldConv3d, voxels: SparseVoxels) -> SparseVoxels:
    """What `SubmanifoldConv3d` does.

    Raises:
        ModuleNotFoundError: spconv is not installed; says how.
    """
    key = "x".join(map(str, layer.kernel))
    padding = [extent // 2 for extent in layer.kernel]
    convolution = _base(layer, padding=padding, subm=True, indice_key=key)
    found = _run(convolution, layer, voxels, voxels.sites.caches.setdefault(CACHE, {}))
    voxels.sites.caches[CACHE] = found.indice_dict
    return _with_bias(layer, found.features, voxels.sites)


def strided(layer: SparseConv3d, voxels: SparseVoxels) -> SparseVoxels:
    """What `SparseConv3d` does.

    Raises:
        ModuleNotFoundError: spconv is not installed; says how.
    """
    convolution = _base(layer, stride=list(layer.stride), padding=list(layer.padding))
    found = _run(convolution, layer, voxels, {})
    shape = strided_shape(voxels.shape, layer.kernel, layer.stride, layer.padding)
    keys, order = keys_of(found.indices, shape, voxels.batch_size).sort()
    key = f"{CACHE} {layer.kernel} {layer.stride} {layer.padding}"
    sites = voxels.sites.caches.setdefault(key, VoxelSites(keys, shape, voxels.batch_size))
    return _with_bias(layer, found.features[order], sites)


def _base(layer: Any, **geometry: Any) -> Any:
    """spconv's convolution without weights of its own."""
    try:
        from spconv.pytorch.conv import SparseConvolutionBase  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "backend='spconv' needs spconv: install `collimate-3d[spconv]` for a CPU, or spconv-cu120, -cu124 or "
            "-cu126 for CUDA; or build the encoder with backend='torch'."
        ) from error
    return SparseConvolutionBase(3, layer.in_channels, layer.out_channels, list(layer.kernel), bias=False, **geometry)


def _run(convolution: Any, layer: Any, voxels: SparseVoxels, known: dict[str, Any]) -> Any:
    from spconv.pytorch.core import SparseConvTensor  # type: ignore[import-not-found]

    tensor = SparseConvTensor(
        voxels.features.contiguous(), voxels.coords, list(voxels.shape), voxels.batch_size, indice_dict=known
    )
    return convolution._conv_forward(torch.is_grad_enabled(), tensor, layer.weight, None)


def _with_bias(layer: Any, features: torch.Tensor, sites: VoxelSites) -> SparseVoxels:
    return SparseVoxels(features if layer.bias is None else features + layer.bias.to(features.dtype), sites)
