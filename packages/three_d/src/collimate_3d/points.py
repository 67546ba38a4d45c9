"""Point clouds: one, and several of unequal size side by side.

Positions are float32 metres from an origin that is kept in float64: coordinates of a map projection lose centimetres in
float32. Points that are NaN or infinite are left out where a cloud is made, and counted.

Shape legend: N points of a cloud, P points of all clouds, B clouds, E = B + 1, F features, C = 3 + F channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

Origin = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class PointCloud:
    """The points of one scene, object or sweep. `of` makes one of whatever numbers there are.

    Attributes:
        xyz: (N, 3) float32, metres from `origin`; all finite.
        features: (N, F) float32, such as colours from 0 to 1 or an intensity; NaN where unknown.
        fields: the name of each feature: `red`, `green`, `blue`, `nx`, `ny`, `nz`, `intensity`, or a file's own.
        origin: x, y, z of the frame's origin, in metres; float64.
        frame: what the coordinates refer to, such as `lidar`, `scene` or `object`; "" where unknown.
        left_out: how many points were not finite, and are missing.
    """

    xyz: Float32[np.ndarray, "N 3"]
    features: Float32[np.ndarray, "N F"]
    fields: tuple[str, ...] = ()
    origin: Origin = (0.0, 0.0, 0.0)
    frame: str = ""
    left_out: int = 0

    def __post_init__(self) -> None:
        if self.xyz.ndim != 2 or self.xyz.shape[1] != 3:
            raise ValueError(f"Points are (N, 3): x, y, z; got {self.xyz.shape}.")
        if self.features.shape != (len(self.xyz), len(self.fields)):
            raise ValueError(
                f"Features are {self.features.shape}; for {len(self.xyz)} points with the fields "
                f"{', '.join(self.fields) or 'none'}, ({len(self.xyz)}, {len(self.fields)}) is expected."
            )

    @classmethod
    def of(
        cls,
        xyz: Float[np.ndarray, "N 3"],
        features: Float[np.ndarray, "N F"] | None = None,
        fields: Sequence[str] = (),
        origin: Sequence[float] | None = None,
        frame: str = "",
    ) -> PointCloud:
        """A cloud of numbers of any type, without the points that are not finite.

        Args:
            xyz: in metres, from `origin`.
            features: F of each point.
            fields: their names.
            origin: of the coordinates. If None it is (0, 0, 0), unless float32 would lose more than a millimetre of
                them: then it is the centre of the points, in whole metres.

        Raises:
            ValueError: the arrays have not one row for each point.
        """
        xyz = np.asarray(xyz)
        if xyz.ndim != 2 or xyz.shape[1] != 3:
            raise ValueError(f"Points are (N, 3): x, y, z; got {xyz.shape}.")
        features = np.zeros((len(xyz), 0), np.float32) if features is None else np.asarray(features)
        finite = np.isfinite(xyz).all(1)
        if not finite.all():
            if len(features) == len(xyz):
                features = features[finite]
            xyz = xyz[finite]
        shift = _centre(xyz) if origin is None else (0.0, 0.0, 0.0)
        local = xyz if shift == (0.0, 0.0, 0.0) else xyz - np.asarray(shift)
        x, y, z = shift if origin is None else (float(each) for each in origin)
        return cls(
            np.ascontiguousarray(local, dtype=np.float32),
            np.ascontiguousarray(features, dtype=np.float32),
            tuple(fields),
            (x, y, z),
            frame,
            int((~finite).sum()),
        )

    def __len__(self) -> int:
        """N."""
        return len(self.xyz)

    @property
    def world(self) -> Float64[np.ndarray, "N 3"]:
        """The points in their frame, in float64."""
        return self.xyz.astype(np.float64) + np.asarray(self.origin)

    def channels(self, fields: Sequence[str]) -> Float32[np.ndarray, "N K"]:
        """The features of these names.

        Raises:
            ValueError: the cloud lacks one.
        """
        if missing := [name for name in fields if name not in self.fields]:
            raise ValueError(
                f"The cloud has no {', '.join(missing)}; it has {', '.join(self.fields) or 'no features'}."
            )
        return self.features[:, [self.fields.index(name) for name in fields]]

    def rows(self, index: Int[np.ndarray, " M"] | Bool[np.ndarray, " N"]) -> PointCloud:
        """Some of the points."""
        return replace(self, xyz=self.xyz[index], features=self.features[index])


@dataclass(frozen=True, eq=False)
class PointBatch:
    """The points of several clouds, one behind the other.

    Attributes:
        points: (P, C) float32: x, y, z in metres, then the features.
        cloud: (P,) int64: the cloud of each, ascending.
        ptr: (B + 1,) int64: the first point of each cloud, and P. Clouds may be empty.
        origins: (B, 3) float64: where the origin of each cloud lies.
    """

    points: Float[Tensor, "P C"]
    cloud: Int[Tensor, " P"]
    ptr: Int[Tensor, " E"]
    origins: Float64[Tensor, "B 3"]

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.ptr) - 1

    @property
    def xyz(self) -> Float[Tensor, "P 3"]:
        return self.points[:, :3]

    @classmethod
    def collate(cls, clouds: Sequence[PointCloud]) -> PointBatch:
        """Clouds side by side.

        Raises:
            ValueError: there is none, or they have different fields.
        """
        if not clouds:
            raise ValueError("There is no cloud to collate.")
        if len({cloud.fields for cloud in clouds}) > 1:
            raise ValueError(
                "Clouds of one batch have the same fields; these have "
                + " and ".join(sorted({", ".join(cloud.fields) or "none" for cloud in clouds}))
                + "."
            )
        rows = [np.concatenate([cloud.xyz, cloud.features], 1) for cloud in clouds]
        sizes = torch.tensor([len(cloud) for cloud in clouds])
        origins = torch.tensor([cloud.origin for cloud in clouds], dtype=torch.float64)
        return cls(torch.from_numpy(np.concatenate(rows)), *_laid(sizes), origins)

    @classmethod
    def of_padded(cls, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None) -> PointBatch:
        """The real points of stacked clouds.

        Args:
            inputs: rows that are padding hold NaN, as `SweepProcessor` makes them.
            mask: True where a point is real; where a position is finite, if None.

        Raises:
            ValueError: these are no stacked points.
        """
        if inputs.ndim != 3 or inputs.shape[2] < 3:
            raise ValueError(f"Stacked points are (clouds, points, x y z and features); got {tuple(inputs.shape)}.")
        finite = inputs[..., :3].isfinite().all(-1)
        real = finite if mask is None else finite & mask
        return cls(inputs[real], *_laid(real.sum(1)), inputs.new_zeros(len(inputs), 3, dtype=torch.float64))

    def padded(self, points: int | None = None) -> Float[Tensor, "B N C"]:
        """Stacked clouds, NaN where one has fewer points.

        Args:
            points: N; that of the largest cloud if None.

        Raises:
            ValueError: a cloud has more.
        """
        largest = int(self.ptr.diff().max())
        if points is not None and points < largest:
            raise ValueError(f"A cloud of {largest} points does not fit into {points} rows.")
        stacked = self.points.new_full((self.batch_size, points or largest, self.points.shape[1]), torch.nan)
        stacked[self.cloud, torch.arange(len(self.cloud), device=self.cloud.device) - self.ptr[self.cloud]] = (
            self.points
        )
        return stacked

    def to(self, device: torch.device | str) -> PointBatch:
        """The same on another device."""
        tensors = (self.points, self.cloud, self.ptr, self.origins)
        return PointBatch(*(each.to(device) for each in tensors))


def _laid(sizes: Int[Tensor, " B"]) -> tuple[Int[Tensor, " P"], Int[Tensor, " E"]]:
    """The cloud of each point, and the first point of each cloud."""
    cloud = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    return cloud, torch.nn.functional.pad(sizes.cumsum(0), (1, 0))


def _centre(xyz: np.ndarray) -> Origin:
    """Where to move the origin so that float32 is exact to a millimetre; (0, 0, 0) where it is."""
    exact = 2.0**13  # metres; float32 has 24 bits, and 2^13 / 2^24 m is half a millimetre
    if not len(xyz) or np.abs(xyz).max() < exact or xyz.dtype == np.float32:  # nothing is left to be saved in float32
        return 0.0, 0.0, 0.0
    x, y, z = np.round((xyz.min(0) + xyz.max(0)) / 2).tolist()
    return float(x), float(y), float(z)
