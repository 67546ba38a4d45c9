"""PointNet++ as yanx27/Pointnet_Pointnet2_pytorch has it (MIT), parameters under its names.

Qi et al. 2017, arXiv 1706.02413. Set abstraction samples centres c, takes the K first points p_j of the cloud within a
radius of each, and learns a feature of the group; feature propagation carries features back to finer points:

    f(c) = max_j MLP([p_j - c, f_j]),   f(q) = MLP([f_q, sum_k w_k f_k / sum_k w_k]),   w_k = 1 / (|q - p_k|^2 + 1e-8).

What tells this family from VoteNet's: points at exactly the radius are within; relative positions are not divided by
it; the multi-scale form puts features before positions; interpolation weighs by squared distances and carries gradients
to the points; a module that takes all points does not centre them.

One departure: sampling begins with the first point, or with one that is given, instead of a random one, so that the
same cloud has the same features; `PointAugmentation` draws the points, and so their order, anew in training.

Shape legend: B clouds, N points, M centres, K neighbours, F D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from collimate_3d.operators import ball_query, farthest_points, gathered, interpolated
from collimate_3d.pointnet2.shared_mlp import pointwise


class SetAbstraction(nn.Module):
    """Groups at one scale.

    Args:
        samples: M.
        radius: of a group, in the units of the points.
        neighbours: K.
        features: F of the input.
        widths: of the layers; the last one is D.
    """

    def __init__(self, samples: int, radius: float, neighbours: int, features: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.samples, self.radius, self.neighbours = samples, radius, neighbours
        self.mlp_convs, self.mlp_bns = _layers(3 + features, widths, nn.Conv2d)

    def forward(
        self, xyz: Float[Tensor, "B N 3"], features: Float[Tensor, "B N F"] | None, start: int | Int[Tensor, " B"] = 0
    ) -> tuple[Float[Tensor, "B M 3"], Float[Tensor, "B M D"]]:
        """The centres, and the feature of each.

        Args:
            features: None where F is 0.
            start: the point with which sampling begins, in all clouds or in each.
        """
        centres = gathered(xyz, farthest_points(xyz, self.samples, start))
        index = ball_query(xyz, centres, self.radius, self.neighbours, inclusive=True).index
        rows = gathered(xyz, index) - centres[:, :, None]
        if features is not None:
            rows = torch.cat([rows, gathered(features, index)], -1)
        return centres, _through(rows, self.mlp_convs, self.mlp_bns).amax(2)


class MultiScaleSetAbstraction(nn.Module):
    """Groups of several scales around the same centres, their features side by side.

    Args:
        samples: M.
        radii, neighbours, widths: one of each a scale, as of `SetAbstraction`.
        features: F of the input.

    Raises:
        ValueError: they are not equally many.
    """

    def __init__(
        self,
        samples: int,
        radii: Sequence[float],
        neighbours: Sequence[int],
        features: int,
        widths: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        if not len(radii) == len(neighbours) == len(widths):
            raise ValueError(f"Each scale has a radius, a number and widths; got {radii}, {neighbours} and {widths}.")
        self.samples, self.radii, self.neighbours = samples, tuple(radii), tuple(neighbours)
        layers = [_layers(3 + features, each, nn.Conv2d) for each in widths]
        self.conv_blocks = nn.ModuleList(convolutions for convolutions, _ in layers)
        self.bn_blocks = nn.ModuleList(norms for _, norms in layers)

    def forward(
        self, xyz: Float[Tensor, "B N 3"], features: Float[Tensor, "B N F"] | None, start: int | Int[Tensor, " B"] = 0
    ) -> tuple[Float[Tensor, "B M 3"], Float[Tensor, "B M D"]]:
        """The centres, and the feature of each; arguments as of `SetAbstraction`."""
        centres = gathered(xyz, farthest_points(xyz, self.samples, start))
        found = []
        scales = zip(self.radii, self.neighbours, self.conv_blocks, self.bn_blocks, strict=True)
        for radius, neighbours, convolutions, norms in scales:
            index = ball_query(xyz, centres, radius, neighbours, inclusive=True).index
            rows = gathered(xyz, index) - centres[:, :, None]
            if features is not None:
                rows = torch.cat([gathered(features, index), rows], -1)
            found.append(_through(rows, convolutions, norms).amax(2))  # type: ignore[arg-type]
        return centres, torch.cat(found, -1)


class GlobalAbstraction(nn.Module):
    """All points as one group, around the origin.

    Args:
        features: F of the input.
        widths: of the layers; the last one is D.
    """

    def __init__(self, features: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.mlp_convs, self.mlp_bns = _layers(3 + features, widths, nn.Conv2d)

    def forward(
        self, xyz: Float[Tensor, "B N 3"], features: Float[Tensor, "B N F"] | None
    ) -> tuple[Float[Tensor, "B 1 3"], Float[Tensor, "B 1 D"]]:
        """The origin, and the feature of the cloud."""
        rows = xyz if features is None else torch.cat([xyz, features], -1)
        found = _through(rows, self.mlp_convs, self.mlp_bns)
        return torch.zeros_like(xyz[:, :1]), found.amax(1, keepdim=True)


class FeaturePropagation(nn.Module):
    """Features of few points to many.

    Args:
        features: channels of the coarse features and of those that the fine points have, together.
        widths: of the layers; the last one is D.
    """

    def __init__(self, features: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.mlp_convs, self.mlp_bns = _layers(features, widths, nn.Conv1d)

    def forward(
        self,
        xyz: Float[Tensor, "B N 3"],
        coarse_xyz: Float[Tensor, "B M 3"],
        features: Float[Tensor, "B N F"] | None,
        coarse_features: Float[Tensor, "B M E"],
    ) -> Float[Tensor, "B N D"]:
        """The features of the fine points; a single coarse point gives its own to all."""
        if coarse_xyz.shape[1] == 1:
            rows = coarse_features.expand(-1, xyz.shape[1], -1)
        else:
            rows = interpolated(coarse_features, coarse_xyz, xyz)
        if features is not None:
            rows = torch.cat([features, rows], -1)
        return _through(rows, self.mlp_convs, self.mlp_bns)


def _layers(
    width_in: int, widths: Sequence[int], kind: type[nn.Conv1d] | type[nn.Conv2d]
) -> tuple[nn.ModuleList, nn.ModuleList]:
    convolutions = nn.ModuleList(kind(before, width, 1) for before, width in pairwise([width_in, *widths]))
    return convolutions, nn.ModuleList(nn.BatchNorm1d(width) for width in widths)


def _through(rows: Tensor, convolutions: nn.ModuleList, norms: nn.ModuleList) -> Tensor:
    for convolution, norm in zip(convolutions, norms, strict=True):
        rows = pointwise(rows, convolution, norm)
    return rows
