"""LiDAR sweeps of the world's streets as a source of samples, made when they are read."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from jaxtyping import Float

from collimate.data import Sample
from collimate_world.generated import Generated
from collimate_world.lidar import Pattern, Scan, boxes_seen, scan, scan_flow
from collimate_world.source import number_range
from collimate_world.street import ROAD_USERS, Street, sample_street

SWEEP_PERIOD = 0.1
"""Seconds between two sweeps, as of KITTI's LiDAR."""

FEWEST = 5  # ours: points below which nobody could tell that an object is there


class SweepSource(Generated):
    """Sweeps of streets, with the sweep before each: `world-sweeps:train?objects=6-12` on the command line.

    A sample has `sweep.npz` (`points` (N, 4): x ahead, y to the left, z up in metres from the LiDAR, intensity from 0
    to 1; `pose`, `time`; `labels` by the numbers of `SURFACES`; `instances`, 1 above the track, 0 for none),
    `previous.npz` (the same, 0.1 s before, with the `flow` (N, 3) of its points, the LiDAR's motion included, in
    metres), `objects.json` (`name`, `box`: centre, length, width, height, heading; `track`, and the `points` on it),
    `previous_objects.json` and `json` (how all drive, and that it is synthetic). Objects with few points are not
    listed.

    Args:
        split: train, val or test.
        objects: how many road users there are: a number, or a range as in `6-12`; those that are hidden too.
        length: number of pairs of sweeps.
        rings, columns: of rays.
        view: degrees of azimuth that the LiDAR sees, half to either side.
        seed: another seed, another world of the same kind.

    Raises:
        ValueError: an argument is not one of these; says which are.
    """

    def __init__(
        self,
        split: str = "train",
        objects: int | str = "6-12",
        length: int = 10_000,
        rings: int = 24,
        columns: int = 240,
        view: float = 120.0,
        seed: int = 0,
    ) -> None:
        if rings < 2 or columns < 2 or not 0 < view <= 360:
            raise ValueError(
                f"A LiDAR has 2 rings and columns or more, and sees up to 360 degrees; not {rings}, {columns}, {view}."
            )
        super().__init__(f"world-sweeps:{split}?objects={objects}", split, length, seed)
        self.objects = number_range(objects, int, "The number of objects")
        self.pattern = Pattern(rings, columns, view)
        self.street(0)  # refuses what cannot be, before training starts

    def street(self, index: int) -> Street:
        """The street of a sample."""
        return sample_street(self.split, index, self.seed, self.objects)

    def made(self, index: int) -> Sample:
        street = self.street(index)
        before, now = (scan(street, time, self.pattern) for time in (0.0, SWEEP_PERIOD))
        flow = scan_flow(street, before, 0.0, SWEEP_PERIOD)
        return {
            "__key__": f"sweep-{self.split}-{'-'.join(map(str, self.objects))}-{self.seed}-{index:08d}",
            "__source__": self.name,
            "sweep.npz": _encoded(now, street, SWEEP_PERIOD),
            "previous.npz": _encoded(before, street, 0.0, flow=flow, flow_includes_ego=True),
            "objects.json": _objects(street, now, SWEEP_PERIOD),
            "previous_objects.json": _objects(street, before, 0.0),
            "json": {
                "synthetic": True,
                "split": self.split,
                "seed": self.seed,
                "index": index,
                "speed": street.speed,
                "turn": street.turn,
                "users": [dict(vars(user)) for user in street.users],
            },
        }


def _encoded(scanned: Scan, street: Street, time: float, **more: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **scanned._asdict(), pose=street.pose(time), time=time, **more)
    return buffer.getvalue()


def _objects(street: Street, scanned: Scan, time: float) -> list[dict[str, Any]]:
    boxes: Float[np.ndarray, "M 7"] = boxes_seen(street, time)
    points = np.bincount(scanned.instances, minlength=len(boxes) + 1)[1:]
    return [
        {"name": user.name, "box": boxes[track].tolist(), "track": track, "points": int(points[track])}
        for track, user in enumerate(street.users)
        if points[track] >= FEWEST
    ]


SWEEP_CLASSES = list(ROAD_USERS)
"""The classes of objects in sweeps."""
