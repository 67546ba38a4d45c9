"""Points in numpy's own files.

`points.npz` holds arrays by name: positions as `xyz` or `points` (N, 3), and, where they are known, colours as `rgb`,
`colors` or `colours` (N, 3), `normals` (N, 3), `intensity` (N); or what `encode_points` writes. `points.npy` holds one
array (N, 3 + F).
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np

from collimate.data.decoding import Undecodable, decode_array
from collimate_3d.formats.columns import COLOURS, NORMALS, cloud_of_columns, colours_of
from collimate_3d.points import PointCloud

POSITIONS = ("xyz", "points", "pos")
COLOUR_KEYS = ("rgb", "colors", "colours", "color")


def encode_points(cloud: PointCloud) -> bytes:
    """A cloud as the bytes of `points.npz`: equal bytes for equal clouds."""
    file = io.BytesIO()
    np.savez_compressed(
        file,
        xyz=cloud.xyz,
        features=cloud.features,
        fields=np.array(cloud.fields, dtype=np.str_),
        origin=np.array(cloud.origin, np.float64),
        frame=np.array(cloud.frame),
    )
    return file.getvalue()


def decode_npz(data: bytes) -> PointCloud:
    """The cloud of an .npz file.

    Raises:
        Undecodable: it is damaged, or holds no positions or no point.
    """
    arrays = decode_array(data)
    if not isinstance(arrays, dict):
        raise Undecodable("no named arrays", "it is an .npy file: call it `points.npy`")
    return cloud_of_arrays(arrays)


def decode_npy(data: bytes) -> PointCloud:
    """The cloud of an .npy file (N, 3 + F); its fields are called `value0`, `value1`, ...

    Raises:
        Undecodable: it is damaged, or no such array, or has no point.
    """
    array = decode_array(data)
    if isinstance(array, dict):
        raise Undecodable("several arrays", "it is an .npz file: call it `points.npz`")
    return cloud_of_array(array)


def cloud_of_array(array: np.ndarray) -> PointCloud:
    """A cloud of one array (N, 3 + F).

    Raises:
        Undecodable: it is no such array, or has no point.
    """
    if array.ndim != 2 or array.shape[1] < 3 or not np.issubdtype(array.dtype, np.number):
        raise Undecodable("no points", f"numbers (points, 3 or more) are expected, not {array.dtype} {array.shape}")
    names = ["x", "y", "z", *(f"value{place}" for place in range(array.shape[1] - 3))]
    return cloud_of_columns({name: array[:, place] for place, name in enumerate(names)})


def cloud_of_arrays(arrays: Mapping[str, np.ndarray]) -> PointCloud:
    """A cloud of named arrays.

    Raises:
        Undecodable: there are no positions or no point, or an array has not one row for each.
    """
    xyz = next((np.asarray(arrays[name]) for name in POSITIONS if name in arrays), None)
    if xyz is None or xyz.ndim != 2 or xyz.shape[1] < 3:
        raise Undecodable("no positions", f"`xyz` (N, 3) is needed; there are {', '.join(arrays) or 'no arrays'}")
    if {"features", "fields"} <= arrays.keys():
        return _written(xyz, arrays)
    columns: dict[str, np.ndarray] = {axis: xyz[:, place] for place, axis in enumerate("xyz")}
    colours = next((np.asarray(arrays[name]) for name in COLOUR_KEYS if name in arrays), None)
    if colours is not None:
        columns |= _triple("colours", colours_of(colours), COLOURS, len(xyz))
    if "normals" in arrays:
        columns |= _triple("normals", np.asarray(arrays["normals"]), NORMALS, len(xyz))
    if "intensity" in arrays:
        intensity = np.asarray(arrays["intensity"]).reshape(-1)
        if len(intensity) != len(xyz):
            raise Undecodable("intensity of other points", f"{len(intensity)} for {len(xyz)} points")
        columns["intensity"] = intensity
    return cloud_of_columns(columns)


def _written(xyz: np.ndarray, arrays: Mapping[str, np.ndarray]) -> PointCloud:
    """What `encode_points` wrote."""
    origin = np.asarray(arrays.get("origin", np.zeros(3)), np.float64).reshape(-1).tolist()
    try:
        cloud = PointCloud.of(
            xyz,
            arrays["features"],
            [str(name) for name in np.asarray(arrays["fields"]).reshape(-1)],
            origin,
            str(arrays.get("frame", "")),
        )
    except ValueError as error:
        raise Undecodable("damaged points", str(error)) from None
    if not len(cloud):
        raise Undecodable("no points", "expected one or more")
    return cloud


def _triple(what: str, values: np.ndarray, names: tuple[str, ...], count: int) -> dict[str, np.ndarray]:
    if values.shape[:1] != (count,) or values.ndim != 2 or values.shape[1] < 3:
        raise Undecodable(f"{what} of other points", f"({count}, 3) is expected, not {values.shape}")
    return dict(zip(names, values[:, :3].T, strict=True))
