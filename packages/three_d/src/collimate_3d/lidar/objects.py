"""The objects of a sweep: what was labelled in it, or found.

In samples they lie under `objects.json`, a list with one entry an object: `name`, `box` (see `collimate_3d.boxes`), and
what is known beside: `track`, `score`, `alpha`, `image_box`, `truncated`, `occluded`. Readers turn the conventions of
their data sets into this one.

Shape legend: M objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from collimate.data.decoding import Undecodable
from collimate_3d.boxes import check_boxes

OBJECTS = "objects.json"
"""The key of a sample under which its objects lie."""

DONT_CARE = "DontCare"
"""The name of regions of an image in which nothing is labelled and nothing is counted as false."""

Numbers: TypeAlias = Float[np.ndarray, " M"]


@dataclass(frozen=True)
class Objects:
    """Boxes with their names, in the frame of the sensor.

    Attributes:
        names: of each object's class.
        boxes: (M, 7) float64 as in `collimate_3d.boxes`.
        scores: how sure a detector is of each; None of labels.
        tracks: a number for each object, the same in all sweeps; None where nobody tracked.
        image_boxes: (M, 4) x0, y0, x1, y1 in pixels of the image.
        alphas: KITTI's observation angle in radians.
        truncated: the share of each object that lies outside the image, from 0 to 1.
        occluded: 0 fully visible, 1 partly, 2 largely occluded, 3 unknown.

    Raises:
        ValueError: fields of different lengths, or boxes that are none.
    """

    names: tuple[str, ...]
    boxes: Float[np.ndarray, "M 7"]
    scores: Numbers | None = None
    tracks: Int64[np.ndarray, " M"] | None = None
    image_boxes: Float[np.ndarray, "M 4"] | None = None
    alphas: Numbers | None = None
    truncated: Numbers | None = None
    occluded: Numbers | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != len(self.names):
                raise ValueError(f"There are {len(self.names)} names, and {field.name} of {len(value)} objects.")
        cared = np.array([name != DONT_CARE for name in self.names], bool)
        check_boxes(torch.from_numpy(np.asarray(self.boxes, np.float64).reshape(-1, 7)[cared]), "the boxes of objects")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, chosen: Bool[np.ndarray, " M"] | Int64[np.ndarray, " K"]) -> Objects:
        """Some of the objects, by a mask or by their places."""
        places = np.arange(len(self))[chosen]
        columns = {name: getattr(self, name) for name in _KEYS.values() if getattr(self, name) is not None}
        rest = {name: column[places] for name, column in columns.items()}
        return Objects(tuple(self.names[place] for place in places), self.boxes[places], **rest)

    def named(self, *names: str) -> Objects:
        """Those of some classes."""
        return self[np.array([name in names for name in self.names], bool)]

    def to_json(self) -> list[dict[str, Any]]:
        """What `objects.json` holds."""
        columns = {key: getattr(self, field) for key, field in _KEYS.items() if getattr(self, field) is not None}
        return [
            {"name": name, "box": self.boxes[place].tolist()}
            | {key: np.asarray(column[place]).tolist() for key, column in columns.items()}
            for place, name in enumerate(self.names)
        ]

    @classmethod
    def from_json(cls, entries: Sequence[Mapping[str, Any]]) -> Objects:
        """What `to_json` made. A key counts where every entry has it.

        Raises:
            Undecodable: entries without name or box, or boxes that are none.
        """
        try:
            names = tuple(str(entry["name"]) for entry in entries)
            boxes = np.array([entry["box"] for entry in entries], np.float64).reshape(-1, 7)
            columns: dict[str, Any] = {
                field: np.array([entry[key] for entry in entries], np.int64 if key == "track" else np.float64)
                for key, field in _KEYS.items()
                if entries and all(key in entry for entry in entries)
            }
            return cls(names, boxes, **columns)
        except (KeyError, TypeError, ValueError) as error:
            raise Undecodable("damaged objects", f"each needs a name and a box of 7 numbers: {error}") from None

    @classmethod
    def none(cls) -> Objects:
        """No objects at all."""
        return cls((), np.zeros((0, 7)))


_KEYS = {
    "score": "scores",
    "track": "tracks",
    "image_box": "image_boxes",
    "alpha": "alphas",
    "truncated": "truncated",
    "occluded": "occluded",
}
