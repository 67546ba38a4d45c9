"""LAS and LAZ, the formats of surveys, where laspy is installed: the extra `las` of this package.

Coordinates are whole numbers with scale and offset, often of a map projection: they become metres from an origin that
is kept in float64.
"""

from __future__ import annotations

import io

import numpy as np

from collimate.data.decoding import Undecodable
from collimate_3d.formats.columns import COLOURS, cloud_of_columns
from collimate_3d.points import PointCloud

INTENSITY = 65535  # the range of its 16 bits


def decode_las(data: bytes) -> PointCloud:
    """The points of a LAS or LAZ file with intensity and colours from 0 to 1, class and return number.

    Raises:
        Undecodable: it is damaged, no such file, or has no points.
        ModuleNotFoundError: laspy, or for LAZ lazrs, is not installed; says how.
    """
    if not data.startswith(b"LASF"):
        raise Undecodable("not a LAS file", f"it begins with {data[:8]!r}")
    try:
        import laspy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("LAS files need laspy: install `collimate-3d[las]`.") from error
    try:
        found = laspy.read(io.BytesIO(data))
    except Exception as error:  # laspy, lazrs and struct raise what they like on damaged files
        if "LazBackend" in str(error):
            raise ModuleNotFoundError("LAZ files need lazrs: install `collimate-3d[las]`.") from error
        raise Undecodable("damaged LAS file", str(error)) from None
    names = set(found.point_format.dimension_names)
    columns = {axis: np.asarray(getattr(found, axis), np.float64) for axis in ("x", "y", "z")}
    if "intensity" in names:
        columns["intensity"] = np.asarray(found.intensity) / np.float32(INTENSITY)
    columns |= {
        name: np.asarray(found[name]) for name in (*COLOURS, "classification", "return_number") if name in names
    }
    return cloud_of_columns(columns)
