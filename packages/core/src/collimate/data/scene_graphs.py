"""Scene graphs: objects with boxes, and what is said of pairs of them, as the field `graph.json` of a sample has them.

    {"objects": [{"id": 3, "label": "chair", "center": [x, y, z], "size": [dx, dy, dz], "attributes": ["red"]}, ...],
     "relations": [[3, "standing on", 1], ...]}

A relation is [subject, predicate, object], by ids: object 3 is standing on object 1. A pair may have several. Metres, z
up, axis-aligned boxes: `center` the middle of a box, `size` its full extents.

Spatial relations follow from the boxes. They are seen by an observer who looks along +y: x grows to the right, y away.

Shape legend: N objects.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from collimate.data.decoding import Undecodable, check_text, decode_json

GRAPH = "graph.json"
Triple = tuple[float, float, float]

CONVERSE = {
    "left of": "right of",
    "right of": "left of",
    "in front of": "behind",
    "behind": "in front of",
    "above": "below",
    "below": "above",
    "standing on": "supporting",
    "supporting": "standing on",
    "near": "near",
}
"""Each spatial relation, and the one that holds the other way round."""

# Tolerances of spatial relations, in metres; ours.
APART = 0.3  # of centres: nearer ones are neither left nor right of each other
CONTACT = 0.05  # between a thing and what it stands on, as scans and segmentations are that inexact
NEAR = 0.5  # of gaps between boxes
OVERLAP = 0.3  # of the smaller footprint: less of it lies over a thing by chance


@dataclass(frozen=True)
class GraphObject:
    """A node.

    Attributes:
        id: by which relations name it, from 0 to 2^24 - 1.
        label: its class.
        center, size: of its box, in metres.
        attributes: words that may stand before the label, in their order: ("small", "red").
    """

    id: int
    label: str
    center: Triple
    size: Triple
    attributes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Attributes and label: `small red chair`."""
        return " ".join((*self.attributes, self.label))


class GraphRelation(NamedTuple):
    """An edge: `subject` is `predicate` `object`, both by id."""

    subject: int
    predicate: str
    object: int


@dataclass(frozen=True)
class SceneGraph:
    """Objects of different ids, and relations between them. There may be none of either."""

    objects: tuple[GraphObject, ...]
    relations: tuple[GraphRelation, ...] = ()

    def object(self, number: int) -> GraphObject:
        """The object of an id.

        Raises:
            KeyError: there is none.
        """
        return {each.id: each for each in self.objects}[number]

    @property
    def centers(self) -> Float[np.ndarray, "N 3"]:
        return np.array([each.center for each in self.objects], np.float64).reshape(-1, 3)

    @property
    def sizes(self) -> Float[np.ndarray, "N 3"]:
        return np.array([each.size for each in self.objects], np.float64).reshape(-1, 3)

    def with_spatial_relations(self, predicates: Collection[str] = tuple(CONVERSE)) -> SceneGraph:
        """The same with the relations that follow from its boxes, after those that it has."""
        ids = [each.id for each in self.objects]
        found = [
            GraphRelation(ids[i], name, ids[j])
            for i, name, j in spatial_relations(self.centers, self.sizes)
            if name in predicates
        ]
        return SceneGraph(self.objects, tuple(dict.fromkeys((*self.relations, *found))))

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `scene_graph_of` takes it."""
        objects = [
            {
                "id": each.id,
                "label": each.label,
                "center": list(each.center),
                "size": list(each.size),
                "attributes": list(each.attributes),
            }
            for each in self.objects
        ]
        return {"objects": objects, "relations": [list(relation) for relation in self.relations]}


def scene_graph_of(value: Any, predicates: Collection[str] | None = None) -> SceneGraph:
    """The graph of a decoded field.

    Args:
        value: what `graph.json` holds, or the same as a string.
        predicates: those that may occur; any if None.

    Raises:
        Undecodable: it is no graph, two objects have one id, a box is damaged, a relation names an object that there is
            not, or one and the same object twice, or has an unknown predicate; says which.
    """
    if isinstance(value, str):
        value = decode_json(value.encode())
    if not isinstance(value, Mapping) or not isinstance(value.get("objects"), Sequence):
        raise Undecodable("not a scene graph", f"expected {{objects: [...], relations: [...]}}, got {str(value)[:60]}")
    objects = tuple(_object(f"object {number}", each) for number, each in enumerate(value["objects"]))
    ids = {each.id for each in objects}
    if len(ids) < len(objects):
        twice = next(each.id for number, each in enumerate(objects) if each.id in [o.id for o in objects[:number]])
        raise Undecodable("object twice", f"two objects have the id {twice}")
    relations = value.get("relations") or []
    return SceneGraph(
        objects,
        tuple(_relation(f"relation {number}", each, ids, predicates) for number, each in enumerate(relations)),
    )


def spatial_relations(centers: Float[np.ndarray, "N 3"], sizes: Float[np.ndarray, "N 3"]) -> list[tuple[int, str, int]]:
    """Every spatial relation between boxes, as (subject, predicate, object) by place, in both directions.

    - `left of`, `right of`, `in front of`, `behind`: the centres are `APART`, and further so along this axis than along
      the other horizontal one, so that a pair has one of them at most.
    - `above`, `below`: the footprints overlap by `OVERLAP` of the smaller one, and the one begins where the other ends
      or higher; it is `standing on` the other, and this `supporting` it, if the two are within `CONTACT`.
    - `near`: the gap between the boxes is less than `NEAR`, and neither stands on the other.

    Args:
        centers, sizes: of the boxes, in metres.
    """
    low, high = centers - sizes / 2, centers + sizes / 2
    dx, dy, _ = np.moveaxis(centers[:, None] - centers, 2, 0)  # of the subject from the object
    apart_x, apart_y = np.abs(dx) > APART, np.abs(dy) > APART
    gaps = np.maximum(np.maximum(low[:, None] - high, low - high[:, None]), 0)  # along each axis
    over = _footprints_overlap(low, high)
    rise = low[:, None, 2] - high[:, 2]  # from the top of the object to the bottom of the subject
    stands = over & (np.abs(rise) <= CONTACT) & (centers[:, None, 2] > centers[:, 2])
    above = over & (rise > CONTACT)
    holds = {
        "left of": (dx < 0) & apart_x & (np.abs(dx) > np.abs(dy)),
        "right of": (dx > 0) & apart_x & (np.abs(dx) > np.abs(dy)),
        "in front of": (dy < 0) & apart_y & (np.abs(dy) >= np.abs(dx)),
        "behind": (dy > 0) & apart_y & (np.abs(dy) >= np.abs(dx)),
        "above": above,
        "below": above.T,
        "standing on": stands,
        "supporting": stands.T,
        "near": (np.linalg.norm(gaps, axis=2) < NEAR) & ~stands & ~stands.T & ~np.eye(len(centers), dtype=bool),
    }
    return [(int(i), name, int(j)) for name, matrix in holds.items() for i, j in np.argwhere(matrix)]


def scene_arrays(
    graph: SceneGraph,
    xyz: Float[np.ndarray, "P 3"],
    rgb: np.ndarray,
    instance: np.ndarray,
) -> dict[str, np.ndarray]:
    """A scene as the field `scene.npz` of a sample has it: its points, and its graph as a table.

    `xyz` (P, 3) float32 in metres, `rgb` (P, 3) uint8, `instance` (P,) int64, the id of each point's object, -1 for
    none; `ids` (N,) int64, `labels` (N,) strings, `boxes` (N, 6) float32, centre and size, and `edges` (2, R) int64,
    subject and object of each related pair by its place in the table, each pair once.

    Raises:
        ValueError: the arrays are not of the same points.
    """
    if not len(xyz) == len(rgb) == len(instance):
        raise ValueError(f"A point has a place, a colour and an object; got {len(xyz)}, {len(rgb)}, {len(instance)}.")
    place = {each.id: number for number, each in enumerate(graph.objects)}
    pairs = dict.fromkeys((place[each.subject], place[each.object]) for each in graph.relations)
    return {
        "xyz": np.asarray(xyz, np.float32),
        "rgb": np.asarray(rgb, np.uint8),
        "instance": np.asarray(instance, np.int64),
        "ids": np.array(list(place), np.int64),
        "labels": np.array([each.label for each in graph.objects], np.str_),
        "boxes": np.concatenate([graph.centers, graph.sizes], 1).astype(np.float32),
        "edges": np.array(list(pairs), np.int64).reshape(-1, 2).T,
    }


# One object, one relation -----------------------------------------------------------------------------------------


def _object(which: str, each: Any) -> GraphObject:
    if not isinstance(each, Mapping) or not {"id", "label", "center", "size"} <= each.keys():
        raise Undecodable("not an object", f"{which}: expected id, label, center and size; got {str(each)[:80]}")
    try:
        number = int(each["id"])
    except (OverflowError, TypeError, ValueError):
        number = -1
    if not 0 <= number < 2**24:
        raise Undecodable("object without number", f"{which}: the id is a whole number from 0; got {each['id']!r}")
    center, size = (_triple(f"{which}: {name}", each[name]) for name in ("center", "size"))
    if min(size) < 0:
        detail = (
            f"{which}: sizes are full extents in metres, from 0; got {list(size)}: take the far edge less the near one"
        )
        raise Undecodable("inverted box", detail)
    attributes = tuple(check_text(str(word)) for word in each.get("attributes") or ())
    return GraphObject(number, check_text(str(each["label"])), center, size, attributes)


def _triple(which: str, value: Any) -> Triple:
    try:
        x, y, z = map(float, value)
    except (OverflowError, TypeError, ValueError):
        x = y = z = np.nan
    if not np.isfinite([x, y, z]).all():
        raise Undecodable("box is no three numbers", f"{which} is {str(value)[:60]}")
    return x, y, z


def _relation(which: str, each: Any, ids: Collection[int], predicates: Collection[str] | None) -> GraphRelation:
    if isinstance(each, str) or not isinstance(each, Sequence) or len(each) != 3:
        raise Undecodable("not a relation", f"{which}: expected [subject, predicate, object], got {str(each)[:60]}")
    subject, predicate, target = each
    if missing := [end for end in (subject, target) if end not in ids]:
        detail = f"{which}: {list(each)} names object {missing[0]!r}, which is not there; mend the id, or leave it out"
        raise Undecodable("dangling relation", detail)
    if subject == target:
        raise Undecodable("relation of an object to itself", f"{which}: {list(each)}; leave it out")
    if predicates is not None and predicate not in predicates:
        known = ", ".join(list(predicates)[:8])
        raise Undecodable("unknown predicate", f"{which}: {predicate!r} is none of {known}, ...")
    return GraphRelation(int(subject), check_text(str(predicate)), int(target))


def _footprints_overlap(low: np.ndarray, high: np.ndarray) -> Bool[np.ndarray, "N N"]:
    shared = np.minimum(high[:, None, :2], high[:, :2]) - np.maximum(low[:, None, :2], low[:, :2])
    area = np.maximum(shared, 0).prod(2)
    footprint = (high - low)[:, :2].prod(1)
    return area > OVERLAP * np.minimum(footprint[:, None], footprint)
