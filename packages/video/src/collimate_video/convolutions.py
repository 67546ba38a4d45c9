"""A few 3-D convolutions: a small tower that sees motion from random weights, for demos, tests and claims.

As C3D (Tran et al. 2015, arXiv 1412.0767), small: each layer is a convolution in space and time with a batch norm and
a ReLU. It reads six channels, each brought to one scale by a batch norm: the frames, and what has changed since the
frame before, as in temporal segment networks (Wang et al. 2016, arXiv 1608.00859, section 3.2, RGB difference). Of what
random filters see in frames nearly all is the colours that stay, and motions are found only after thousands of steps.

Shape legend: B clips, T frames, H W pixels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate.encoders import Encoder
from collimate.encoders.base import waves
from collimate.encoding import Encoding


class Convolutions3d(Encoder):
    """`pooled` is the mean of `tokens`, which lie on the grid (time, height, width) that the strides leave.

    Clips of any size are taken; sides that a stride does not divide are rounded up.

    Args:
        widths: of the layers; the last is D.
        strides: of the layers, in time and space alike.
        kernels: of the layers, odd.
        frames, image_size: of the example that exports are traced with.

    Raises:
        ValueError: the layers are not equally many, or a kernel is even.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 64),
        strides: Sequence[int] = (2, 2, 2, 1),
        kernels: Sequence[int] = (5, 3, 3, 3),
        frames: int = 16,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        if not len(widths) == len(strides) == len(kernels) or not all(kernel % 2 for kernel in kernels):
            raise ValueError(
                f"Widths, strides and odd kernels are one a layer; got {[*widths]}, {[*strides]} and {[*kernels]}."
            )
        self.width, self.frames, self.image_size = widths[-1], frames, image_size
        layers: list[nn.Module] = [nn.BatchNorm3d(6, affine=False)]  # so that no gradient goes back to the pixels
        for before, after, kernel, stride in zip((6, *widths), widths, kernels, strides, strict=False):
            convolution = nn.Conv3d(before, after, kernel, stride, kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm3d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Float[Tensor, "B T 3 H W"], mask: Tensor | None = None) -> Encoding:
        """Encode a batch of clips.

        Raises:
            ValueError: these are no clips.
        """
        if inputs.ndim != 5 or inputs.shape[2] != 3:
            raise ValueError(f"Clips are (batch, frames, 3, height, width); got {tuple(inputs.shape)}.")
        changes = torch.diff(inputs, dim=1, prepend=inputs[:, :1])
        maps = self.layers(torch.cat([inputs, changes], 2).transpose(1, 2))
        tokens = maps.flatten(2).mT
        return Encoding(tokens.mean(1), tokens, grid=tuple(maps.shape[2:]))

    def example(self) -> Float[Tensor, "B T 3 H W"]:
        return waves(2, self.frames, 3, self.image_size, self.image_size)
