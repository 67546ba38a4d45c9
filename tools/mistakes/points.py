"""Mistakes in points, sweeps and scene graphs."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from .data import shard, train_on, verify
from .table import mistake

SUBJECT = "Points, sweeps and scenes"

CALIBRATION = """P2: 700 0 600 45 0 700 180 -0.3 0 0 1 0.005
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0.02 0 0 -1 -0.06 1 0 0 -0.3
"""
LABEL = "Car 0.00 0 -1.57 600 150 680 210 1.5 1.6 4.0 1.0 1.6 20.0 -1.57\n"


def kitti(folder: Path, sweep: bytes | None = None, calibration: str = CALIBRATION, labels: str = LABEL) -> None:
    """Check a folder of KITTI with one frame."""
    points = np.random.default_rng(0).uniform(0, 1, (50, 4)).astype("<f4")
    for name, data in {
        "velodyne/000000.bin": points.tobytes() if sweep is None else sweep,
        "calib/000000.txt": calibration.encode(),
        "label_2/000000.txt": labels.encode(),
    }.items():
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(data)
    verify(f"kitti:{folder}")


def cloud(folder: Path, name: str, data: bytes) -> None:
    from collimate_3d import PointProcessor

    train_on(shard(folder, {name: data}), points=PointProcessor(32))


def arrays(**given: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **given)
    return file.getvalue()


@mistake(SUBJECT, "A folder that is not KITTI's", "velodyne", "There is no folder", "training", "name the folder")
def no_kitti(folder: Path) -> None:
    verify(f"kitti:{folder}")


@mistake(
    SUBJECT,
    "A sweep with a wrong stride: five numbers a point",
    "000000.sweep.npz",
    "wrong stride",
    "float32 values",
    "leave them out",
)
def wrong_stride(folder: Path) -> None:
    kitti(folder, np.zeros((51, 5), "<f4").tobytes())


@mistake(
    SUBJECT, "Intensities of bytes where shares belong", "000000.sweep.npz", "255", "expected 0 to 1", "leave them out"
)
def wrong_intensity(folder: Path) -> None:
    points = np.ones((50, 4), "<f4")
    points[:, 3] = 255
    kitti(folder, points.tobytes())


@mistake(
    SUBJECT, "A calibration without a line that is needed", "000000.calib.json", "no line", "Tr_velo", "leave them out"
)
def missing_calibration(folder: Path) -> None:
    kitti(folder, calibration="".join(CALIBRATION.splitlines(keepends=True)[:2]))


@mistake(
    SUBJECT, "Labels with a column too few", "000000.objects.json", "[14] columns", "expected 15", "leave them out"
)
def short_labels(folder: Path) -> None:
    kitti(folder, labels=LABEL.rsplit(" ", 1)[0] + "\n")


@mistake(SUBJECT, "A PLY file without vertices", "set.tar: a.ply", "no vertices", "expected", "leave them out")
def no_vertices(folder: Path) -> None:
    cloud(
        folder, "a.ply", b"ply\nformat ascii 1.0\nelement face 0\nproperty list uchar int vertex_indices\nend_header\n"
    )


@mistake(
    SUBJECT,
    "A PCD file with compressed data",
    "set.tar: a.pcd",
    "binary_compressed",
    "ascii and binary",
    "pcl_convert_pcd",
)
def compressed_pcd(folder: Path) -> None:
    head = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 1\nHEIGHT 1\nPOINTS 1\nDATA binary_compressed\n"
    cloud(folder, "a.pcd", head.encode() + bytes(12))


@mistake(SUBJECT, "A damaged LAS file", "set.tar: a.las", "12 bytes", "a header has 227", "leave them out")
def damaged_las(folder: Path) -> None:
    cloud(folder, "a.las", b"LASF" + bytes(8))


@mistake(SUBJECT, "LAS files without laspy", "LAS", "laspy", "need", "install `collimate-3d[las]`")
def no_laspy(folder: Path) -> None:
    with mock.patch.dict(sys.modules, {"laspy": None}):
        cloud(folder, "a.las", b"LASF" + bytes(300))


@mistake(
    SUBJECT,
    "An .npz file without positions",
    "set.tar: a.points.npz",
    "there are features",
    "`xyz` (N, 3)",
    "leave them out",
)
def no_positions(folder: Path) -> None:
    cloud(folder, "a.points.npz", arrays(features=np.zeros((4, 3))))


@mistake(SUBJECT, "A cloud without a point", "set.tar: a.points.npz", "no points", "expected", "leave them out")
def empty_cloud(folder: Path) -> None:
    cloud(folder, "a.points.npz", arrays(xyz=np.zeros((0, 3), np.float32)))


@mistake(SUBJECT, "A cloud of NaN", "set.tar: a.points.npz", "none of 4", "finite", "leave them out")
def points_of_nan(folder: Path) -> None:
    cloud(folder, "a.points.npz", arrays(xyz=np.full((4, 3), np.nan, np.float32)))


def scene(folder: Path, relations: list[Any], **changes: Any) -> None:
    """A scene graph of two objects."""
    from collimate.data.decoding import decode
    from collimate.data.scene_graphs import scene_graph_of

    thing = {"label": "chair", "center": [0, 0, 0], "size": [1, 1, 1]}
    graph = {"objects": [{"id": 0, **thing}, {"id": 1, **thing, **changes}], "relations": relations}
    scene_graph_of(decode("graph.json", json.dumps(graph).encode()))


@mistake(SUBJECT, "A relation with an object that is not there", "relation 0", "object 7", "dangling", "mend the id")
def dangling_edge(folder: Path) -> None:
    scene(folder, [[0, "left of", 7]])


@mistake(
    SUBJECT,
    "An object of negative size",
    "object 1",
    "[1.0, -1.0, 1.0]",
    "full extents in metres",
    "the far edge less the near one",
)
def negative_size(folder: Path) -> None:
    scene(folder, [], size=[1, -1, 1])


@mistake(
    SUBJECT, "A nuScenes folder of another version", "v1.0-mini", "no table", "Versions in", "name one by `version`"
)
def no_nuscenes(folder: Path) -> None:
    verify(f"nuscenes:{folder}?version=v1.0-mini")
