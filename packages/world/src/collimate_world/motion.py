"""Scenes that move: each object has a velocity, and keeps in full view as long as the clip lasts.

A moving scene is the still scene of the same split, seed and index, whose objects were given velocities; so the motion
of an object tells nothing of its colour, shape or place. Time is in seconds, from 0 at the beginning of a clip.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from collimate_world.scene import CAMERA_DISTANCE, VIEW, Point, Scene, Thing

MOTIONS: dict[str, Point] = {
    "moves left": (-1.0, 0.0, 0.0),
    "moves right": (1.0, 0.0, 0.0),
    "moves up": (0.0, 0.0, 1.0),
    "moves down": (0.0, 0.0, -1.0),
    "comes nearer": (0.0, -1.0, 0.0),
    "goes away": (0.0, 1.0, 0.0),
    "stays still": (0.0, 0.0, 0.0),
}
"""In words -> the direction."""

OPPOSITE = {
    "moves left": "moves right",
    "moves right": "moves left",
    "moves up": "moves down",
    "moves down": "moves up",
    "comes nearer": "goes away",
    "goes away": "comes nearer",
    "stays still": "stays still",
}
"""What a clip shows when it is played backwards."""

PATH, DEPTH_PATH = (0.7, 1.3), (2.0, 3.0)  # metres, least and greatest: across the view, and away from the camera
_NEAREST = -1.0  # metres: no object comes nearer than that
_MARGIN = 0.12  # metres, as for still scenes
_VELOCITIES = 201  # of the scene's random numbers; those next to it are for the captions


def moving(scene: Scene, seconds: float) -> Scene:
    """A still scene whose objects move: each has a velocity, and its place is that at time 0.

    Args:
        seconds: how long the clip lasts. Paths are as long in short clips as in long ones.

    Raises:
        ValueError: it does not last.
    """
    if not seconds > 0:
        raise ValueError(f"A clip lasts some seconds, not {seconds}.")
    rng = scene.generator(_VELOCITIES)
    names = rng.choice(list(MOTIONS), len(scene.things)).tolist()
    things = (_sent(thing, name, seconds, rng) for thing, name in zip(scene.things, names, strict=True))
    return replace(scene, things=tuple(things))


def motion(thing: Thing) -> str:
    """The name of an object's motion.

    Raises:
        ValueError: it moves otherwise than any of `MOTIONS`.
    """
    direction = tuple(float(np.sign(speed)) for speed in thing.velocity)
    for name, wanted in MOTIONS.items():
        if direction == wanted:
            return name
    raise ValueError(f"No motion of the world goes {thing.velocity}.")


def at(scene: Scene, time: float) -> Scene:
    """The scene after some seconds."""
    return replace(scene, things=tuple(replace(thing, position=_place(thing, time)) for thing in scene.things))


def _place(thing: Thing, time: float) -> Point:
    x, y, z = (place + time * speed for place, speed in zip(thing.position, thing.velocity, strict=True))
    return x, y, z


def _sent(thing: Thing, name: str, seconds: float, rng: np.random.Generator) -> Thing:
    """The object with a velocity, where its path lies in full view, as near as may be to where it was."""
    direction = np.array(MOTIONS[name])
    path = rng.uniform(*(DEPTH_PATH if direction[1] else PATH))
    middle = np.array(thing.position)
    if direction[1]:
        middle[1] = max(middle[1], _NEAREST + path / 2)
    nearest = CAMERA_DISTANCE + middle[1] - abs(direction[1]) * path / 2
    free = max(0.0, VIEW / 2 * nearest / CAMERA_DISTANCE - thing.radius - _MARGIN)  # from the middle, at that distance
    for axis, centre in ((0, 0.0), (2, VIEW / 2)):
        reach = max(0.0, free - abs(direction[axis]) * path / 2)
        middle[axis] = centre + np.clip(middle[axis] - centre, -reach, reach)
    start = middle - direction * path / 2
    x, y, z = (float(each) for each in start)
    u, v, w = (float(each) for each in direction * path / seconds)
    return replace(thing, position=(x, y, z), velocity=(u, v, w))
