"""PLY: ascii, and binary of either byte order, with whatever fields its vertices have.

ScanNet's meshes have x y z red green blue alpha, 3RScan's x y z red green blue objectId globalId NYU40 Eigen13 RIO27.
Faces are not read, and lists at vertices are left out.
"""

from __future__ import annotations

import io

import numpy as np
from plyfile import PlyData, PlyListProperty, PlyParseError

from collimate.data.decoding import Undecodable
from collimate_3d.formats.columns import cloud_of_columns
from collimate_3d.points import PointCloud

END = b"end_header"


def decode_ply(data: bytes) -> PointCloud:
    """The vertices of a PLY file; their further fields by the names they have there, colours from 0 to 1.

    Raises:
        Undecodable: it is damaged, no PLY file, or has no vertices.
    """
    if not data.startswith(b"ply"):
        raise Undecodable("not a PLY file", f"it begins with {data[:8]!r}")
    _check_counts(data)
    try:
        found = PlyData.read(io.BytesIO(_vertices_first(data)))
        vertices = found["vertex"]
    except KeyError:
        raise Undecodable("no vertices in the PLY file", "expected an element `vertex` with x, y and z") from None
    except (PlyParseError, ValueError, IndexError, UnicodeDecodeError, EOFError) as error:
        raise Undecodable("damaged PLY file", str(error)) from None
    columns = [each.name for each in vertices.properties if not isinstance(each, PlyListProperty)]
    return cloud_of_columns({name: np.asarray(vertices[name]) for name in columns})


def _check_counts(data: bytes) -> None:
    """That what the header counts can lie in the file: plyfile makes room for all of it first."""
    for line in data.partition(END)[0].splitlines():
        count = line.split()[2:3] if line.startswith(b"element ") else []
        if count and count[0].isdigit() and int(count[0]) > len(data):
            raise Undecodable("damaged PLY file", f"{line.decode(errors='replace')} in {len(data)} bytes")


def _vertices_first(data: bytes) -> bytes:
    """The file without what its header promises after the vertices, whose lists would take long to read."""
    head, found, body = data.partition(END)
    lines = head.splitlines(keepends=True)
    elements = [number for number, line in enumerate(lines) if line.startswith(b"element ")]
    if not found or len(elements) < 2 or lines[elements[0]].split()[1:2] != [b"vertex"]:
        return data
    return b"".join([*lines[: elements[1]], END, body])
