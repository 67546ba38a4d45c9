"""PointNet++ as VoteNet, ScanRefer, 3DJCG, 3D-VLP and 3D-VisTA have it, parameters under their names.

Qi et al. 2017, arXiv 1706.02413; Qi et al. 2019, VoteNet, arXiv 1904.09664; leolyj/3D-VLP, lib/pointnet2/
pointnet2_modules.py (MIT). The formulas are those of `collimate_3d.pointnet2.plain`, but: points at exactly the radius
are not within; relative positions may be divided by it; points within about 3 cm of the origin are never sampled;
interpolation weighs by distances that are not squared, and carries no gradient to the points; layers have no bias.

Shape legend: B clouds, N points, M centres, K neighbours, C D F channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from collimate_3d.operators import VOTENET_DEAD_ZONE, ball_query, farthest_points, gathered, interpolated
from collimate_3d.pointnet2.shared_mlp import SharedMLP


class VoteSetAbstraction(nn.Module):
    """Groups at one scale, or all points as one group.

    Args:
        samples: M; None for one group of all points around the origin.
        radius: of a group, in the units of the points.
        neighbours: K.
        features: F of the input.
        widths: of the layers; the last one is D.
        normalize_xyz: whether relative positions are divided by the radius.
        pooling: `max`, or `avg`, in which repeated points count as often as they stand there.

    Raises:
        ValueError: the pooling is neither.
    """

    def __init__(
        self,
        samples: int | None,
        radius: float | None,
        neighbours: int | None,
        features: int,
        widths: Sequence[int],
        normalize_xyz: bool = False,
        pooling: Literal["max", "avg"] = "max",
    ) -> None:
        super().__init__()
        if pooling not in ("max", "avg"):
            raise ValueError(f"pooling is 'max' or 'avg', not {pooling!r}.")
        if samples is not None and (radius is None or neighbours is None):
            raise ValueError("Groups around samples need a radius and a number of neighbours.")
        self.samples, self.radius, self.neighbours = samples, radius or 1.0, neighbours or 1
        self.normalize_xyz, self.pooling = normalize_xyz, pooling
        self.mlp_module = SharedMLP([3 + features, *widths])

    def forward(
        self, xyz: Float[Tensor, "B N 3"], features: Float[Tensor, "B N F"] | None
    ) -> tuple[Float[Tensor, "B M 3"], Float[Tensor, "B M D"], Int[Tensor, "B M"]]:
        """The centres, the feature of each, and which points they are.

        Args:
            features: None where F is 0.
        """
        if self.samples is None:
            chosen = torch.zeros(len(xyz), 1, dtype=torch.int64, device=xyz.device)
            rows = xyz if features is None else torch.cat([xyz, features], -1)
            return torch.zeros_like(xyz[:, :1]), self._pooled(rows[:, None]), chosen
        chosen = farthest_points(xyz, self.samples, dead_zone=VOTENET_DEAD_ZONE)
        centres = gathered(xyz, chosen)
        index = ball_query(xyz, centres, self.radius, self.neighbours).index
        rows = gathered(xyz, index) - centres[:, :, None]
        if self.normalize_xyz:
            rows = rows / self.radius
        if features is not None:
            rows = torch.cat([rows, gathered(features, index)], -1)
        return centres, self._pooled(rows), chosen

    def _pooled(self, rows: Float[Tensor, "B M K C"]) -> Float[Tensor, "B M D"]:
        found = self.mlp_module(rows)
        return found.amax(2) if self.pooling == "max" else found.mean(2)


class VoteFeaturePropagation(nn.Module):
    """Features of few points to many.

    Args:
        features: channels of the coarse features and of those that the fine points have, together.
        widths: of the layers; the last one is D.
    """

    def __init__(self, features: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.mlp = SharedMLP([features, *widths])

    def forward(
        self,
        xyz: Float[Tensor, "B N 3"],
        coarse_xyz: Float[Tensor, "B M 3"],
        features: Float[Tensor, "B N F"] | None,
        coarse_features: Float[Tensor, "B M E"],
    ) -> Float[Tensor, "B N D"]:
        """The features of the fine points."""
        rows = interpolated(coarse_features, coarse_xyz, xyz, power=1)
        return self.mlp(rows if features is None else torch.cat([rows, features], -1))
