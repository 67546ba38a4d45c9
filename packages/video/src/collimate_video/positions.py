"""Learned positions of places and of frames, for clips of other sizes than they were learned for.

Shape legend: N positions of the table, T frames, P places of a frame, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

Resize = Literal["nearest", "bicubic"]


def resized_positions(
    table: Float[Tensor, "1 1+N D"], size: tuple[int, int], mode: Resize = "nearest"
) -> Float[Tensor, "1 1+P D"]:
    """Positions of a square of places, for `size` rows and columns of them; that of the class token, first, is kept.

    As officially, a table of as many places is kept as it is, even if their rectangle is another.
    """
    if table.shape[1] == 1 + size[0] * size[1]:
        return table
    side = round((table.shape[1] - 1) ** 0.5)
    square = table[:, 1:].mT.unflatten(-1, (side, side))
    smooth: dict[str, Any] = {} if mode == "nearest" else {"antialias": True, "align_corners": False}
    return torch.cat([table[:, :1], interpolate(square, size, mode=mode, **smooth).flatten(2).mT], 1)


def resized_times(table: Float[Tensor, "1 N D"], frames: int) -> Float[Tensor, "1 T D"]:
    """Positions in time for `frames` of them: each takes the nearest."""
    return table if table.shape[1] == frames else interpolate(table.mT, frames, mode="nearest").mT
