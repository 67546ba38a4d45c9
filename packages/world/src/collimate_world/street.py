"""Streets: cars, pedestrians and cyclists on flat ground among walls, poles and bushes, seen from a car that drives.

Coordinates are metres: x ahead, y to the left, z up, from the LiDAR of the car at the time 0, which stands `MOUNTED`
above the ground. Everything keeps its speed and its turn, so that any moment can be asked for. A street is a pure
function of (split, seed, index) and of what is asked for.

Shape legend: M moments or points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from collimate_world.scene import Split, split_number

MOUNTED = 1.73
"""Metres between the ground and the LiDAR, as on KITTI's car."""

ROAD_USERS = ("Car", "Pedestrian", "Cyclist")
"""The classes of what moves."""

SIDES = {"Car": (3.9, 1.6, 1.56), "Pedestrian": (0.8, 0.6, 1.73), "Cyclist": (1.76, 0.6, 1.73)}
"""class -> length, width, height in metres, as KITTI's means; an object's own are within `SPREAD` of them."""

SPEEDS = {"Car": (0.0, 10.0), "Pedestrian": (0.5, 2.0), "Cyclist": (2.0, 6.0)}
"""class -> the least and the greatest metres a second."""

SPREAD = 0.1
PARKED = 0.3  # the share of cars that stand
MAX_USERS = 24
NEAREST, FARTHEST = 5.0, 45.0  # metres from the car at which things are put
BEHIND = 12.0  # metres behind it, and no more: most LiDARs of the tasks look ahead
_STREET = 501  # of the world's random numbers
_TRIES = 30


@dataclass(frozen=True)
class Solid:
    """A part of something: an upright box, or an upright cylinder of equal length and width.

    Attributes:
        round: whether it is a cylinder.
        centre: x, y, z in the frame of what it is a part of, in metres.
        size: length, width, height.
    """

    round: bool
    centre: tuple[float, float, float]
    size: tuple[float, float, float]


@dataclass(frozen=True)
class RoadUser:
    """Something that may move, along an arc.

    Attributes:
        name: one of `ROAD_USERS`.
        place: x, y of its centre at the time 0.
        size: length, width, height.
        heading: radians at the time 0, counter-clockwise from x. It moves where it looks.
        speed: metres a second.
        turn: radians a second.
    """

    name: str
    place: tuple[float, float]
    size: tuple[float, float, float]
    heading: float
    speed: float
    turn: float

    def box(self, time: float) -> Float[np.ndarray, " 7"]:
        """x, y, z of the centre, length, width, height, heading in the world."""
        x, y, heading = along_arc((*self.place, self.heading), self.speed, self.turn, time)
        return np.array([x, y, self.size[2] / 2 - MOUNTED, *self.size, heading])

    def solids(self) -> tuple[Solid, ...]:
        """What it is made of, about the middle of its box.

        A car's cabin stands behind its hood and a rider behind the handlebars, so that both show where they look; a
        pedestrian is as broad as deep, and does not.
        """
        length, width, height = self.size
        if self.name == "Car":
            body = Solid(False, (0, 0, -0.2 * height), (length, width, 0.6 * height))
            return body, Solid(False, (-0.16 * length, 0, 0.3 * height), (0.64 * length, 0.9 * width, 0.4 * height))
        if self.name == "Pedestrian":
            return (Solid(True, (0, 0, 0), (0.75 * width, 0.75 * width, height)),)
        bicycle = Solid(False, (0, 0, -0.22 * height), (length, 0.25 * width, 0.56 * height))
        return bicycle, Solid(True, (-0.15 * length, 0, 0.2 * height), (0.7 * width, 0.7 * width, 0.6 * height))


@dataclass(frozen=True)
class Street:
    """Who is on it, what stands on it, and how the car with the LiDAR drives.

    Attributes:
        key: the whole numbers it was drawn from; whatever else is drawn for it starts from them.
        users: cars, pedestrians and cyclists. They do not reach into each other at the time 0.
        fixtures: walls, poles and bushes, about the world's origin, with the heading of each.
        speed: of the car with the LiDAR, metres a second.
        turn: of it, radians a second.
    """

    key: tuple[int, ...]
    users: tuple[RoadUser, ...]
    fixtures: tuple[tuple[Solid, float], ...]
    speed: float
    turn: float

    def generator(self, *purpose: int) -> np.random.Generator:
        """Random numbers that belong to this street and a purpose."""
        return np.random.default_rng((*self.key, *purpose))

    def pose(self, time: float) -> Float[np.ndarray, "4 4"]:
        """From the LiDAR at this time into the world."""
        x, y, heading = along_arc((0.0, 0.0, 0.0), self.speed, self.turn, time)
        return upright(x, y, 0.0, heading)


def sample_street(split: Split, index: int, seed: int = 0, objects: tuple[int, int] = (6, 12)) -> Street:
    """Street `index` of a split.

    Args:
        split: streets of different splits are drawn from different seeds.
        objects: least and greatest number of road users. On a street that is full there are fewer than were drawn.

    Raises:
        ValueError: no such split, or an impossible number of objects.
    """
    low, high = objects
    if not 1 <= low <= high <= MAX_USERS:
        raise ValueError(f"A street has 1 to {MAX_USERS} road users, the lesser number first; not {low} to {high}.")
    key = (seed, split_number(split), index, low, high, _STREET)
    rng = np.random.default_rng(key)
    taken: list[tuple[float, float, float]] = []
    users = [each for _ in range(int(rng.integers(low, high + 1))) if (each := _user(rng, taken)) is not None]
    fixtures = [each for _ in range(int(rng.integers(6, 12))) if (each := _fixture(rng, taken)) is not None]
    speed, turn = float(rng.uniform(0, 12)), float(rng.normal(0, 0.08))
    return Street(key, tuple(users), tuple(fixtures), speed, turn)


def along_arc(start: tuple[float, float, float], speed: float, turn: float, time: float) -> tuple[float, float, float]:
    """x, y and heading of what drives an arc, from x, y and heading at the time 0."""
    x, y, heading = start
    way, half = speed * time, turn * time / 2
    chord = way * np.sinc(half / np.pi)
    return float(x + chord * np.cos(heading + half)), float(y + chord * np.sin(heading + half)), heading + turn * time


def upright(x: float, y: float, z: float, heading: float) -> Float[np.ndarray, "4 4"]:
    """The pose of something that stands upright."""
    cosine, sine = np.cos(heading), np.sin(heading)
    return np.array([[cosine, -sine, 0, x], [sine, cosine, 0, y], [0, 0, 1, z], [0, 0, 0, 1]])


def _user(rng: np.random.Generator, taken: list[tuple[float, float, float]]) -> RoadUser | None:
    name = ROAD_USERS[int(rng.choice(3, p=(0.4, 0.35, 0.25)))]
    length, width, height = (side * float(rng.uniform(1 - SPREAD, 1 + SPREAD)) for side in SIDES[name])
    place = _place(rng, taken, max(length, width) / 2 + 0.3)
    speed = float(rng.uniform(*SPEEDS[name]))
    heading, turn = float(rng.uniform(-np.pi, np.pi)), float(rng.normal(0, 0.2))
    if name != "Pedestrian":  # along the street or, sometimes, across it
        heading = float(rng.choice([0.0, np.pi, np.pi / 2, -np.pi / 2], p=(0.4, 0.4, 0.1, 0.1)) + rng.normal(0, 0.15))
    if name == "Car" and rng.random() < PARKED:
        speed = turn = 0.0
    return None if place is None else RoadUser(name, place, (length, width, height), heading, speed, turn)


def _fixture(rng: np.random.Generator, taken: list[tuple[float, float, float]]) -> tuple[Solid, float] | None:
    """A wall along the street, a pole as thin as an arm, or a bush about as large as a pedestrian."""
    kind = int(rng.integers(3))
    if kind == 0:
        length, height, side = float(rng.uniform(6, 20)), float(rng.uniform(2, 5)), float(rng.choice([-1, 1]))
        place = (float(rng.uniform(-BEHIND, FARTHEST)), side * float(rng.uniform(18, 30)))
        return Solid(False, (*place, height / 2 - MOUNTED), (length, 0.4, height)), float(rng.normal(0, 0.1))
    radius = float(rng.uniform(0.05, 0.12) if kind == 1 else rng.uniform(0.3, 0.9))
    height = float(rng.uniform(2.5, 5) if kind == 1 else rng.uniform(0.5, 1.6))
    place = _place(rng, taken, radius + 0.2)
    if place is None:
        return None
    return Solid(True, (*place, height / 2 - MOUNTED), (2 * radius, 2 * radius, height)), 0.0


def _place(
    rng: np.random.Generator, taken: list[tuple[float, float, float]], reach: float
) -> tuple[float, float] | None:
    """Somewhere that is free, mostly along the street; None where nothing was found."""
    for _ in range(_TRIES):
        x, y = float(rng.uniform(-BEHIND, FARTHEST)), float(np.clip(rng.normal(0, 8), -16, 16))
        free = all(np.hypot(x - other[0], y - other[1]) > reach + other[2] for other in taken)
        if free and np.hypot(x, y) - reach > NEAREST:
            taken.append((x, y, reach))
            return x, y
    return None
