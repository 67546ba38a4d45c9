"""Sweeps as tensors: stacked side by side, with what was done to them and where they were taken.

A stacked sweep is (N, C): its points, then rows of NaN, so that encoders of points need know nothing of what else is in
it. The last `MARKS` rows have no position either, but numbers in their fourth column: the transform that a view came
by, and the pose of the sensor. `unpacked_sweeps` takes a batch apart. A point has the same row in every view of its
sweep, so that rows are the correspondence; what lies beyond an encoder's range is left to the encoder.

Shape legend: B sweeps, N rows, C values a point, P points at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from collimate.data.decoding import Undecodable, register_modality
from collimate.data.preparation import Augmentation
from collimate.encoders.base import waves
from collimate.evaluation.modalities import Exhibit, Manner, register_evaluation
from collimate.processing import Processor
from collimate_3d.lidar.flow import check_flow
from collimate_3d.lidar.pictures import picture_from_above
from collimate_3d.lidar.sweep import SWEEP, Sweep
from collimate_3d.lidar.transforms import Transform, TransformChoice

TRANSFORM, POSE = (
    6,
    32,
)  # numbers of a transform; of a pose, in two float32 parts each, for places in the world are large
MARKS = TRANSFORM + POSE + 1  # and whether a flow includes the sensor's own motion
MARKED = 3  # the column they stand in

register_modality("lidar", SWEEP)


def show_sweep(raw: Any) -> Exhibit:
    """A sweep from above."""
    return Exhibit(picture_from_above(raw.xyz))


register_evaluation("lidar", Manner(show=show_sweep))


@dataclass(frozen=True)
class StackedSweeps:
    """A batch of sweeps.

    Attributes:
        points: x, y, z in metres after the transform, intensity, and what else there is; NaN where there is no point.
        transforms: what was done to each.
        poses: of the sensor, before the transform; NaN where it is not known.
        flow_includes_ego: whether the flow of each, where it has one, includes the sensor's own motion.
    """

    points: Float[Tensor, "B P C"]
    transforms: list[Transform]
    poses: Float64[Tensor, "B 4 4"]
    flow_includes_ego: Bool[Tensor, " B"]

    def motion_to(self, other: StackedSweeps) -> Float64[Tensor, "B 4 4"]:
        """What leads from each sweep into another one of the same world that stands still, both before transforms.

        Raises:
            ValueError: the pose of a sweep is not known.
        """
        poses = torch.stack([self.poses, other.poses])
        if not bool(poses.isfinite().all()):
            raise ValueError("The motion between sweeps needs the poses of both: read them with `pose`.")
        return torch.linalg.solve(other.poses, self.poses)


class SweepProcessor(Processor):
    """A sweep to (points + MARKS, channels) float32; see the module.

    Args:
        points: P. A sweep of more is thinned evenly, in the order in which it was measured. 120 000 are all of a
            64-ring LiDAR.
        channels: C; x, y, z, intensity, and further ones if the sensor has them.

    Raises:
        ValueError: there is no room for a point, or none for its intensity.
    """

    modality = "lidar"

    def __init__(self, points: int = 120_000, channels: int = 4) -> None:
        if points < 1 or channels <= MARKED:
            raise ValueError(f"A sweep has a point or more, of 4 values or more; got {points} and {channels}.")
        self.points, self.channels = points, channels

    def __call__(self, raw: Any, transform: Transform | None = None) -> Float[Tensor, "N C"]:
        """One sweep.

        Args:
            raw: a `Sweep`, or its points.
            transform: what is done to it.

        Raises:
            Undecodable: its points have too few values, or are none.
        """
        transform = transform or Transform()
        sweep = thinned(raw if isinstance(raw, Sweep) else Sweep.checked(np.asarray(raw)), self.points)
        rows = transform.points(torch.from_numpy(self.columns(sweep)))
        packed = torch.full((self.points + MARKS, rows.shape[1]), torch.nan)
        packed[: len(rows)] = rows
        packed[-MARKS:, MARKED] = _marks(transform, sweep)
        return packed

    def columns(self, sweep: Sweep) -> Float[np.ndarray, "P C"]:
        """What a batch holds of each point."""
        if sweep.points.shape[1] < self.channels:
            raise Undecodable(
                "too few values a point", f"{sweep.points.shape[1]} of the {self.channels} that are asked for"
            )
        return sweep.points[:, : self.channels]

    def mask(self, batch: Float[Tensor, "B N C"]) -> Bool[Tensor, "B N"]:
        return batch[..., :3].isfinite().all(-1)

    def example(self) -> Sweep:
        rings = waves(256, self.channels).numpy()
        spread = np.array([18.0, 18.0, 1.0] + [0.5] * (self.channels - 3))
        middle = np.array([20.0, 0.0, -1.0] + [0.5] * (self.channels - 3))
        return Sweep((middle + spread * rings).astype(np.float32))


class FlowProcessor(SweepProcessor):
    """A sweep with the flow of its points in three further columns, in metres, before any transform.

    Args:
        points, channels: as of `SweepProcessor`.
    """

    modality = "previous_sweep"

    def columns(self, sweep: Sweep) -> Float[np.ndarray, "P C+3"]:
        if sweep.flow is None or sweep.flow_includes_ego is None:
            raise Undecodable(
                "no flow", "expected `flow` and `flow_includes_ego` in previous.npz; see collimate_3d.lidar.flow"
            )
        try:
            flow = check_flow(sweep.flow, len(sweep))
        except ValueError as error:
            raise Undecodable("damaged flow", str(error)) from None
        return np.concatenate([super().columns(sweep), flow], 1)

    def example(self) -> None:
        return None


class SweepView(Augmentation):
    """A view of a sweep by a transform that is drawn; the defaults are E-SSL3D's.

    Args:
        flip: the probability that left and right change places.
        angle: radians, the largest turn about z, either way.
        scale: the least and the largest factor.
        shift: metres; along each axis between 0 and it.
    """

    def __init__(
        self,
        flip: float = 0.5,
        angle: float = math.pi / 2,
        scale: tuple[float, float] = (0.95, 1.05),
        shift: float = 0.2,
    ) -> None:
        low, high = scale
        self.choice = TransformChoice(flip, angle, (low, high), shift)

    def __call__(self, raw: Any, processor: SweepProcessor) -> Float[Tensor, "N C"]:
        return processor(raw, self.choice())


def unpacked_sweeps(batch: Float[Tensor, "B N C"]) -> StackedSweeps:
    """What `SweepProcessor` packed.

    Raises:
        ValueError: these are no stacked sweeps.
    """
    if batch.ndim != 3 or batch.shape[1] <= MARKS or bool(batch[:, -MARKS:, :3].isfinite().any()):
        raise ValueError(f"Sweeps come as SweepProcessor stacks them, with their marks; got {tuple(batch.shape)}.")
    marks = batch[:, -MARKS:, MARKED].double()
    high, low = marks[:, TRANSFORM : TRANSFORM + POSE].unflatten(1, (2, 4, 4)).unbind(1)
    return StackedSweeps(
        batch[:, :-MARKS],
        [
            Transform(bool(flip), angle, scale, (x, y, z))
            for flip, angle, scale, x, y, z in marks[:, :TRANSFORM].tolist()
        ],
        high + low,
        marks[:, -1] > 0,
    )


def thinned(sweep: Sweep, points: int) -> Sweep:
    """At most so many points, evenly spread over the order in which they were measured; always the same ones."""
    if len(sweep) <= points:
        return sweep
    kept = np.zeros(len(sweep), bool)
    kept[np.arange(points) * len(sweep) // points] = True
    return sweep.kept(kept)


def _marks(transform: Transform, sweep: Sweep) -> Float64[Tensor, " marks"]:
    pose = np.full((4, 4), np.nan) if sweep.pose is None else np.asarray(sweep.pose, np.float64)
    high = pose.astype(np.float32).astype(np.float64)
    numbers = [float(transform.flip), transform.angle, transform.scale, *transform.shift]
    return torch.tensor([*numbers, *high.flat, *(pose - high).flat, float(bool(sweep.flow_includes_ego))]).double()
