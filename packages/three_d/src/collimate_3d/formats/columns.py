"""Columns of a file as a point cloud: names, and the units of colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from collimate.data.decoding import Undecodable
from collimate_3d.points import PointCloud

COLOURS = ("red", "green", "blue")
NORMALS = ("nx", "ny", "nz")
ALIASES = {
    **{f"{prefix}{name}": name for prefix in ("diffuse_", "vertex_") for name in COLOURS},
    **dict(zip(("r", "g", "b"), COLOURS, strict=True)),
    **dict(zip(("normal_x", "normal_y", "normal_z"), NORMALS, strict=True)),
}


def cloud_of_columns(columns: Mapping[str, np.ndarray], origin: Sequence[float] | None = None) -> PointCloud:
    """A cloud of named columns, of which x, y and z are positions in metres and all others features, by their names.

    Colours count from 0 to 1: integers by their type's range, though 16-bit ones that never exceed 255 as bytes, which
    some programs write.

    Args:
        origin: see `PointCloud.of`.

    Raises:
        Undecodable: there is no x, y or z, or no point.
    """
    named = {ALIASES.get(name.lower(), name): values for name, values in columns.items()}
    places = {axis: named.pop(axis) for axis in list(named) if axis in ("x", "y", "z")}
    if len(places) < 3:
        raise Undecodable("no positions", f"x, y and z are needed; there are {', '.join(columns) or 'no columns'}")
    xyz = np.stack([places[axis] for axis in ("x", "y", "z")], 1)
    if not len(xyz):
        raise Undecodable("no points", "expected one or more")
    fields = {name: _in_units(name, values) for name, values in named.items()}
    features = np.stack(list(fields.values()), 1) if fields else None
    cloud = PointCloud.of(xyz, features, tuple(fields), origin)
    if not len(cloud):
        raise Undecodable("no points", f"none of {len(xyz)} has coordinates that are finite")
    return cloud


def colours_of(values: np.ndarray) -> np.ndarray:
    """Colours from 0 to 1, float32.

    Raises:
        Undecodable: floating-point colours exceed 1, so that nothing says how far they count.
    """
    if np.issubdtype(values.dtype, np.integer):
        most = np.iinfo(values.dtype).max
        if most > 255 and (not values.size or values.max() <= 255):
            most = 255
        return (values / np.float32(most)).astype(np.float32)
    if values.size and np.nanmax(values) > 1:
        raise Undecodable("colours beyond 1", "colours of real numbers count from 0 to 1: divide them, or store bytes")
    return values.astype(np.float32)


def _in_units(name: str, values: np.ndarray) -> np.ndarray:
    return colours_of(values) if name in (*COLOURS, "alpha") else values.astype(np.float32)
