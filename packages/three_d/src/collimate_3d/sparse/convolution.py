"""Convolutions of sparse voxels by gathering, multiplying and adding up, in plain torch.

For a kernel w and the pairs (i, o) that meet in its place k,

    y_o = sum_k sum_{(i, o) in k} W_k x_i          (Graham, Engelcke, van der Maaten 2018, arXiv 1711.10275),

where o runs over the input's own sites (submanifold), over the sites whose window holds any input (strided), or over
those that a strided convolution began with (inverse). The backward pass gathers again instead of keeping what was
gathered: memory is that of inputs and outputs, not of pairs.

Weights are stored (D, kz, ky, kx, C), as spconv 2 stores them. Sums are float32 also under autocast, products are then
in half precision. Results are the same in every run, on every device: see `Rulebook`.

Shape legend: V input sites, W output sites, K places of the kernel, C D channels of input and output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from collimate_3d.sparse.sites import Rulebook, Triple, VoxelSites
from collimate_3d.sparse.voxels import SparseVoxels

Backend = Literal["torch", "spconv"]
Extent = int | Sequence[int]
"""one for all axes, or along z, y, x"""


class SparseConvolution(nn.Module):
    """What the three kinds share: a kernel, and the backend that applies it.

    Args:
        in_channels, out_channels: C and D.
        kernel: extent of the kernel.
        bias: whether a bias is added, at the output's sites only.
        backend: `torch`, or `spconv` where that library is installed (the extra of this package), which is faster on
            CUDA.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Extent = 3, bias: bool = False, backend: Backend = "torch"
    ) -> None:
        super().__init__()
        if backend not in ("torch", "spconv"):
            raise ValueError(f"backend is 'torch' or 'spconv', not {backend!r}.")
        self.in_channels, self.out_channels, self.backend = in_channels, out_channels, backend
        self.kernel = _triple(kernel)
        self.weight = nn.Parameter(torch.empty(out_channels, *self.kernel, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform as torch's own convolutions."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel={self.kernel}, backend={self.backend!r}"

    def _applied(self, voxels: SparseVoxels, sites: VoxelSites, rules: Rulebook) -> SparseVoxels:
        features = sparse_convolution(voxels.features, self.weight, rules, len(sites))
        return SparseVoxels(features if self.bias is None else features + self.bias.to(features.dtype), sites)


class SubmanifoldConv3d(SparseConvolution):
    """Outputs are where inputs are, so that what is empty stays empty. Arguments as of `SparseConvolution`."""

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        if self.backend == "spconv":
            from collimate_3d.sparse import spconv_backend

            return spconv_backend.submanifold(self, voxels)
        return self._applied(voxels, voxels.sites, voxels.sites.submanifold(self.kernel))


class SparseConv3d(SparseConvolution):
    """A convolution whose outputs are wherever its window holds an input.

    Args:
        in_channels, out_channels, kernel, bias, backend: as of `SparseConvolution`.
        stride: from one output to the next.
        padding: empty cells around the grid.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Extent = 3,
        stride: Extent = 1,
        padding: Extent = 0,
        bias: bool = False,
        backend: Backend = "torch",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, bias, backend)
        self.stride, self.padding = _triple(stride), _triple(padding)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        if self.backend == "spconv":
            from collimate_3d.sparse import spconv_backend

            return spconv_backend.strided(self, voxels)
        return self._applied(voxels, *voxels.sites.strided(self.kernel, self.stride, self.padding))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}"


class SparseInverseConv3d(SparseConvolution):
    """Back to the sites from which a strided convolution of the same geometry came.

    Args:
        in_channels, out_channels, kernel, bias: as of `SparseConvolution`.
        stride, padding: of the convolution that is undone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Extent = 3,
        stride: Extent = 1,
        padding: Extent = 0,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, bias)
        self.stride, self.padding = _triple(stride), _triple(padding)

    def forward(self, voxels: SparseVoxels, sites: VoxelSites) -> SparseVoxels:
        """Carry features to finer sites.

        Raises:
            ValueError: the voxels do not lie where such a convolution of `sites` ends.
        """
        coarse, rules = sites.strided(self.kernel, self.stride, self.padding)
        if voxels.sites is not coarse and not _same_sites(voxels.sites, coarse):
            raise ValueError(
                f"These {len(voxels)} voxels are not what a convolution of kernel {self.kernel}, stride {self.stride} "
                f"and padding {self.padding} makes of the {len(sites)} sites."
            )
        return self._applied(voxels, sites, rules.reversed())


class SiteNorm(nn.BatchNorm1d):
    """Batch norm over all voxels of a batch, with OpenPCDet's constants.

    A batch with no voxel or one has no variance: in training too, it is normalised by the running statistics.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.01)  # OpenPCDet, backbones_3d/spconv_backbone.py

    def forward(self, input: Float[Tensor, "V C"]) -> Float[Tensor, "V C"]:
        if self.training and len(input) < 2:
            statistics = self.running_mean, self.running_var
            return nn.functional.batch_norm(input, *statistics, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(input)


class SparseSequential(nn.Sequential):
    """Layers one behind the other: sparse ones see voxels, all others the features alone."""

    def forward(self, input: SparseVoxels) -> SparseVoxels:
        for layer in self:
            if isinstance(layer, SparseConvolution | SparseSequential):
                input = layer(input)
            else:
                input = input.with_features(layer(input.features))
        return input


def sparse_convolution(
    features: Float[Tensor, "V C"], weight: Float[Tensor, "D kz ky kx C"], rules: Rulebook, sites: int
) -> Float[Tensor, "W D"]:
    """The formula above.

    Args:
        sites: W.

    Returns:
        In the dtype of the features, or of autocast where it is on.

    Raises:
        ValueError: channels or kernel do not fit.
    """
    if features.shape[1] != weight.shape[-1] or len(rules.counts) != weight[0, ..., 0].numel():
        raise ValueError(
            f"Features of {features.shape[1]} channels and {len(rules.counts)} kernel places do not fit a weight of "
            f"{tuple(weight.shape)} (out, kz, ky, kx, in)."
        )
    kind = features.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        features, weight = features.to(dtype), weight.to(dtype)
    kernels = weight.flatten(1, 3).permute(1, 2, 0).contiguous()
    return _Convolution.apply(features, kernels, rules, sites)  # type: ignore[return-value]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, kernels: Float[Tensor, "K C D"], rules: Rulebook, sites: int) -> Tensor:
        ctx.save_for_backward(features, kernels)
        ctx.rules = rules
        return _summed(features, kernels, rules, sites)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        features, kernels = ctx.saved_tensors
        rules: Rulebook = ctx.rules
        gradient = gradients[0].contiguous()
        to_features = to_kernels = None
        if ctx.needs_input_grad[0]:
            to_features = _summed(gradient, kernels.mT, rules.reversed(), len(features))
        if ctx.needs_input_grad[1]:
            wide = torch.zeros(kernels.shape, dtype=_wide(kernels.dtype), device=kernels.device)
            for place, source, target in _places(rules):
                torch.mm(
                    _rows(features, source).mT.to(wide.dtype), _rows(gradient, target).to(wide.dtype), out=wide[place]
                )
            to_kernels = wide.to(kernels.dtype)
        return to_features, to_kernels, None, None


def _summed(features: Tensor, kernels: Float[Tensor, "K C D"], rules: Rulebook, sites: int) -> Tensor:
    """Products of each place, added up in float32 at least."""
    total = torch.zeros(sites, kernels.shape[2], dtype=_wide(features.dtype), device=features.device)
    for place, source, target in _places(rules):
        product = (_rows(features, source) @ kernels[place]).to(total.dtype)
        if target is None:
            total += product
        else:
            total.index_add_(0, target, product)
    return total.to(features.dtype)


def _places(rules: Rulebook) -> list[tuple[int, Tensor | None, Tensor | None]]:
    """Each place that has pairs, with its sources and targets; None where every site meets itself."""
    pairs = zip(rules.sources.split(rules.counts), rules.targets.split(rules.counts), strict=True)
    return [
        (place, None, None) if place == rules.same else (place, source, target)
        for place, (source, target) in enumerate(pairs)
        if rules.counts[place]
    ]


def _rows(features: Tensor, index: Tensor | None) -> Tensor:
    return features if index is None else features.index_select(0, index)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _same_sites(one: VoxelSites, two: VoxelSites) -> bool:
    return one.shape == two.shape and one.batch_size == two.batch_size and torch.equal(one.keys, two.keys)


def _triple(extent: Extent) -> Triple:
    if isinstance(extent, int):
        return extent, extent, extent
    z, y, x = extent
    return z, y, x
