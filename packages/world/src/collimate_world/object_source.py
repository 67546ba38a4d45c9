"""Single objects of the world's rooms as a source of clouds with texts, made when they are read."""

from __future__ import annotations

from math import sqrt
from typing import cast

from collimate.data import Sample
from collimate_world.captions import Caption
from collimate_world.generated import Generated
from collimate_world.room import FURNITURE, HELD_OUT_FURNITURE, PAINTS, Furnishing, Room, sample_object
from collimate_world.scene import Combinations

OBJECT_KINDS = ("short", "long")
"""The kinds of captions of objects: what it is; and how its sizes differ from what is usual for its class."""

OBJECT_CLASSES = [f"{colour} {label}" for colour in PAINTS for label in FURNITURE]
"""The classes of single objects, in the order of their numbers."""

HELD_OUT_OBJECTS = [number for number, name in enumerate(OBJECT_CLASSES) if tuple(name.split()) in HELD_OUT_FURNITURE]
"""The numbers of the classes that never occur in the training split."""

OBJECT_TEMPLATES = ["one {}"]
"""Prompts for zero-shot classification: as the captions are worded."""

_TOLD = 0.04  # ours, a third of `SPREAD`: from this share more or less than usual, a size is told


class ObjectSource(Generated):
    """Coloured solids one by one, as clouds with texts: `world-objects:train?points=256` on the command line.

    A sample has `points.npz` (`xyz` in metres, the floor at z = 0, and `rgb`), `txt`, `captions.json` (one of each
    kind), `cls` (colour and class) and `json` (the object, and that it is synthetic).

    Objects of one name have one short caption: training by these needs a method to which equal texts are no negatives.

    Args:
        split: train, val or test. Held-out combinations of colour and class occur in the last two only.
        length: number of objects.
        points: on each object.
        seed: another seed, another world of the same kind.
        text: the kind of caption that is the sample's `txt`.
        combinations: `seen` in training, `held_out`, or `all`; by default what the split allows.

    Raises:
        ValueError: an argument is not one of these; says which are.
    """

    def __init__(
        self,
        split: str = "train",
        length: int = 10_000,
        points: int = 512,
        seed: int = 0,
        text: str = "short",
        combinations: str | None = None,
    ) -> None:
        if text not in OBJECT_KINDS:
            raise ValueError(f"The text of a sample is one of {', '.join(OBJECT_KINDS)}; not {text!r}.")
        if points < 1:
            raise ValueError(f"An object has one point or more, not {points}.")
        super().__init__(f"world-objects:{split}", split, length, seed)
        self.combinations: Combinations | None = cast(Combinations | None, combinations)
        self.points, self.text = points, text
        self.class_names, self.templates = OBJECT_CLASSES, OBJECT_TEMPLATES
        self.room(0)  # refuses what cannot be, before training starts

    def room(self, index: int) -> Room:
        """The object of a sample, in a room of its own."""
        return sample_object(self.split, index, self.seed, self.combinations)

    def made(self, index: int) -> Sample:
        room = self.room(index)
        thing, cloud = room.things[0], room.points(self.points)
        captions = object_captions(thing)
        return {
            "__key__": f"object-{self.split}-{self.combinations or 'any'}-{self.seed}-{index:08d}",
            "__source__": self.name,
            "points.npz": {"xyz": cloud.xyz, "rgb": cloud.rgb},
            "txt": next(one.text for one in captions if one.kind == self.text),
            "captions.json": [dict(vars(one)) for one in captions],
            "cls": OBJECT_CLASSES.index(thing.name),
            "json": {
                "synthetic": True,
                "object": dict(vars(thing)),
                "split": self.split,
                "seed": self.seed,
                "index": index,
            },
        }


def object_captions(thing: Furnishing) -> list[Caption]:
    """One of each kind: `one red bench`, and `one red bench, wide and low` where it is both for a bench."""
    told = " and ".join(_sizes(thing))
    short = f"one {thing.name}"
    return [Caption("short", short), Caption("long", f"{short}, {told}" if told else short)]


def _sizes(thing: Furnishing) -> list[str]:
    """What is unusual of its sizes; a ball has only one."""
    width, depth, height = (own / usual for own, usual in zip(thing.size, FURNITURE[thing.label][1], strict=True))
    if thing.solid == "ball":
        return _word(width, "small", "large")
    across = sqrt(width * depth)  # the same for a box that is turned by a quarter
    return _word(across, "narrow", "wide") + _word(height, "low", "tall")


def _word(share: float, less: str, more: str) -> list[str]:
    return [less] if share < 1 - _TOLD else [more] if share > 1 + _TOLD else []
