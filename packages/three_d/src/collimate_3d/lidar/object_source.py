"""The objects of sweeps one by one: `lidar-objects:world-sweeps:test?length=100`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from collimate.data import Sample, Source, open_source
from collimate.data.decoding import register_modality, value_of
from collimate.evaluation.modalities import Exhibit, Manner, register_evaluation
from collimate_3d.lidar.kitti_ap import CLASSES
from collimate_3d.lidar.objects import OBJECTS, Objects
from collimate_3d.lidar.pictures import picture_from_above
from collimate_3d.lidar.sweep import SWEEP, Sweep

LIDAR_OBJECT = "lidar_object"


class SweepObject(NamedTuple):
    """An object and what is around it.

    Attributes:
        sweep: the points near it, in the frame of the sensor.
        box: as in `collimate_3d.boxes`.
    """

    sweep: Sweep
    box: Float[np.ndarray, " 7"]


class LidarObjects(Source):
    """Each labelled object of each sweep as a sample: itself, `txt` ("a cyclist"), and `cls`.

    The labels of all sweeps are read once, to count.

    Args:
        what: labelled sweeps, as `open_source` takes them.
        classes: names of those that are taken, in the order of their numbers.
        around: metres from the object's centre, along x and y, within which points belong to its sample.
        options: of the source.

    Raises:
        ValueError: there is no such object.
    """

    def __init__(
        self, what: str | Source, classes: Sequence[str] = CLASSES, around: float = 10.0, **options: Any
    ) -> None:
        self.sweeps = open_source(what, **options)
        self.class_names, self.around = [name.lower() for name in classes], around
        self.name = f"objects of {self.sweeps.name}"
        self.places = [self._places(index) for index in range(len(self.sweeps))]
        self._ends = list(accumulate(len(each) for each in self.places))
        if not self._ends or not self._ends[-1]:
            raise ValueError(f"{self.sweeps.name}: no object is a {' or '.join(self.class_names)}.")

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} objects; there is no object {index}.")
        number = bisect_right(self._ends, index)
        place = self.places[number][index - (self._ends[number - 1] if number else 0)]
        sample = self.sweeps.peek(number, (SWEEP, OBJECTS))
        objects = Objects.from_json(value_of(sample, (OBJECTS,)))
        sweep: Sweep = value_of(sample, (SWEEP,))
        box, name = objects.boxes[place], objects.names[place].lower()
        near = (np.abs(sweep.xyz[:, :2] - box[:2]) < self.around).all(1)
        return {
            "__key__": f"{sample['__key__']}-{place}",
            "__source__": self.name,
            LIDAR_OBJECT: SweepObject(sweep.kept(near), box),
            "txt": f"a {name}",
            "cls": self.class_names.index(name),
        }

    def _places(self, index: int) -> list[int]:
        sample = self.sweeps.peek(index, (OBJECTS,))
        names = Objects.from_json(value_of(sample, (OBJECTS,))).names
        return [place for place, name in enumerate(names) if name.lower() in self.class_names]


def show_object(raw: SweepObject) -> Exhibit:
    """An object and its surroundings from above."""
    (x, y), names = raw.box[:2], ("object",)
    bounds = (x - 6.0, y - 6.0, x + 6.0, y + 6.0)
    return Exhibit(picture_from_above(raw.sweep.xyz, Objects(names, raw.box[None]), bounds=bounds, scale=25.0))


register_modality(LIDAR_OBJECT, LIDAR_OBJECT)
register_evaluation(LIDAR_OBJECT, Manner(show=show_object))
