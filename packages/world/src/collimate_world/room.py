"""Rooms: boxes, cylinders and balls on a floor, as a depth camera that has walked around them would give them.

Coordinates are metres: x to the right, y away from the observer, z up, the floor at z = 0. A room is a pure function of
(split, seed, index) and of what is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt8

from collimate.data.scene_graphs import GraphObject, SceneGraph
from collimate_world.scene import COLOURS, Combinations, Split, combinations_of, split_number

Solid = Literal["box", "cylinder", "ball"]

FURNITURE: dict[str, tuple[Solid, tuple[float, float, float]]] = {
    "cube": ("box", (0.5, 0.5, 0.5)),
    "cabinet": ("box", (0.7, 0.45, 1.3)),
    "bench": ("box", (1.3, 0.45, 0.45)),
    "slab": ("box", (1.0, 0.8, 0.1)),
    "ball": ("ball", (0.5, 0.5, 0.5)),
    "pillar": ("cylinder", (0.35, 0.35, 1.6)),
    "drum": ("cylinder", (0.6, 0.6, 0.6)),
    "disc": ("cylinder", (0.9, 0.9, 0.1)),
}
"""class -> its solid, and width, depth and height in metres; an object's own are within `SPREAD` of them."""

PAINTS = ("red", "orange", "yellow", "green", "blue", "purple")
"""The colours of things in rooms."""

HELD_OUT_FURNITURE = frozenset(
    (colour, label) for i, colour in enumerate(PAINTS) for j, label in enumerate(FURNITURE) if (i + j) % 6 == 0
)  # ours: each class misses one colour, each colour one class or two
"""The 8 of 48 (colour, class) combinations of single objects that never occur in the training split. Rooms have all."""

WIDTH = 6.0  # of the square floor
SPREAD = 0.12
MIN_THINGS, MAX_THINGS = 2, 12
KINDS = (2, 4)  # ours: so few classes in a room, so that most of its objects have others of their class beside them
STACKED = 0.5  # ours: the share of small things that stand on another
GAP = 0.08  # between footprints
GRAIN = 0.004  # of a point's place, in metres: that of indoor depth cameras, roughly
_BASES = ("cube", "cabinet", "bench", "slab", "drum", "disc")
_SMALL = ("cube", "ball", "drum")
_TRIES = 30
_ROOM, _SINGLE = 401, 402  # of the world's random numbers; those before them are for scenes


@dataclass(frozen=True)
class Furnishing:
    """One object of a room.

    Attributes:
        label: its class, out of `FURNITURE`.
        colour: out of `PAINTS`.
        center, size: of its box, in metres.
    """

    label: str
    colour: str
    center: tuple[float, float, float]
    size: tuple[float, float, float]

    @property
    def solid(self) -> Solid:
        return FURNITURE[self.label][0]

    @property
    def name(self) -> str:
        """Colour and class."""
        return f"{self.colour} {self.label}"


class RoomPoints(NamedTuple):
    """Points on the surfaces of a room's objects, and the object that each lies on, by its place."""

    xyz: Float[np.ndarray, "P 3"]
    rgb: UInt8[np.ndarray, "P 3"]
    instance: Int64[np.ndarray, " P"]


@dataclass(frozen=True)
class Room:
    """Objects on a floor. They do not reach into each other.

    Attributes:
        key: the whole numbers it was drawn from; whatever else is drawn for the room starts from them.
    """

    key: tuple[int, ...]
    things: tuple[Furnishing, ...]

    def generator(self, *purpose: int) -> np.random.Generator:
        """Random numbers that belong to this room and a purpose."""
        return np.random.default_rng((*self.key, *purpose))

    def graph(self) -> SceneGraph:
        """Its scene graph: the objects by their places, and every spatial relation."""
        objects = tuple(
            GraphObject(number, each.label, each.center, each.size, (each.colour,))
            for number, each in enumerate(self.things)
        )
        return SceneGraph(objects).with_spatial_relations()

    def points(self, count: int) -> RoomPoints:
        """So many points on each object, spread over the whole of its surface."""
        rng = self.generator(1)
        size = len(self.things)
        xyz = np.concatenate([surface(each.solid, count, rng) * each.size + each.center for each in self.things])
        paint = np.array([COLOURS[each.colour] for each in self.things], np.float64).repeat(count, 0)
        shade = rng.uniform(0.75, 1.0, (size, 1)).repeat(count, 0)  # each object's own light
        rgb = np.clip(paint * shade + rng.normal(0, 6, paint.shape), 0, 255)
        xyz += rng.normal(0, GRAIN, xyz.shape)
        return RoomPoints(xyz.astype(np.float32), rgb.astype(np.uint8), np.arange(size).repeat(count))


def sample_room(split: Split, index: int, seed: int = 0, objects: tuple[int, int] = (6, 12)) -> Room:
    """Room `index` of a split.

    Args:
        split: rooms of different splits are drawn from different seeds.
        objects: least and greatest number of objects. A room that is full has fewer than were drawn, never fewer than
            the least.

    Raises:
        ValueError: no such split, or an impossible number of objects.
    """
    low, high = objects
    if not MIN_THINGS <= low <= high <= MAX_THINGS:
        raise ValueError(f"A room has {MIN_THINGS} to {MAX_THINGS} objects, the lesser number first; not {objects}.")
    key = (seed, split_number(split), index, low, high, _ROOM)
    rng = np.random.default_rng(key)
    things: list[Furnishing] = []
    while len(things) < low:  # a room that filled up too early is drawn anew
        things = _furnished(int(rng.integers(low, high + 1)), rng)
    return Room(key, tuple(things))


def sample_object(split: Split, index: int, seed: int = 0, combinations: Combinations | None = None) -> Room:
    """Object `index` of a split, alone on the floor: a room of one.

    Args:
        split: objects of different splits are drawn from different seeds.
        combinations: of colour and class, to draw from; those seen in training for `train`, else all, if None.

    Raises:
        ValueError: no such split, or training on what is held out.
    """
    allowed = _COMBINATIONS[combinations_of(split, combinations, "colour and class")]
    key = (seed, split_number(split), index, _SINGLE)
    rng = np.random.default_rng(key)
    colour, label = allowed[rng.integers(len(allowed))]
    size = _size(label, rng)
    center = np.array([0, 0, size[2] / 2])
    return Room(key, (Furnishing(label, colour, _rounded(center), _rounded(size)),))


def surface(solid: Solid, count: int, rng: np.random.Generator) -> Float[np.ndarray, "P 3"]:
    """Points on the surface of a solid of extent 1; denser on the short sides of what it is scaled to."""
    if solid == "ball":
        points = rng.normal(size=(count, 3))
        return points / np.linalg.norm(points, axis=1, keepdims=True) / 2
    if solid == "cylinder":
        angle = rng.uniform(0, 2 * np.pi, count)
        side = rng.random(count) < 2 / 3  # the mantle's share of the area of a cylinder as high as it is wide
        radius = np.where(side, 0.5, 0.5 * np.sqrt(rng.random(count)))
        height = np.where(side, rng.uniform(-0.5, 0.5, count), rng.choice((-0.5, 0.5), count))
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 1)
    points = rng.uniform(-0.5, 0.5, (count, 3))
    points[np.arange(count), rng.integers(0, 3, count)] = rng.choice((-0.5, 0.5), count)
    return points


def _furnished(count: int, rng: np.random.Generator) -> list[Furnishing]:
    labels = rng.choice(list(FURNITURE), int(rng.integers(KINDS[0], KINDS[1] + 1)), replace=False)
    things: list[Furnishing] = []
    taken: set[int] = set()  # those that something stands on
    for _ in range(count):
        label, colour = str(rng.choice(labels)), str(rng.choice(PAINTS))
        size = _size(label, rng)
        center = _place_on_top(label, size, things, taken, rng)
        center = _place_on_floor(size, things, rng) if center is None else center
        if center is not None:
            things.append(Furnishing(label, colour, _rounded(center), _rounded(size)))
    return things


def _size(label: str, rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """Width, depth and height of an object of a class, in metres."""
    size = np.array(FURNITURE[label][1]) * rng.uniform(1 - SPREAD, 1 + SPREAD, 3)
    if FURNITURE[label][0] == "ball":
        size[:] = size[0]
    elif FURNITURE[label][0] == "cylinder":
        size[1] = size[0]
    elif rng.random() < 0.5:
        size[:2] = size[1::-1]
    return size


def _rounded(metres: Float[np.ndarray, " 3"]) -> tuple[float, float, float]:
    x, y, z = (round(float(each), 4) for each in metres)
    return x, y, z


def _place_on_top(
    label: str, size: np.ndarray, things: list[Furnishing], taken: set[int], rng: np.random.Generator
) -> np.ndarray | None:
    """On something that bears it and bears nothing else, in a share of cases."""
    free = [number for number, each in enumerate(things) if each.label in _BASES and number not in taken]
    if label not in _SMALL or not free or rng.random() >= STACKED:
        return None
    number = int(rng.choice(free))
    base = things[number]
    if base.center[2] > base.size[2] or (size[:2] > base.size[:2]).any():  # it stands on something, or is too small
        return None
    taken.add(number)
    return np.array([base.center[0], base.center[1], base.center[2] + base.size[2] / 2 + size[2] / 2])


def _place_on_floor(size: np.ndarray, things: list[Furnishing], rng: np.random.Generator) -> np.ndarray | None:
    """A free place, or None where none was found."""
    reach = (WIDTH - size[:2]) / 2
    tries = rng.uniform(-1, 1, (_TRIES, 2)) * reach
    if things:
        centers = np.array([each.center[:2] for each in things])
        sizes = np.array([each.size[:2] for each in things])
        gaps = np.abs(tries[:, None] - centers) - (sizes + size[:2]) / 2
        tries = tries[(gaps.max(2) > GAP).all(-1)]
    return np.array([*tries[0], size[2] / 2]) if len(tries) else None


_ALL = [(colour, label) for colour in PAINTS for label in FURNITURE]
_COMBINATIONS: dict[str, list[tuple[str, str]]] = {
    "all": _ALL,
    "seen": [pair for pair in _ALL if pair not in HELD_OUT_FURNITURE],
    "held_out": [pair for pair in _ALL if pair in HELD_OUT_FURNITURE],
}
