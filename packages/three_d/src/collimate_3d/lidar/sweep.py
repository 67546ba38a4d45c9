"""Sweeps: what a LiDAR measured in one turn, and how samples hold them.

| key of a sample | holds |
|---|---|
| `sweep.npz` | a sweep, as `encode_sweep` writes it: `points` and, where they are known, `pose`, `time`, `labels`, `instances`, `flow`, `flow_includes_ego` |
| `previous.npz` | the sweep before it, likewise; its `flow` leads to the first |
| `objects.json` | the objects of the sweep (`collimate_3d.lidar.objects`) |
| `calib.json` | the camera that goes with it (`collimate_3d.lidar.calibration`) |

The sensor's frame has x ahead, y to the left, z up, in metres; intensities lie in [0, 1]. Readers see to both.

Shape legend: N points, C values a point.
"""  # noqa: E501

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from collimate.data.decoding import Undecodable, decode_array, register_decoder, register_modality
from collimate_3d.lidar.poses import check_pose

SWEEP, PREVIOUS = "sweep.npz", "previous.npz"
FARTHEST = 1000.0  # ours, in metres: no LiDAR of a car sees as far; what lies beyond was read with the wrong stride


@dataclass(frozen=True)
class Sweep:
    """The points of one turn.

    Attributes:
        points: (N, C) float32: x, y, z in metres, intensity from 0 to 1, and what else the sensor says.
        pose: (4, 4) float64 from the sensor into the world.
        time: seconds.
        labels: the class of each point.
        instances: the object of each point; 0 for none.
        flow: (N, 3) float32, by how many metres each point moves until the next sweep.
        flow_includes_ego: whether the sensor's own motion is in it; see `collimate_3d.lidar.flow`.
        dropped: points that were left out, because their coordinates are not finite.
    """

    points: Float32[np.ndarray, "N C"]
    pose: Float[np.ndarray, "4 4"] | None = None
    time: float | None = None
    labels: Int64[np.ndarray, " N"] | None = None
    instances: Int64[np.ndarray, " N"] | None = None
    flow: Float32[np.ndarray, "N 3"] | None = None
    flow_includes_ego: bool | None = None
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.points)

    @property
    def xyz(self) -> Float32[np.ndarray, "N 3"]:
        return self.points[:, :3]

    def kept(self, chosen: Bool[np.ndarray, " N"]) -> Sweep:
        """Some of the points, with all that belongs to them."""
        columns = {name: getattr(self, name) for name in ("points", *_COLUMNS)}
        return replace(self, **{name: each[chosen] for name, each in columns.items() if each is not None})

    @classmethod
    def checked(cls, points: np.ndarray, **rest: Any) -> Sweep:
        """A sweep of points as they come, without those whose coordinates are not finite.

        Raises:
            Undecodable: there is no point, or they cannot be metres; or a column or pose does not fit.
        """
        if points.ndim != 2 or points.shape[1] < 3:
            raise Undecodable("no points", f"expected (points, values) with x, y, z first; got {points.shape}")
        for name in _COLUMNS:
            if rest.get(name) is not None and len(rest[name]) != len(points):
                raise Undecodable(f"{name} of other points", f"{len(rest[name])} {name} for {len(points)} points")
        if rest.get("pose") is not None:
            try:
                rest["pose"] = check_pose(rest["pose"])
            except ValueError as error:
                raise Undecodable("damaged pose", str(error)) from None
        finite = np.asarray(np.isfinite(points).all(1))
        sweep = cls(np.asarray(points, np.float32), **rest).kept(finite)
        if not len(sweep):
            raise Undecodable("empty sweep", f"none of {len(points)} points has finite coordinates")
        far = float(np.abs(sweep.xyz).max())
        if far > FARTHEST:
            raise Undecodable("points too far", f"{far:.3g} m: are these metres, and {points.shape[1]} values a point?")
        return replace(sweep, dropped=sweep.dropped + int((~finite).sum()))


_COLUMNS = ("labels", "instances", "flow")


def read_points(data: bytes, values: int = 4, full_scale: float = 1.0) -> Float32[np.ndarray, "N C"]:
    """The points of a file of little-endian float32 numbers, as KITTI (4 a point) and nuScenes (5) have them.

    Args:
        values: C; the fourth is the intensity.
        full_scale: the intensity that becomes 1.

    Raises:
        Undecodable: the file ends within a point, or its intensities are of another scale: it has another number of
            values a point.
    """
    if len(data) % (4 * values):
        raise Undecodable("wrong stride", f"{len(data)} bytes are no whole number of points of {values} float32 values")
    points = np.frombuffer(data, "<f4").reshape(-1, values).astype(np.float32)
    intensity = points[:, 3][np.isfinite(points[:, 3])] / full_scale
    if len(intensity) and (intensity.min() < 0 or intensity.max() > 1):
        low, high = float(intensity.min()) * full_scale, float(intensity.max()) * full_scale
        raise Undecodable(
            "wrong stride or scale",
            f"intensities go from {low:.4g} to {high:.4g}, expected 0 to {full_scale:g} at {values} values a point",
        )
    points[:, 3] /= full_scale
    return points


def encode_sweep(sweep: Sweep) -> bytes:
    """A sweep as the bytes of `sweep.npz`: equal bytes for equal sweeps."""
    names = ("points", "pose", "time", *_COLUMNS, "flow_includes_ego", "dropped")
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name in names if (value := getattr(sweep, name)) is not None})
    return buffer.getvalue()


def decode_sweep(data: bytes) -> Sweep:
    """What `encode_sweep` wrote, or any .npz with `points`.

    Raises:
        Undecodable: it has none, or as `Sweep.checked`.
    """
    arrays = decode_array(data)
    if isinstance(arrays, np.ndarray) or "points" not in arrays:
        raise Undecodable("no sweep", "expected an .npz file with an array `points`")
    plain = {"time": float, "flow_includes_ego": bool, "dropped": int}
    known = {name: arrays[name] for name in ("pose", *_COLUMNS) if name in arrays}
    known |= {name: kind(arrays[name]) for name, kind in plain.items() if name in arrays}
    return Sweep.checked(arrays["points"], **known)


register_decoder(decode_sweep, SWEEP, PREVIOUS)
register_modality("sweep", SWEEP)
register_modality("previous_sweep", PREVIOUS)
