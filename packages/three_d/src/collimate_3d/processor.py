"""Clouds of any size to so many points, and their training transform.

Shape legend: N points of a cloud, n points of the result, C = 3 + K channels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from collimate.data import Augmentation
from collimate.processing import Processor
from collimate_3d.formats.columns import COLOURS, NORMALS
from collimate_3d.points import PointCloud
from collimate_3d.reading import RawPoints, read_points

HEIGHT = "height"
FLOOR = 0.99  # VoteNet: the floor lies at this percentile of z
SEED = 0


class PointProcessor(Processor):
    """Some points of each cloud: x, y, z and the features that are named.

    Of a cloud that has more, always the same ones are taken, chosen without order; of one that has fewer, all, and some
    of them again.

    Args:
        points: n.
        fields: which features: `red`, `green`, `blue` (from -1 to 1, as 3D-VisTA has them), `nx`, `ny`, `nz`,
            `intensity`, any other that the clouds have, or `height` in metres above the floor. What is unknown (NaN) is
            0.
        unit: whether a cloud is moved to its mean and divided by its largest distance from there, for objects. Rooms
            stay as they are, in metres.

    Raises:
        ValueError: no point is wanted.
    """

    modality = "points"

    def __init__(self, points: int = 1024, fields: Sequence[str] = (), unit: bool = True) -> None:
        if points < 1:
            raise ValueError(f"A cloud has at least one point, not {points}.")
        self.points, self.fields, self.unit = points, tuple(fields), unit

    def __call__(self, raw: RawPoints) -> Float32[Tensor, "n C"]:
        """One cloud.

        Args:
            raw: a `PointCloud`, an array (N, 3 + F), arrays by name, the bytes of a file or its path.

        Raises:
            Undecodable: it is damaged, empty, or no cloud.
            ValueError: it lacks a feature.
        """
        cloud = read_points(raw)
        order = np.random.default_rng(SEED).permutation(max(self.points, len(cloud)))
        return self.rows(cloud, order[: self.points] % len(cloud))

    def rows(self, cloud: PointCloud, chosen: Int[np.ndarray, " n"]) -> Float32[Tensor, "n C"]:
        """These points of a cloud; centre, extent and floor are those of all."""
        xyz = cloud.xyz
        features = [self._feature(cloud, name)[chosen] for name in self.fields]
        if self.unit:
            xyz = xyz - xyz.mean(0)
            xyz = xyz / (float(np.linalg.norm(xyz, axis=1).max()) or 1.0)
        return torch.from_numpy(np.column_stack([xyz[chosen], *features]).astype(np.float32))

    def shaped(self, shape: int) -> PointProcessor:
        """The same for another number of points."""
        return self.changed(points=shape)

    def example(self) -> PointCloud:
        turn = np.arange(200) * 0.1
        xyz = np.stack([np.cos(turn), np.sin(2 * turn), turn / 20], 1)
        fields = tuple(name for name in self.fields if name != HEIGHT)
        features = (
            np.stack([np.sin(turn * (place + 1)) / 2 + 0.5 for place in range(len(fields))], 1) if fields else None
        )
        return PointCloud.of(xyz, features, fields)

    def _feature(self, cloud: PointCloud, name: str) -> Float32[np.ndarray, " N"]:
        if name == HEIGHT and HEIGHT not in cloud.fields:
            return cloud.xyz[:, 2] - np.percentile(cloud.xyz[:, 2], FLOOR)
        values = np.nan_to_num(cloud.channels([name])[:, 0], nan=0.5 if name in COLOURS else 0.0)
        return 2 * values - 1 if name in COLOURS else values


class PointAugmentation(Augmentation):
    """Other points of each cloud each time, turned, mirrored, scaled, moved and shaken; normals turn with them.

    Sentences that say left and right speak against mirroring and large turns.

    Args:
        turn: largest angle about z, in degrees. 180 turns at will.
        tilt: largest angle about x and y, in degrees. 3D-VLP tilts rooms by 5.
        flip: probability of mirroring x, and again y. 3D-VLP: 0.3.
        scale: least and greatest factor.
        shift: largest displacement along each axis, in the units of the processor's points.
        jitter: standard deviation of the noise of each point, cut off at five times it, in the same units.
        drop: the largest share of points that are given up for copies of the first one; PointNet++: 0.875.
        grey: probability that colours are given up: all of them become 0.

    Raises:
        ValueError: a probability, share or factor cannot be one.
    """

    def __init__(
        self,
        turn: float = 180.0,
        tilt: float = 0.0,
        flip: float = 0.0,
        scale: tuple[float, float] = (0.9, 1.1),
        shift: float = 0.0,
        jitter: float = 0.0,
        drop: float = 0.0,
        grey: float = 0.0,
    ) -> None:
        if not all(0 <= each <= 1 for each in (flip, drop, grey)) or not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f"flip, drop and grey lie in [0, 1], scale is positive; got {flip}, {drop}, {grey}, {scale}."
            )
        self.turn, self.tilt, self.flip, self.scale = turn, tilt, flip, tuple(scale)
        self.shift, self.jitter, self.drop, self.grey = shift, jitter, drop, grey

    def __call__(self, raw: RawPoints, processor: PointProcessor) -> Float[Tensor, "n C"]:
        """One cloud, in the number of points and with the features of the processor."""
        cloud = read_points(raw)
        order = torch.randperm(max(processor.points, len(cloud))).numpy()
        rows = processor.rows(cloud, order[: processor.points] % len(cloud))
        move = self._move()
        rows[:, :3] = rows[:, :3] @ (move * random.uniform(*self.scale)).T
        if set(NORMALS) <= set(processor.fields):
            columns = [3 + processor.fields.index(name) for name in NORMALS]
            rows[:, columns] = rows[:, columns] @ move.T
        rows[:, :3] += torch.empty(3).uniform_(-self.shift, self.shift) if self.shift else 0.0
        if self.jitter:
            rows[:, :3] += (torch.randn(len(rows), 3).clamp_(-5, 5)) * self.jitter
        return self._thinned(rows, processor)

    def _move(self) -> Float[Tensor, "3 3"]:
        """Mirroring, then turns about x, y and z."""
        move = torch.diag(torch.tensor([-1.0 if random.random() < self.flip else 1.0 for _ in range(2)] + [1.0]))
        for axis, largest in ((0, self.tilt), (1, self.tilt), (2, self.turn)):
            angle = math.radians(random.uniform(-largest, largest))
            first, second = [other for other in range(3) if other != axis]
            turn = torch.eye(3)
            turn[first, first] = turn[second, second] = math.cos(angle)
            turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
            move = turn @ move
        return move

    def _thinned(self, rows: Tensor, processor: PointProcessor) -> Tensor:
        if self.drop:
            rows = torch.where(torch.rand(len(rows), 1) < random.uniform(0, self.drop), rows[:1], rows)
        if self.grey and random.random() < self.grey:
            columns = [3 + place for place, name in enumerate(processor.fields) if name in COLOURS]
            rows[:, columns] = 0.0
        return rows
