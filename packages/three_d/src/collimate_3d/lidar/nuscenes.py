"""nuScenes (Caesar et al. 2020), read from its own tables: `nuscenes:/data/nuscenes?version=v1.0-mini`.

Its LiDAR has x to the right and y ahead. Here, as everywhere, x is ahead and y to the left: points are turned by a
right angle as they are read, and poses and boxes with them. Intensities, from 0 to 255, become 0 to 1.

Shape legend: N points, M objects.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from collimate.data.decoding import Undecodable
from collimate.data.source import Sample, Source
from collimate_3d.lidar.kitti import reading
from collimate_3d.lidar.objects import OBJECTS, Objects
from collimate_3d.lidar.poses import apply_pose, check_pose, inverse_pose, motion_between, move_boxes, rotation_of
from collimate_3d.lidar.sweep import SWEEP, Sweep, encode_sweep, read_points

AHEAD = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
"""From nuScenes' LiDAR frame into ours: x ahead is its y, y to the left its -x."""

CLOSE = 1.0  # metres: what is nearer, to all sides, is the car itself (nutonomy/nuscenes-devkit, data_classes.py)

CLASSES = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.trailer": "trailer",
    "vehicle.construction": "construction_vehicle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bicycle": "bicycle",
    "movable_object.trafficcone": "traffic_cone",
    "movable_object.barrier": "barrier",
}
"""category -> class of the detection benchmark; other categories keep their names."""


class NuScenesSource(Source):
    """Key frames with their boxes.

    A sample has `sweep.npz` (x, y, z, intensity, ring; with several sweeps the seconds since each was taken, in the
    ring's place), `objects.json` with tracks, and `json`: scene, sample token, time.

    Args:
        path: the folder with the tables' folder and `samples`.
        version: the tables' folder.
        scenes: names of scenes, joined by commas; all if None.
        sweeps: how many sweeps are laid over one another by the poses, the key frame's and those before it.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: there are no key frames, or fewer than one sweep is asked for.
    """

    def __init__(
        self, path: str, version: str = "v1.0-trainval", scenes: str | Sequence[str] | None = None, sweeps: int = 1
    ) -> None:
        if sweeps < 1:
            raise ValueError(f"A key frame is one sweep or more, not {sweeps}.")
        self.path, self.version, self.sweeps = Path(path), version, sweeps
        self.name = f"nuscenes:{path}?version={version}"
        wanted = scenes.split(",") if isinstance(scenes, str) else scenes
        own = {token for token, row in self._scenes.items() if wanted is None or row["name"] in wanted}
        self.frames = [row for row in self._lidar.values() if row["is_key_frame"] and self._scene_of(row) in own]
        self.frames.sort(key=lambda row: (self._scenes[self._scene_of(row)]["name"], row["timestamp"]))
        if not self.frames:
            names = sorted(row["name"] for row in self._scenes.values())
            raise ValueError(f"{self.name}: no key frames of the LiDAR in {wanted or 'any scene'}; scenes are {names}.")

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> Sample:
        return self.peek(index, (SWEEP, OBJECTS, "json"))

    def peek(self, index: int, keys: Sequence[str]) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} key frames; there is no frame {index}.")
        row = self.frames[index]
        sample: Sample = {"__key__": row["token"], "__source__": self.name}
        where = f"{self.name}: {row['filename']}"
        if SWEEP in keys:
            sample[SWEEP] = encode_sweep(reading(where, partial(self._sweep, row)))
        if OBJECTS in keys:
            sample[OBJECTS] = reading(where, partial(self.objects, row)).to_json()
        if "json" in keys:
            scene = self._scenes[self._scene_of(row)]["name"]
            sample["json"] = {"scene": scene, "sample": row["sample_token"], "time": row["timestamp"] / 1e6}
        return sample

    def pose(self, row: dict[str, Any]) -> Float[np.ndarray, "4 4"]:
        """From the LiDAR, in our axes, into the world.

        Raises:
            Undecodable: it is no pose.
        """
        try:
            car, sensor = self._poses[row["ego_pose_token"]], self._sensors[row["calibrated_sensor_token"]]
            return matrix_of(car) @ matrix_of(sensor) @ inverse_pose(AHEAD)
        except (KeyError, ValueError) as error:
            raise Undecodable("damaged pose", str(error)) from None

    def objects(self, row: dict[str, Any]) -> Objects:
        """The boxes of a key frame, in its LiDAR's frame."""
        rows = self._annotations.get(row["sample_token"], [])
        if not rows:
            return Objects.none()
        names, boxes = zip(*(self._box(each) for each in rows), strict=True)
        tracks = np.array([self._instances[each["instance_token"]]["number"] for each in rows], np.int64)
        return Objects(names, move_boxes(inverse_pose(self.pose(row)), np.stack(boxes)), tracks=tracks)

    def _box(self, row: dict[str, Any]) -> tuple[str, Float[np.ndarray, " 7"]]:
        """Name, and box in the world: sizes are width, length, height."""
        category: str = self._categories[self._instances[row["instance_token"]]["category_token"]]["name"]
        width, length, height = row["size"]
        ahead = rotation_of(np.array(row["rotation"]))[:, 0]
        box = np.array([*row["translation"], length, width, height, np.arctan2(ahead[1], ahead[0])])
        return CLASSES.get(category, category), box

    def _sweep(self, row: dict[str, Any]) -> Sweep:
        pose, first, parts = self.pose(row), row["timestamp"], []
        for _ in range(self.sweeps):
            points = read_points_ahead(self.path / row["filename"])
            if self.sweeps > 1:
                points[:, :3] = apply_pose(motion_between(self.pose(row), pose), points[:, :3])
                points[:, 4] = (first - row["timestamp"]) / 1e6
            parts.append(points)
            if not row["prev"]:
                break  # the first sweeps of a scene have none before them
            row = self._lidar[row["prev"]]
        return Sweep.checked(np.concatenate(parts), pose=pose, time=first / 1e6)

    def _scene_of(self, row: dict[str, Any]) -> str:
        return self._samples[row["sample_token"]]["scene_token"]

    def _table(self, name: str) -> list[dict[str, Any]]:
        path = self.path / self.version / f"{name}.json"
        if not path.is_file():
            there = ", ".join(sorted(each.name for each in self.path.glob("v*"))) or "none"
            raise FileNotFoundError(
                f"There is no table {path}. Versions in {self.path}: {there}; name one by `version`."
            )
        return json.loads(path.read_bytes())

    def _by_token(self, name: str) -> dict[str, dict[str, Any]]:
        return {row["token"]: row for row in self._table(name)}

    @cached_property
    def _scenes(self) -> dict[str, dict[str, Any]]:
        return self._by_token("scene")

    @cached_property
    def _samples(self) -> dict[str, dict[str, Any]]:
        return self._by_token("sample")

    @cached_property
    def _sensors(self) -> dict[str, dict[str, Any]]:
        return self._by_token("calibrated_sensor")

    @cached_property
    def _poses(self) -> dict[str, dict[str, Any]]:
        """Of the LiDAR's sweeps only: there are as many for each camera."""
        own = {row["ego_pose_token"] for row in self._lidar.values()}
        return {row["token"]: row for row in self._table("ego_pose") if row["token"] in own}

    @cached_property
    def _lidar(self) -> dict[str, dict[str, Any]]:
        """The rows of `sample_data` that are sweeps."""
        return {row["token"]: row for row in self._table("sample_data") if row["filename"].endswith(".pcd.bin")}

    @cached_property
    def _categories(self) -> dict[str, dict[str, str]]:
        return self._by_token("category")

    @cached_property
    def _instances(self) -> dict[str, dict[str, Any]]:
        """With a number each, which tracks are told by."""
        return {row["token"]: {**row, "number": at} for at, row in enumerate(self._table("instance"))}

    @cached_property
    def _annotations(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self._table("sample_annotation"):
            found.setdefault(row["sample_token"], []).append(row)
        return found


def matrix_of(row: dict[str, Any]) -> Float[np.ndarray, "4 4"]:
    """A row's `translation` and `rotation` as a pose.

    Raises:
        ValueError: they are none.
    """
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_of(np.array(row["rotation"])), row["translation"]
    return check_pose(matrix, f"pose {row.get('token', '')}")


def read_points_ahead(path: str | Path) -> Float[np.ndarray, "N 5"]:
    """x, y, z, intensity and ring of a `.pcd.bin` file, in our axes, without the points on the car itself.

    Raises:
        Undecodable: as `read_points`.
    """
    points = read_points(Path(path).read_bytes(), values=5, full_scale=255.0)
    points = points[~(np.abs(points[:, :2]) < CLOSE).all(1)]
    points[:, :3] = apply_pose(AHEAD, points[:, :3])
    return points
