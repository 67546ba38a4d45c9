"""Point clouds as samples hold them: which keys, which decoders; and clouds from whatever holds one.

| key | holds |
|---|---|
| `points.npz` | arrays by name, or what `encode_points` writes |
| `points.npy` | one array (N, 3 + F) |
| `npz`, `npy` | the same, where nothing else says so: files of tables have no other ending |
| `ply` | vertices with their fields |
| `pcd` | ascii or binary |
| `las`, `laz` | a survey, with the extra `las` |
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from collimate.data.decoding import Undecodable, register_decoder, register_modality
from collimate_3d.formats import decode_las, decode_npy, decode_npz, decode_pcd, decode_ply
from collimate_3d.formats.arrays import cloud_of_array, cloud_of_arrays
from collimate_3d.points import PointCloud

DECODERS = {
    "points.npz": decode_npz,
    "points.npy": decode_npy,
    "ply": decode_ply,
    "pcd": decode_pcd,
    "las": decode_las,
    "laz": decode_las,
}
"""Under which keys of a sample points may lie, the preferred one first."""

SIGNATURES = {b"ply": decode_ply, b"LASF": decode_las, b"PK": decode_npz, b"\x93NUMPY": decode_npy}

RawPoints = Any
"""A `PointCloud`; an array (N, 3 + F); arrays by name; the bytes of a file, or its path."""


def read_points(raw: RawPoints) -> PointCloud:
    """Whatever holds a cloud, as one.

    Raises:
        Undecodable: it is damaged, empty, or no cloud.
        TypeError: it is nothing that holds one.
        FileNotFoundError: there is no such file.
    """
    if isinstance(raw, PointCloud):
        if not len(raw):
            raise Undecodable("no points", "expected one or more")
        return raw
    if isinstance(raw, str | PathLike):
        return _decoded(Path(raw).read_bytes())
    if isinstance(raw, bytes):
        return _decoded(raw)
    if isinstance(raw, Mapping):
        return cloud_of_arrays(raw)
    if isinstance(raw, np.ndarray):
        return cloud_of_array(raw)
    raise TypeError(
        f"Expected a PointCloud, an array (N, 3), arrays by name, bytes or a path; got {type(raw).__name__}."
    )


def _decoded(data: bytes) -> PointCloud:
    """Bytes of any of the formats, by how they begin; PCD, which has no signature, where none fits."""
    decode = next((decode for start, decode in SIGNATURES.items() if data.startswith(start)), decode_pcd)
    return decode(data)


for _key, _decode in DECODERS.items():
    register_decoder(_decode, _key)
register_modality("points", *DECODERS, "npz", "npy")  # these two the core decodes, to what `read_points` takes
