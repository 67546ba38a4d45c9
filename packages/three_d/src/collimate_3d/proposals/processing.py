"""Whole rooms as tensors, for detectors: points with the object that each lies on, and the objects' boxes.

A room is the field `scene.npz` of a sample, as `collimate.data.scene_graphs.scene_arrays` makes it.

Shape legend: B rooms, N points, M objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from collimate.data.decoding import Undecodable, register_modality
from collimate.processing import Processor
from collimate_3d.scenes.processing import SCENE, SceneProcessor, checked_scene

ROW = 8  # numbers of an object: given, class, box; and of a point: x, y, z, red, green, blue, height, object
CHANNELS = 7  # of a point that a detector reads
FLOOR = 0.99  # VoteNet: the floor is where 99 of 100 points lie above

register_modality("room", SCENE)


class Rooms(NamedTuple):
    """A batch of rooms.

    Attributes:
        points: x, y, z in metres; red, green, blue from -1 to 1; the height above the floor in metres.
        object: of each point, the object that it lies on by its row, -1 for none.
        given: which rows are objects.
        labels: of the objects; -1 where there is none, and for a class that is not known.
        boxes: centre and extents, in metres.
    """

    points: Float[Tensor, "B N 7"]
    object: Int64[Tensor, "B N"]
    given: Bool[Tensor, "B M"]
    labels: Int64[Tensor, "B M"]
    boxes: Float[Tensor, "B M 6"]


class RoomProcessor(Processor):
    """A room to one row an object and one row a point: (M + N, 8) float32; see `unpacked`.

    Args:
        classes: names of the classes, in the order of their numbers.
        points: N, evenly spread over the points as they are stored, or all of them and some twice; 40 000 in VoteNet.
        max_objects: M; the objects after them are background.
    """

    modality = "room"

    def __init__(self, classes: Sequence[str], points: int = 40_000, max_objects: int = 64) -> None:
        if max_objects < 1 or points < 1:
            raise ValueError(f"A room has objects and points; not {max_objects} and {points}.")
        self.classes, self.points, self.max_objects = list(classes), points, max_objects
        self._numbers = {name: number for number, name in enumerate(self.classes)}

    def __call__(self, raw: Any) -> Float[Tensor, "W 8"]:
        """One room.

        Raises:
            Undecodable: as of `SceneProcessor`; or there is no point.
        """
        scene = checked_scene(raw)
        if not len(scene["xyz"]):
            raise Undecodable("room without points", "nothing can be found in it")
        packed = torch.zeros(self.max_objects + self.points, ROW)
        count = min(self.max_objects, len(scene["ids"]))
        packed[:count, 0] = 1
        packed[:count, 1] = torch.tensor([self._numbers.get(str(name), -1) for name in scene["labels"][:count]])
        packed[:count, 2:] = torch.from_numpy(scene["boxes"][:count])
        packed[self.max_objects :] = torch.from_numpy(self._points(scene, count))
        return packed

    def unpacked(self, batch: Float[Tensor, "B W 8"]) -> Rooms:
        """What this processor packed."""
        objects, points = batch[:, : self.max_objects], batch[:, self.max_objects :]
        given = objects[..., 0] > 0
        labels = objects[..., 1].long().masked_fill(~given, -1)
        return Rooms(points[..., :CHANNELS], points[..., CHANNELS].long(), given, labels, objects[..., 2:])

    def example(self) -> dict[str, np.ndarray]:
        return SceneProcessor(self.classes).example()

    def _points(self, scene: dict[str, np.ndarray], count: int) -> Float[np.ndarray, "N 8"]:
        size = len(scene["xyz"])
        chosen = np.arange(self.points) * size // self.points if size > self.points else np.arange(self.points) % size
        xyz = scene["xyz"][chosen]
        floor = np.quantile(xyz[:, 2], 1 - FLOOR)
        rows = {int(number): row for row, number in enumerate(scene["ids"][:count])}
        own = np.array([rows.get(int(each), -1) for each in scene["instance"][chosen]], np.float32)
        colours = scene["rgb"][chosen].astype(np.float32) / 127.5 - 1
        return np.concatenate([xyz, colours, xyz[:, 2:] - floor, own[:, None]], 1).astype(np.float32)
