"""PCD, the format of the Point Cloud Library: ascii and binary.

A header of words names the fields with their size, type and count; then come rows. The third kind, binary_compressed,
is refused.
"""

from __future__ import annotations

import io

import numpy as np

from collimate.data.decoding import Undecodable
from collimate_3d.formats.columns import cloud_of_columns
from collimate_3d.points import PointCloud

KINDS = {"F": "f", "I": "i", "U": "u"}
PACKED = ("rgb", "rgba")  # three or four bytes in the place of one number


def decode_pcd(data: bytes) -> PointCloud:
    """The points of a PCD file; their further fields by the names they have there, packed colours taken apart.

    Raises:
        Undecodable: it is damaged, compressed, no PCD file, or has no points.
    """
    header, body = _header(data)
    dtype = _dtype(header)
    count = _whole(header, "POINTS") if "POINTS" in header else _whole(header, "WIDTH") * _whole(header, "HEIGHT")
    kind = header["DATA"][0]
    if kind == "binary":
        if len(body) < count * dtype.itemsize:
            raise Undecodable("truncated PCD file", f"{count} points need {count * dtype.itemsize} bytes: {len(body)}")
        rows = np.frombuffer(body, dtype, count)
    elif kind == "ascii":
        rows = _ascii(body, dtype, count)
    else:
        raise Undecodable(
            f"PCD data is {kind}",
            "ascii and binary are read: write it anew with `pcl_convert_pcd_ascii_binary in out 1`",
        )
    columns: dict[str, np.ndarray] = {}
    for name in dtype.names or ():
        values = rows[name]
        if name.startswith("_"):
            continue  # padding
        if name in PACKED:
            columns |= _unpacked(values)
        elif values.ndim == 1:
            columns[name] = values
        else:
            columns |= {f"{name}_{place}": values[:, place] for place in range(values.shape[1])}
    return cloud_of_columns(columns)


def _header(data: bytes) -> tuple[dict[str, list[str]], bytes]:
    header: dict[str, list[str]] = {}
    place = 0
    while "DATA" not in header:
        end = data.find(b"\n", place)
        if end < 0 or end > 2**16:
            raise Undecodable("not a PCD file", f"no line DATA in a header that begins with {data[:16]!r}")
        words = data[place:end].decode("ascii", "replace").split("#")[0].split()
        if words:
            header[words[0].upper()] = words[1:]
        place = end + 1
    if missing := [name for name in ("FIELDS", "SIZE", "TYPE") if name not in header]:
        raise Undecodable("damaged PCD header", f"no {', '.join(missing)}")
    if not header["DATA"]:
        raise Undecodable("damaged PCD header", "DATA says nothing")
    return header, data[place:]


def _dtype(header: dict[str, list[str]]) -> np.dtype:
    names = header["FIELDS"]
    counts = header.get("COUNT", ["1"] * len(names))
    columns = []
    try:
        for number, (name, kind, size, count) in enumerate(
            zip(names, header["TYPE"], header["SIZE"], counts, strict=True)
        ):
            shape = () if int(count) == 1 else (int(count),)
            unique = f"_{number}" if name == "_" else name
            columns.append((unique, np.dtype(f"<{KINDS[kind]}{int(size)}"), shape))
        return np.dtype(columns)
    except (ValueError, KeyError, TypeError) as error:
        raise Undecodable("damaged PCD header", f"FIELDS, SIZE, TYPE and COUNT do not fit: {error}") from None


def _whole(header: dict[str, list[str]], name: str) -> int:
    try:
        return int(header[name][0])
    except (KeyError, IndexError, ValueError):
        raise Undecodable("damaged PCD header", f"{name} is no whole number") from None


def _ascii(body: bytes, dtype: np.dtype, count: int) -> np.ndarray:
    width = sum(int(np.prod(dtype[name].shape)) for name in dtype.names or ())
    try:
        values = np.loadtxt(io.BytesIO(body), np.float64, ndmin=2, max_rows=count) if count else np.zeros((0, width))
    except ValueError as error:
        raise Undecodable("damaged PCD file", str(error)) from None
    if values.shape != (count, width):
        raise Undecodable("truncated PCD file", f"{count} rows of {width} numbers were promised: {values.shape}")
    rows = np.zeros(count, dtype)
    place = 0
    for name in dtype.names or ():
        extent = int(np.prod(dtype[name].shape))
        taken = values[:, place : place + extent]
        rows[name] = taken if dtype[name].shape else taken[:, 0]
        place += extent
    return rows


def _unpacked(values: np.ndarray) -> dict[str, np.ndarray]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    return {name: (bits >> shift & 255).astype(np.uint8) for name, shift in (("red", 16), ("green", 8), ("blue", 0))}
