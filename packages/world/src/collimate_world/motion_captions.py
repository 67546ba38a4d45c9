"""What is said of a moving scene."""

from __future__ import annotations

from typing import Literal

from collimate_world.captions import Caption, phrase, pick
from collimate_world.motion import motion
from collimate_world.scene import Scene

MotionKind = Literal["short", "long"]
MOTION_KINDS: tuple[MotionKind, ...] = ("short", "long")


def motion_caption(scene: Scene, kind: MotionKind, variant: int = 0) -> Caption:
    """How the objects of a scene move; another `variant` words it anew.

    - `short`: colour, shape and motion of every object, in any order: `the red circle moves left`.
    - `long`: with sizes, textures and the background.

    Raises:
        ValueError: no such kind.
    """
    if kind not in MOTION_KINDS:
        raise ValueError(f"Captions of motion are {', '.join(MOTION_KINDS)}; not {kind!r}.")
    rng = scene.generator(_WORDS + MOTION_KINDS.index(kind), variant)
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    if kind == "short":
        told = [f"the {thing.name} {motion(thing)}" for thing in things]
        return Caption(kind, pick(rng, _FRAMES).format(" and ".join(told)))
    told = [f"{phrase(thing)} {motion(thing)}" for thing in things]
    text = " while ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
    return Caption(kind, f"{text}, before a {scene.background} background")


_WORDS = 202  # of the scene's random numbers
_FRAMES = ("{}", "in this video {}", "we see how {}", "watch: {}")
