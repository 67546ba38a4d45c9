"""Transformations of sweeps, which come back with what they did: flip, turn, scale and shift, about the sensor.

    p' = T p,    T = shift ∘ scale ∘ turn about z ∘ flip across the x-z plane (y -> -y),

in that order (open-mmlab/OpenPCDet flips, turns and scales in it too). Everything that lies in a sweep's frame follows:
points, boxes, flow, poses, and, between grids, maps seen from above.

Shape legend: N points, M boxes, B maps, C channels, H rows and W columns of a map.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from collimate_3d.boxes import in_range
from collimate_3d.grid import BEVGrid
from collimate_3d.lidar.bev import cell_centres, sample_map

FLIP = torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))


@dataclass(frozen=True)
class Transform:
    """A similarity of space that keeps z upright.

    Attributes:
        flip: whether left and right change places first.
        angle: radians, counter-clockwise about z.
        scale: the factor on all lengths.
        shift: metres along x, y, z.
    """

    flip: bool = False
    angle: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def matrix(self) -> Float64[Tensor, "4 4"]:
        """T, for points with a 1 below them."""
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = self.scale * self._turn()
        matrix[:3, 3] = torch.tensor(self.shift, dtype=torch.float64)
        return matrix

    def points(self, points: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Points with x, y, z first; what else they have stays."""
        matrix = self.matrix.to(points.device)
        moved = points[:, :3].double() @ matrix[:3, :3].T + matrix[:3, 3]
        return torch.cat([moved.to(points.dtype), points[:, 3:]], 1)

    def vectors(self, vectors: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Differences of points, such as flow: they are not shifted."""
        return (vectors.double() @ self.matrix[:3, :3].T.to(vectors.device)).to(vectors.dtype)

    def boxes(self, boxes: Float[Tensor, "M 7"]) -> Float[Tensor, "M 7"]:
        """Boxes turn with the points in them. Headings are not wrapped."""
        heading = (-1 if self.flip else 1) * boxes[:, 6:] + self.angle
        return torch.cat([self.points(boxes[:, :3]), boxes[:, 3:6] * self.scale, heading], 1)

    def pose(self, pose: Float[Tensor, "4 4"]) -> Float64[Tensor, "4 4"]:
        """The pose of the transformed sweep: it leads its points to where they lay in the world. Rigid only where the
        transform is."""
        return pose.double() @ torch.linalg.inv(self.matrix)

    def motion(self, motion: Float[Tensor, "4 4"], following: Transform) -> Float64[Tensor, "4 4"]:
        """What leads from this transformed sweep into the next, which `following` was applied to.

        Args:
            motion: what leads from one into the other before.
        """
        return following.matrix @ motion.double() @ torch.linalg.inv(self.matrix)

    def flow(
        self, flow: Float[Tensor, "N 3"], points: Float[Tensor, "N 3"], following: Transform
    ) -> Float[Tensor, "N 3"]:
        """The flow from this transformed sweep to the next, which `following` was applied to; p' = p + flow.

        Args:
            flow: before, the sensor's motion included.
            points: before.
        """
        return following.points(points + flow) - self.points(points)

    def map(
        self, features: Float[Tensor, "B C H W"], grid: BEVGrid, to: BEVGrid | None = None
    ) -> Float[Tensor, "B C h w"]:
        """A map from above as the transformed sweep would have it: T f, with f the map of the sweep.

        Bilinear, zero beyond the map; exact where T takes cells to cells. Shifts along z leave a map as it is.

        Args:
            grid: of the map.
            to: of the result; the same if None.
        """
        to = to or grid
        centres = cell_centres(to)
        back = self.inverse_points(torch.cat([centres, centres.new_zeros(len(centres), 1)], 1))
        cells = grid.cells_of(back[:, :2]).to(features.device)
        return sample_map(features, cells.expand(len(features), -1, -1)).unflatten(2, to.shape)

    def inverse_points(self, points: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """The way back of `points`."""
        shift = torch.tensor(self.shift, dtype=torch.float64, device=points.device)
        back = (points[:, :3].double() - shift) @ self._turn().to(points.device) / self.scale
        return torch.cat([back.to(points.dtype), points[:, 3:]], 1)

    def inverse_boxes(self, boxes: Float[Tensor, "M 7"]) -> Float[Tensor, "M 7"]:
        """The way back of `boxes`: what a detector found in the transformed sweep, where it lies in the sweep."""
        heading = (-1 if self.flip else 1) * (boxes[:, 6:] - self.angle)
        return torch.cat([self.inverse_points(boxes[:, :3]), boxes[:, 3:6] / self.scale, heading], 1)

    def inverse(self) -> Transform:
        """The transform that undoes this one."""
        angle = self.angle if self.flip else -self.angle  # a turn before a flip is the turn the other way after it
        back = Transform(self.flip, angle, 1 / self.scale)
        x, y, z = (-back.points(torch.tensor([self.shift], dtype=torch.float64))[0]).tolist()
        return Transform(self.flip, angle, 1 / self.scale, (x, y, z))

    def then(self, other: Transform) -> Transform:
        """This one, then another, as one."""
        angle = (-self.angle if other.flip else self.angle) + other.angle
        x, y, z = other.points(torch.tensor([self.shift], dtype=torch.float64))[0].tolist()
        return Transform(self.flip != other.flip, angle, self.scale * other.scale, (x, y, z))

    def _turn(self) -> Float64[Tensor, "3 3"]:
        """Flip, then turn; exact for whole right angles."""
        cosine, sine = (_exact(value) for value in (math.cos(self.angle), math.sin(self.angle)))
        turn = torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], dtype=torch.float64)
        return turn @ FLIP if self.flip else turn


@dataclass(frozen=True)
class TransformChoice:
    """Draws transforms. The defaults are E-SSL3D's (arXiv 2404.11737, section 4).

    Attributes:
        flip: the probability of a flip.
        angle: radians, the largest turn either way.
        scale: the least and the largest factor.
        shift: metres; along each axis between 0 and it.
    """

    flip: float = 0.5
    angle: float = math.pi / 2
    scale: tuple[float, float] = (0.95, 1.05)
    shift: float = 0.2

    def __call__(self) -> Transform:
        """From the global generator, which the loader seeds for each sample."""
        return Transform(
            random.random() < self.flip,
            random.uniform(-self.angle, self.angle),
            random.uniform(*self.scale),
            (random.uniform(0, self.shift), random.uniform(0, self.shift), random.uniform(0, self.shift)),
        )


class Views(NamedTuple):
    """Two views of the same points.

    Attributes:
        first, second: what is left of them in range.
        pairs: places in both of the points that are in both.
    """

    first: Float[Tensor, "n C"]
    second: Float[Tensor, "m C"]
    pairs: Int64[Tensor, "P 2"]


def two_views(
    points: Float[Tensor, "N C"], first: Transform, second: Transform, bounds: tuple[float, ...] | None = None
) -> Views:
    """A sweep under two transforms, whose points are known to belong together, so that nothing is searched.

    Views are cropped AFTER they were transformed: the outline of a crop would turn with the view and give it away.

    Args:
        bounds: x0, y0, z0, x1, y1, z1 in metres; everything if None.
    """
    views = [transform.points(points) for transform in (first, second)]
    kept = [points.new_ones(len(points)).bool() if bounds is None else in_range(view[:, :3], bounds) for view in views]
    both = kept[0] & kept[1]
    places = torch.stack([(each.cumsum(0) - 1)[both] for each in kept], 1)
    return Views(views[0][kept[0]], views[1][kept[1]], places)


def _exact(value: float) -> float:
    """Cosines and sines of right angles without their last bit of error."""
    return round(value) * 1.0 if abs(value - round(value)) < 1e-15 else value
