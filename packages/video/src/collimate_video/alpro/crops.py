"""Crops of clips: one box a clip, the same in all frames, whose corners lie between patches.

salesforce/ALPRO, datasets/dataset_pretrain_sparse.py, `random_erase`: the area is a share, uniform in [0.3, 0.5], of
the frame's, height / width is uniform in [0.3, 1 / 0.3], both are rounded down to whole patches, and so is the corner;
draws are repeated until the box lies in the frame.

Shape legend: B clips, T frames, H W pixels, h w rows and columns of patches.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

AREA = (0.3, 0.5)  # least and greatest share of the frame: datasets/dataset_pretrain_sparse.py
RATIO = (0.3, 1 / 0.3)  # least and greatest height / width: as above


def draw_boxes(count: int, grid: tuple[int, int], generator: torch.Generator | None = None) -> Bool[Tensor, "B h w"]:
    """Where boxes lie: True for the patches inside of each.

    Args:
        count: B.
        grid: h, w.
        generator: of the draws, on the CPU; torch's own if None.
    """
    boxes = torch.zeros(count, *grid, dtype=torch.bool)
    for box in boxes:
        top, left, height, width = _draw(grid, generator)
        box[top : top + height, left : left + width] = True
    return boxes


def cropped(clips: Shaped[Tensor, "B T 3 H W"], boxes: Bool[Tensor, "B h w"]) -> Shaped[Tensor, "B T 3 H W"]:
    """The clips with all that lies outside of the boxes set to 0: black, where clips are bytes.

    Raises:
        ValueError: the frames do not divide into so many patches.
    """
    (height, width), grid = clips.shape[-2:], boxes.shape[1:]
    if height % grid[0] or width % grid[1]:
        raise ValueError(f"Frames of {height} x {width} pixels do not divide into {grid[0]} x {grid[1]} patches.")
    inside = boxes.repeat_interleave(height // grid[0], 1).repeat_interleave(width // grid[1], 2)
    return clips * inside[:, None, None].to(clips.dtype)


def _draw(grid: tuple[int, int], generator: torch.Generator | None) -> tuple[int, int, int, int]:
    """Top, left, height, width of a box, in patches."""
    while True:
        share, ratio, y, x = torch.rand(4, generator=generator).tolist()
        area = (AREA[0] + share * (AREA[1] - AREA[0])) * grid[0] * grid[1]
        ratio = RATIO[0] + ratio * (RATIO[1] - RATIO[0])
        height, width = int((area * ratio) ** 0.5), int((area / ratio) ** 0.5)
        top, left = int(y * grid[0]), int(x * grid[1])
        # A frame of one patch has no crop but itself; of few patches some draws have none, and count as outside.
        if grid == (1, 1):
            return 0, 0, 1, 1
        if height and width and top + height <= grid[0] and left + width <= grid[1]:
            return top, left, height, width
