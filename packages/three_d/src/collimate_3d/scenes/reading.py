"""What readers of scanned rooms share: labelled points from PLY files, boxes of objects, JSON that says what it lacks.

Shape legend: P points, N objects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt8

from collimate.data.decoding import Undecodable
from collimate.data.scene_graphs import GraphObject, GraphRelation, SceneGraph, Triple
from collimate_3d.formats.columns import COLOURS
from collimate_3d.reading import read_points


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged; names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


class Vertices(NamedTuple):
    """The points of a scanned mesh: places in metres, colours, and one more field of each."""

    xyz: Float[np.ndarray, "P 3"]
    rgb: UInt8[np.ndarray, "P 3"]
    field: Int64[np.ndarray, " P"]


def read_vertices(path: Path, field: str | None = None) -> Vertices:
    """The vertices of a PLY file, with a field of whole numbers, or their places in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no PLY file, or lacks a field; says which it has.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}.")
    try:
        cloud = read_points(path)
    except Undecodable as error:
        raise ValueError(f"{path}: {error}") from error
    wanted = [*COLOURS, *([] if field is None else [field])]
    if lacking := [name for name in wanted if name not in cloud.fields]:
        raise ValueError(f"{path} has no {lacking[0]!r} at its vertices; it has {', '.join(cloud.fields) or 'none'}.")
    columns = {name: cloud.features[:, cloud.fields.index(name)] for name in wanted}
    rgb = np.stack([columns[name] for name in COLOURS], 1) * 255
    own = np.arange(len(cloud)) if field is None else columns[field].astype(np.int64)
    return Vertices(cloud.xyz.astype(np.float64) + cloud.origin, rgb.round().astype(np.uint8), own)


def graph_from_points(
    xyz: Float[np.ndarray, "P 3"],
    instance: Int64[np.ndarray, " P"],
    labels: Mapping[int, str],
    attributes: Mapping[int, Sequence[str]] | None = None,
    relations: Sequence[GraphRelation] = (),
) -> SceneGraph:
    """A graph whose boxes are the axis-aligned hulls of objects' points. Objects without points are left out.

    So are relations that lead to these, and those of an object to itself, of which 3DSSG has a few.

    Args:
        instance: the id of each point's object.
        labels: id -> class, for all objects.
        attributes: id -> words that may stand before the label.
        relations: by ids.
    """
    order = np.argsort(instance, kind="stable")
    ids, starts = np.unique(instance[order], return_index=True)
    parts = dict(zip(ids.tolist(), np.split(xyz[order], starts[1:]), strict=True)) if len(ids) else {}
    objects = []
    for number, label in labels.items():
        if number in parts:
            low, high = parts[number].min(0), parts[number].max(0)
            words = tuple((attributes or {}).get(number, ()))
            objects.append(GraphObject(number, label, _triple((low + high) / 2), _triple(high - low), words))
    there = {each.id for each in objects}
    kept = [each for each in relations if {each.subject, each.object} <= there and each.subject != each.object]
    return SceneGraph(tuple(objects), tuple(dict.fromkeys(kept)))


def _triple(values: np.ndarray) -> Triple:
    x, y, z = (round(float(value), 6) for value in values)
    return x, y, z
