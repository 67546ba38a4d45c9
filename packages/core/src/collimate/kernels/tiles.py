"""Tiles of a pair matrix, and unit features whose gradient is taken in place.

Shape legend: n queries (rows), m keys (columns), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Keep: TypeAlias = Callable[[slice, slice], Bool[Tensor, "rows columns"] | None]
"""`keep(rows, columns)`: True where a pair takes part, for one tile; None where the whole tile does."""

Factor: TypeAlias = Callable[[slice, slice], Float[Tensor, "rows columns"]]
"""`factor(rows, columns)`: what the logits of one tile are multiplied by; it is not differentiated."""

CPU_TILE = (1024, 1024)  # 4 MiB in float32: smaller is no faster alone, and slower beside busy data workers
GPU_TILE = (4096, 4096)  # large enough to hide the launches


def tiles(
    rows: int, columns: int, like: Tensor, buffers: int
) -> Iterator[tuple[slice, slice, list[Float[Tensor, "rows columns"]]]]:
    """The (rows, columns) slices that cover a pair matrix, each with uninitialised buffers of its shape.

    The buffers are the same memory for every tile: allocating them anew costs a CPU as much in page faults as the
    arithmetic on them.
    """
    height, width = CPU_TILE if like.device.type == "cpu" else GPU_TILE
    memory = like.new_empty(buffers, min(height, rows) * min(width, columns))
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            r, c = slice(row, min(row + height, rows)), slice(column, min(column + width, columns))
            shape = (r.stop - r.start, c.stop - c.start)
            yield r, c, [buffer[: shape[0] * shape[1]].view(shape) for buffer in memory]


def unit(features: Float[Tensor, "n D"], normalize: bool) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n 1"] | None]:
    """Features in float32 (float64 stays), of unit length if `normalize`, and their lengths.

    A zero vector stays zero and gets no gradient, where division by a small epsilon would give it a huge one.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if not normalize:
        return features, None
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    length.masked_fill_(length < 1e-12, torch.inf)  # 1e-12: torch.nn.functional.normalize
    return features / length, length


def unit_backward_(
    gradient: Float[Tensor, "n D"], units: Float[Tensor, "n D"], length: Float[Tensor, "n 1"] | None
) -> Float[Tensor, "n D"]:
    """Turn, in place, the gradient with respect to unit features into the one with respect to the features."""
    if length is None:
        return gradient
    along = torch.linalg.vecdot(gradient, units)[:, None]
    return gradient.addcmul_(units, along, value=-1).div_(length)


def own_cells(
    tile: Shaped[Tensor, "rows columns"], rows: slice, columns: slice, first: int
) -> tuple[Shaped[Tensor, " k"], slice]:
    """The cells of a tile where a query meets its own key, as a view, and their rows.

    Query i's own key is first + i.
    """
    offset = rows.start + first - columns.start
    cells = tile.diagonal(offset)
    start = rows.start + max(0, -offset)
    return cells, slice(start, start + cells.shape[0])
