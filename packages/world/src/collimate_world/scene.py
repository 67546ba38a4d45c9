"""The scene: what every sensor of the world looks at.

Coordinates are metres: x to the right, y away from the camera, z up. The camera stands `CAMERA_DISTANCE` before y = 0
at half the height of the `VIEW`, and sees `VIEW` metres of the plane y = 0 across and upwards.

A scene is a pure function of (split, seed, index) and of what is asked for, so any scene can be made at any time,
anywhere, without making another first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

Split = Literal["train", "val", "test"]
Combinations = Literal["seen", "held_out", "all"]
Point = tuple[float, float, float]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 36),
    "orange": (245, 135, 15),
    "yellow": (246, 224, 40),
    "green": (40, 160, 60),
    "cyan": (30, 205, 215),
    "blue": (35, 70, 220),
    "purple": (120, 40, 160),
    "pink": (250, 125, 185),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
SIZES: dict[str, float] = {"small": 0.46, "medium": 0.66, "large": 0.95}
"""name -> radius in metres; an object's own radius is within `SIZE_SPREAD` of it."""
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (236, 236, 232),
    "grey": (140, 142, 146),
    "brown": (92, 74, 62),
    "black": (22, 22, 26),
}

HELD_OUT = frozenset(
    (colour, shape)
    for i, colour in enumerate(COLOURS)
    for j, shape in enumerate(SHAPES)
    if (3 * i + j) % 8 == 0  # ours: each colour and each shape misses one partner, and no two the same one
)
"""The 8 of 64 (colour, shape) combinations that never occur in the training split."""

HELD_OUT_SIZES = {shape: list(SIZES)[j % len(SIZES)] for j, shape in enumerate(SHAPES)}
"""shape -> the size in which it never occurs where training is on sounds, which tell the two."""

CAMERA_DISTANCE = 6.0
VIEW = 4.0
DEPTH = 2.0
SIZE_SPREAD = 0.08
MAX_OBJECTS = 6  # ours: more do not fit into the view without hiding each other

SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2}
_TRIES = 24
_CLEARANCE = 0.95  # of the sum of two radii: neighbours may touch and hide a little of each other
_MARGIN = 0.12  # metres between an object's radius and the edge of the view: corners stand out of the radius a little


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        colour, shape, size, texture: names out of `COLOURS`, `SHAPES`, `SIZES`, `TEXTURES`.
        position: of its centre, in metres.
        radius: in metres.
        orientation: radians about the y axis, counter-clockwise as the camera sees it.
        velocity: metres per second.
    """

    colour: str
    shape: str
    size: str
    texture: str
    position: Point
    radius: float
    orientation: float = 0.0
    velocity: Point = (0.0, 0.0, 0.0)

    @property
    def name(self) -> str:
        """Colour and shape: what tells an object from the others of its scene, and its class."""
        return f"{self.colour} {self.shape}"

    @property
    def distance(self) -> float:
        """From the plane of the camera, in metres."""
        return CAMERA_DISTANCE + self.position[1]


@dataclass(frozen=True)
class Light:
    """A far light in the plane of the view.

    Attributes:
        brightness: the share of each colour that is left.
        direction: radians; where it comes from, counter-clockwise from the right.
    """

    brightness: float
    direction: float


@dataclass(frozen=True)
class Scene:
    """Objects before a background. No two share both colour and shape.

    Attributes:
        key: the whole numbers it was drawn from; whatever else is drawn for the scene starts from them.
    """

    key: tuple[int, ...]
    things: tuple[Thing, ...]
    background: str
    light: Light

    def generator(self, *purpose: int) -> np.random.Generator:
        """Random numbers that belong to this scene and a purpose."""
        return np.random.default_rng((*self.key, *purpose))


def split_number(split: str) -> int:
    """What tells a split's random numbers from another's.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"The world has the splits {', '.join(SPLITS)}, not {split!r}: name one of these.")
    return SPLITS[split]


def combinations_of(split: str, combinations: str | None, kind: str) -> Combinations:
    """Those that a split is drawn from; by default the ones seen in training for `train`, else all.

    Args:
        kind: of what they are combinations, for the message.

    Raises:
        ValueError: they are none of the three, or training would see what is held out.
    """
    if combinations not in (None, "seen", "held_out", "all"):
        raise ValueError(f"Combinations are seen, held_out or all; not {combinations!r}.")
    if split == "train" and combinations not in (None, "seen"):
        raise ValueError(f"The training split never holds the held-out combinations of {kind}.")
    return cast(Combinations, combinations or ("seen" if split == "train" else "all"))


def sample_scene(
    split: Split,
    index: int,
    seed: int = 0,
    objects: tuple[int, int] = (1, 1),
    combinations: Combinations | None = None,
    sizes_by_shape: Combinations = "all",
) -> Scene:
    """Scene `index` of a split.

    Args:
        split: scenes of different splits are drawn from different seeds.
        objects: least and greatest number of objects.
        combinations: of colour and shape, to draw from; those seen in training for `train`, else all, if None.
        sizes_by_shape: the combinations of size and shape to draw from, of which `HELD_OUT_SIZES` are held out.

    Raises:
        ValueError: no such split, an impossible number of objects, or training on what is held out.
    """
    low, high = objects
    if not 1 <= low <= high <= MAX_OBJECTS:
        raise ValueError(f"A scene has 1 to {MAX_OBJECTS} objects, the lesser number first; not {low} to {high}.")
    allowed = _COMBINATIONS[combinations_of(split, combinations, "colour and shape")]

    key = (seed, split_number(split), index, low, high)
    rng = np.random.default_rng(key)
    count = int(rng.integers(low, high + 1))
    pairs = [allowed[i] for i in rng.choice(len(allowed), count, replace=False)]
    sizes = _sizes([shape for _, shape in pairs], sizes_by_shape, rng)
    textures = rng.choice(TEXTURES, count, p=(0.6, 0.2, 0.2))
    radii = [SIZES[size] * spread for size, spread in zip(sizes, _spread(rng, count), strict=True)]
    tilts = rng.uniform(-0.35, 0.35, count)
    things = tuple(
        Thing(colour, shape, size, str(texture), position, float(radius), float(tilt))
        for (colour, shape), size, texture, position, radius, tilt in zip(
            pairs, sizes, textures, _positions(radii, rng), radii, tilts, strict=True
        )
    )
    light = Light(float(rng.uniform(0.8, 1.0)), float(rng.uniform(0, 2 * np.pi)))
    return Scene(key, things, str(rng.choice(list(BACKGROUNDS))), light)


def projection(thing: Thing) -> tuple[float, float, float]:
    """Where the camera sees an object: x and z of its centre from the middle of the view, and its radius.

    All in metres on the plane y = 0.
    """
    scale = CAMERA_DISTANCE / thing.distance
    x, _, z = thing.position
    return x * scale, (z - VIEW / 2) * scale, thing.radius * scale


def _sizes(shapes: list[str], combinations: Combinations, rng: np.random.Generator) -> list[str]:
    if combinations == "all":
        return rng.choice(list(SIZES), len(shapes)).tolist()
    if combinations == "held_out":
        return [HELD_OUT_SIZES[shape] for shape in shapes]
    return [str(rng.choice([size for size in SIZES if size != HELD_OUT_SIZES[shape]])) for shape in shapes]


def _spread(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.uniform(1 - SIZE_SPREAD, 1 + SIZE_SPREAD, count)


def _positions(radii: list[float], rng: np.random.Generator) -> list[Point]:
    """Places in full view that hide as little as possible of each other."""
    seen = np.empty((0, 3))  # x, z and radius on the plane y = 0
    positions: list[Point] = []
    for radius in radii:
        depth = rng.uniform(0, DEPTH, _TRIES)
        scale = CAMERA_DISTANCE / (CAMERA_DISTANCE + depth)
        reach = VIEW / 2 - radius * scale - _MARGIN
        x, z = rng.uniform(-1, 1, (2, _TRIES)) * reach
        gaps = np.hypot(x[:, None] - seen[:, 0], z[:, None] - seen[:, 1])
        gaps -= _CLEARANCE * (radius * scale[:, None] + seen[:, 2])
        clearance = gaps.min(axis=1, initial=np.inf)
        best = int(np.argmax(clearance >= 0)) if (clearance >= 0).any() else int(np.argmax(clearance))
        seen = np.vstack([seen, (x[best], z[best], radius * scale[best])])
        positions.append((float(x[best] / scale[best]), float(depth[best]), float(z[best] / scale[best] + VIEW / 2)))
    return positions


_ALL = [(colour, shape) for colour in COLOURS for shape in SHAPES]
_COMBINATIONS: dict[str, list[tuple[str, str]]] = {
    "all": _ALL,
    "seen": [pair for pair in _ALL if pair not in HELD_OUT],
    "held_out": [pair for pair in _ALL if pair in HELD_OUT],
}
