"""BEVContrast (Sautier et al. 2024, arXiv 2310.17281): cells of two sweeps' maps that are one place in the world.

The map of one sweep is warped by the sensor's motion onto the other's grid. Over the cells that are occupied in both,
at most 4096 at random, unit features k_i of the warped and q_i of the other are contrasted in one direction,

    L = - mean_i log ( exp(k_i · q_i / τ) / Σ_j exp(k_i · q_j / τ) ).

Shape legend: B pairs of sweeps, C channels, H rows, W columns, P matched cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from collimate.distributed import LOCAL, Group
from collimate.losses import info_nce
from collimate_3d.grid import BEVGrid
from collimate_3d.lidar.bev import occupied, warp_map


class MatchedCells(NamedTuple):
    """Unit features of cells that are one place, in the order pair, row, column."""

    moved: Float[Tensor, "P C"]
    other: Float[Tensor, "P C"]


def bev_contrast_loss(
    moved: Float[Tensor, "B C H W"],
    other: Float[Tensor, "B C H W"],
    motion: Float[Tensor, "B 4 4"],
    grid: BEVGrid,
    temperature: Float[Tensor, ""] | float = 0.07,
    max_cells: int = 4096,
    occupancies: tuple[Bool[Tensor, "B H W"], Bool[Tensor, "B H W"]] | None = None,
    group: Group = LOCAL,
) -> Float[Tensor, ""]:
    """L; 0, with a graph, where no cell is matched.

    Args:
        moved, other: maps of two sweeps, zero where nothing is.
        motion: what leads from the frame of `other` into that of `moved`.
        grid: of both.
        temperature: τ; 0.07 as published.
        max_cells: of all pairs together; that many are drawn at random.
        occupancies: of both maps, where a cell with something in it may be zero.
        group: the ranks that contrast with each other; each on its own as published.
    """
    cells = matched_cells(moved, other, motion, grid, occupancies)
    chosen = torch.randperm(len(cells.moved), device=moved.device)[:max_cells].sort().values
    return info_nce(cells.moved[chosen], cells.other[chosen], 1 / temperature, normalize=False, group=group)


def matched_cells(
    moved: Float[Tensor, "B C H W"],
    other: Float[Tensor, "B C H W"],
    motion: Float[Tensor, "B 4 4"],
    grid: BEVGrid,
    occupancies: tuple[Bool[Tensor, "B H W"], Bool[Tensor, "B H W"]] | None = None,
) -> MatchedCells:
    """The cells of `other` that are occupied, and in which something of `moved` comes to lie; arguments as above."""
    of_moved, of_other = occupancies or (occupied(moved), occupied(other))
    warped = warp_map(torch.cat([moved, of_moved[:, None].to(moved)], 1), motion, grid)
    both = of_other & (warped[:, -1] != 0)
    return MatchedCells(
        normalize(warped[:, :-1].permute(0, 2, 3, 1)[both], dim=1), normalize(other.permute(0, 2, 3, 1)[both], dim=1)
    )
