"""Weights of sparse convolutions in the layouts that published checkpoints have.

spconv 2 keeps (out, kz, ky, kx, in), which is ours; spconv 1 kept (kz, ky, kx, in, out).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from collimate.checkpoints.files import CheckpointError
from collimate_3d.sparse.convolution import SparseConvolution


def fitted_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's weights in the layout of the network's sparse convolutions; all others as they are.

    Where a kernel's shape fits both layouts (as of 3 channels to 3 by a kernel of 3) it counts as spconv 2's, unless
    another kernel of the checkpoint fits spconv 1's alone.

    Raises:
        CheckpointError: a kernel fits neither layout.
    """
    shapes = {
        f"{name}.weight": tuple(layer.weight.shape)
        for name, layer in network.named_modules()
        if isinstance(layer, SparseConvolution)
    }
    kernels = {name: weights[name] for name in shapes if name in weights}
    old = any(tuple(each.shape) != shapes[name] for name, each in kernels.items())
    found = dict(weights)
    for name, kernel in kernels.items():
        found[name] = kernel.permute(4, 0, 1, 2, 3).contiguous() if old and kernel.ndim == 5 else kernel
        if tuple(found[name].shape) != shapes[name]:
            raise CheckpointError(
                f"{name} is {tuple(kernel.shape)}: expected {shapes[name]} (out, kz, ky, kx, in; spconv 2), or "
                "the same as (kz, ky, kx, in, out; spconv 1). The network has other widths than the checkpoint."
            )
    return found
