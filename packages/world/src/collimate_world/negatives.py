"""Captions that are wrong by one change of attributes: hard negatives, for what a model knows beyond the words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from collimate_world.captions import KINDS, caption
from collimate_world.scene import COLOURS, SHAPES, Scene, Thing

NegativeKind = Literal["replace_colour", "replace_shape", "swap_colour"]
NEGATIVE_KINDS: tuple[NegativeKind, ...] = ("replace_colour", "replace_shape", "swap_colour")


@dataclass(frozen=True)
class Negative:
    """A caption that is true of a scene, and one that is not."""

    kind: NegativeKind
    caption: str
    negative: str


def negatives(scene: Scene, variant: int = 0) -> list[Negative]:
    """The scene's short caption beside one of each kind that is wrong; another `variant` words and changes it anew.

    - `replace_colour`, `replace_shape`: one word is another colour or shape, and no object is like that;
    - `swap_colour`: two objects of different shape have each other's colour: the same words in another order. It is
      missing where no two objects can swap.
    """
    right = caption(scene, "short", variant).text
    rng = scene.generator(len(KINDS), variant)  # captions draw from the numbers of their kinds
    here = {(thing.colour, thing.shape) for thing in scene.things}
    found = []
    for kind, changes in _CHANGES.items():
        wrong = [
            change for change in changes(scene) if not here & {(thing.colour, thing.shape) for thing in change.values()}
        ]
        if wrong:
            change = wrong[int(rng.integers(len(wrong)))]
            things = tuple(change.get(i, thing) for i, thing in enumerate(scene.things))
            found.append(Negative(kind, right, caption(replace(scene, things=things), "short", variant).text))
    return found


Change = dict[int, Thing]
"""The number of an object -> what it becomes."""


def _replace_colour(scene: Scene) -> list[Change]:
    return [{i: replace(thing, colour=colour)} for i, thing in enumerate(scene.things) for colour in COLOURS]


def _replace_shape(scene: Scene) -> list[Change]:
    return [{i: replace(thing, shape=shape)} for i, thing in enumerate(scene.things) for shape in SHAPES]


def _swap_colour(scene: Scene) -> list[Change]:
    return [
        {i: replace(a, colour=b.colour), j: replace(b, colour=a.colour)}
        for (i, a), (j, b) in combinations(enumerate(scene.things), 2)
    ]


_CHANGES: dict[NegativeKind, Callable[[Scene], list[Change]]] = {
    "replace_colour": _replace_colour,
    "replace_shape": _replace_shape,
    "swap_colour": _swap_colour,
}
