"""Relations between the objects of a scene: each is a fact of geometry, with a margin that makes it visible."""

from __future__ import annotations

from collections.abc import Callable
from math import dist
from typing import NamedTuple

from collimate_world.scene import Scene, Thing

CONVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
    "larger than": "smaller than",
    "smaller than": "larger than",
    "near": "near",
}
"""relation -> the relation that holds the other way round."""


class Relation(NamedTuple):
    """`things[subject]` is `name` `things[target]`."""

    subject: int
    name: str
    target: int


def relations(scene: Scene) -> list[Relation]:
    """Every relation that holds, in both directions."""
    return [
        Relation(i, name, j)
        for i, a in enumerate(scene.things)
        for j, b in enumerate(scene.things)
        if i != j
        for name, holds in _RULES.items()
        if holds(a, b)
    ]


# Margins are ours, in metres: about the least that a 64 pixel picture shows.
_RULES: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": lambda a, b: a.position[0] < b.position[0] - 0.4,
    "right of": lambda a, b: a.position[0] > b.position[0] + 0.4,
    "above": lambda a, b: a.position[2] > b.position[2] + 0.4,
    "below": lambda a, b: a.position[2] < b.position[2] - 0.4,
    "in front of": lambda a, b: a.position[1] < b.position[1] - 0.5,
    "behind": lambda a, b: a.position[1] > b.position[1] + 0.5,
    "larger than": lambda a, b: a.radius > 1.2 * b.radius,
    "smaller than": lambda a, b: b.radius > 1.2 * a.radius,
    "near": lambda a, b: dist(a.position, b.position) < a.radius + b.radius + 0.3,
}
