"""LAS and LAZ, the formats of surveys, where laspy is installed: the extra `las` of this package.

Coordinates are whole numbers with scale and offset, often of a map projection: they become metres from an origin that
is kept in float64.
"""

from __future__ import annotations

import io
import struct

import numpy as np

from collimate.data.decoding import Undecodable
from collimate_3d.formats.columns import COLOURS, cloud_of_columns
from collimate_3d.points import PointCloud

INTENSITY = 65535  # the range of its 16 bits
RECORD, EXTENDED = 54, 60
"""Bytes of the header of a variable length record, and of an extended one."""
COMPRESSED = 128  # the bit of LAZ in the kind of points
DENSEST = 1000  # ours: no LAZ file has more points in a byte


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
    _check_counts(data)
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


def _check_counts(data: bytes) -> None:
    """That what the header counts fits into the file: laspy makes room for all points and records, there or not."""
    if len(data) < 227:  # the shortest header, of versions before 1.3
        raise Undecodable("damaged LAS file", f"{len(data)} bytes, a header has 227")
    header, points, records = struct.unpack_from("<HII", data, 94)
    extended = struct.unpack_from("<I", data, 243)[0] if data[25] >= 4 and len(data) >= 247 else 0
    if header + RECORD * records > min(points, len(data)) or EXTENDED * extended > len(data):
        raise Undecodable("damaged LAS file", f"{records} and {extended} records do not fit into {len(data)} bytes")
    kind, length, count = struct.unpack_from("<BHI", data, 104)
    if data[25] >= 4 and len(data) >= 255:
        count = struct.unpack_from("<Q", data, 247)[0] or count
    most = DENSEST * len(data) if kind & COMPRESSED else (len(data) - points) // max(1, length)
    if count > most:
        raise Undecodable("damaged LAS file", f"{count} points of {length} bytes do not fit into {len(data)}")
