"""Maps from above as encodings, and the two-dimensional backbone of SECOND and PointPillars.

Shape legend: B clouds, C channels, H W rows (along y) and columns (along x) of a map, V cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from collimate.configurable import Configurable
from collimate.encoding import Encoding

EPS, MOMENTUM = 1e-3, 0.01  # OpenPCDet, backbones_2d/base_bev_backbone.py


def bev_encoding(bev: Float[Tensor, "B C H W"], occupied: Bool[Tensor, "B H W"] | None = None) -> Encoding:
    """A map as an encoding: its cells are the tokens, row by row, and their mean is pooled.

    Args:
        occupied: which cells hold anything, where empty ones are to be masked; the mean is then of those that do, and 0
            for a cloud that has none.
    """
    tokens = bev.flatten(2).mT
    grid = (bev.shape[2], bev.shape[3])
    if occupied is None:
        return Encoding(tokens.mean(1), tokens, grid=grid)
    mask = occupied.flatten(1)
    total = (tokens * mask[..., None].to(tokens.dtype)).sum(1)
    return Encoding(total / mask.sum(1, keepdim=True).clamp_min(1).to(tokens.dtype), tokens, mask, grid)


def bev_map(encoding: Encoding) -> Float[Tensor, "B C H W"]:
    """The map that `bev_encoding` took, or any other whose tokens lie on a grid of rows and columns.

    Raises:
        ValueError: they lie on no such grid.
    """
    if encoding.tokens is None or encoding.grid is None or len(encoding.grid) != 2 or encoding.prefix:
        raise ValueError("Only tokens on a grid of rows and columns are a map.")
    return encoding.tokens.mT.unflatten(2, encoding.grid)


class BEVBackbone(nn.Module, Configurable):
    """Blocks of 3 x 3 convolutions, each coarser than the last, brought to one size and put side by side.

    open-mmlab/OpenPCDet, pcdet/models/backbones_2d/base_bev_backbone.py (Apache-2.0). Parameters carry the official
    names, and the defaults are those of SECOND on KITTI.

    Args:
        in_channels: C of the map.
        layers: 3 x 3 convolutions of each block, behind its first one.
        strides: of the first convolution of each block.
        widths: channels of each block.
        upsample_strides: how often each block's map is enlarged. Where one is given too many, all maps together are
            enlarged once more by the last.
        upsample_widths: channels of each block's map behind that.

    Raises:
        ValueError: the lists differ in length.
    """

    def __init__(
        self,
        in_channels: int = 256,
        layers: Sequence[int] = (5, 5),
        strides: Sequence[int] = (1, 2),
        widths: Sequence[int] = (128, 256),
        upsample_strides: Sequence[int] = (1, 2),
        upsample_widths: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        if not len(layers) == len(strides) == len(widths) == len(upsample_widths) <= len(upsample_strides):
            raise ValueError(
                "layers, strides, widths, upsample_strides and upsample_widths each say one thing a block."
            )
        self.width = sum(upsample_widths)
        self.strides, self.upsample_strides = tuple(strides), tuple(upsample_strides)
        inputs = (in_channels, *widths[:-1])
        self.blocks = nn.ModuleList(_block(*each) for each in zip(inputs, widths, layers, strides, strict=True))
        self.deblocks = nn.ModuleList(
            _enlarged(*each) for each in zip(widths, upsample_widths, upsample_strides[: len(widths)], strict=True)
        )
        if len(upsample_strides) > len(widths):
            self.deblocks.append(_enlarged(self.width, self.width, upsample_strides[-1]))

    @property
    def stride(self) -> float:
        """Cells of the input's map along one of the output's."""
        once = self.upsample_strides[-1] if len(self.upsample_strides) > len(self.strides) else 1
        return self.strides[0] / self.upsample_strides[0] / once

    def forward(self, bev: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """The maps of all blocks side by side.

        Raises:
            ValueError: rows or columns do not divide by the strides, so that the enlarged maps differ in size.
        """
        maps = []
        given = bev.shape[2:]
        for block, enlarge in zip(self.blocks, self.deblocks, strict=False):
            bev = block(bev)
            maps.append(enlarge(bev))
        if len({tuple(each.shape[2:]) for each in maps}) > 1:
            raise ValueError(
                f"A map of {tuple(given)} cells does not divide by strides of {self.strides}: choose another range."
            )
        joined = torch.cat(maps, 1)
        return self.deblocks[-1](joined) if len(self.deblocks) > len(self.blocks) else joined


def _block(width_in: int, width: int, layers: int, stride: int) -> nn.Sequential:
    convolutions: list[nn.Module] = [nn.ZeroPad2d(1), nn.Conv2d(width_in, width, 3, stride, bias=False), *_act(width)]
    for _ in range(layers):
        convolutions += [nn.Conv2d(width, width, 3, padding=1, bias=False), *_act(width)]
    return nn.Sequential(*convolutions)


def _enlarged(width_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(width_in, width, stride, stride, bias=False), *_act(width))


def _act(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(width, EPS, MOMENTUM), nn.ReLU()
