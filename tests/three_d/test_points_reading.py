"""Files of points: what each format says, colours and their units, far coordinates, and damaged or empty files."""

import io

import laspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement

from collimate.data.decoding import Undecodable, decode, extensions_of, value_of
from collimate.data.source import CorruptSample
from collimate_3d.formats import decode_las, decode_npz, decode_pcd, decode_ply, encode_points
from collimate_3d.points import PointCloud
from collimate_3d.reading import DECODERS, read_points

SCANNET = [(name, "f4") for name in "xyz"] + [(name, "u1") for name in ("red", "green", "blue", "alpha")]
THREE_R_SCAN = SCANNET[:-1] + [(name, "u2") for name in ("objectId", "globalId", "NYU40", "Eigen13", "RIO27")]


def rows(fields, count=4, seed=0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    made = np.zeros(count, fields)
    for name, kind in fields:
        if "f" in kind:
            made[name] = generator.normal(size=count).round(3)
        else:
            made[name] = generator.integers(0, 256, count)
    return made


def ply(vertices: np.ndarray, text=False, order="<", faces=False, before=False) -> bytes:
    elements = [PlyElement.describe(vertices, "vertex")]
    if faces:
        triangles = np.zeros(3, [("vertex_indices", "i4", (3,)), ("flag", "u1")])
        elements.insert(0 if before else 1, PlyElement.describe(triangles, "face"))
    file = io.BytesIO()
    PlyData(elements, text=text, byte_order="=" if text else order).write(file)
    return file.getvalue()


def places(vertices: np.ndarray) -> np.ndarray:
    return np.stack([vertices[name] for name in "xyz"], 1).astype(np.float32)


# PLY ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("before", [True, False])
def test_ply_of_scannet(text, order, before):
    vertices = rows(SCANNET)
    cloud = decode_ply(ply(vertices, text, order, faces=True, before=before))
    np.testing.assert_allclose(cloud.xyz, places(vertices), atol=1e-6)
    assert cloud.fields == ("red", "green", "blue", "alpha")
    np.testing.assert_allclose(cloud.channels(["green"])[:, 0], vertices["green"] / 255, atol=1e-6)


def test_ply_of_3rscan_keeps_its_labels():
    vertices = rows(THREE_R_SCAN)
    cloud = decode_ply(ply(vertices))
    assert cloud.fields[3:] == ("objectId", "globalId", "NYU40", "Eigen13", "RIO27")
    assert np.array_equal(cloud.channels(["NYU40"])[:, 0], vertices["NYU40"])


def test_ply_with_lists_at_vertices():
    vertices = np.zeros(2, [*SCANNET[:3], ("neighbours", "O")])
    vertices["neighbours"] = [np.array([1, 2], np.int32), np.array([3], np.int32)]
    assert decode_ply(ply(vertices)).fields == ()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"plx\n", "not a PLY file"),
        (b"ply\nformat ascii 1.0\nelement vertex two\n", "damaged PLY file"),
        (ply(rows(SCANNET))[:-3], "damaged PLY file"),
        (ply(rows(SCANNET), text=True).replace(b"float x", b"float q"), "no positions"),
        (ply(rows(SCANNET, count=0)), "no points"),
        (b"ply\nformat ascii 1.0\nend_header\n", "no vertices"),
    ],
)
def test_ply_that_cannot_be_used(data, reason):
    with pytest.raises(Undecodable, match=reason):
        decode_ply(data)


# PCD ------------------------------------------------------------------------------------------------------------


def pcd(kind="binary", count=3, data=b"", points=True, fields="x y z intensity _ rgb", sizes="4 4 4 1 1 4") -> bytes:
    header = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {sizes}\nTYPE F F F U U F\nCOUNT 1 1 1 1 3 1\n"
        f"WIDTH {count}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\n" + (f"POINTS {count}\n" if points else "")
    )
    return header.encode() + f"DATA {kind}\n".encode() + data


def packed(red, green, blue) -> float:
    return np.array([red << 16 | green << 8 | blue], np.uint32).view(np.float32)[0]


def pcd_rows() -> np.ndarray:
    made = np.zeros(3, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("i", "u1"), ("_", "u1", (3,)), ("rgb", "f4")])
    made["x"], made["y"], made["z"], made["i"] = [1, 2, 3], [4, 5, 6], [-1, 0.5, 9], [7, 8, 9]
    made["rgb"] = [packed(255, 0, 51), packed(0, 102, 255), packed(0, 0, 0)]
    return made


@pytest.mark.parametrize("points", [True, False])
def test_pcd(points):
    made = pcd_rows()
    cloud = decode_pcd(pcd(data=made.tobytes(), points=points))
    assert cloud.xyz.tolist() == [[1, 4, -1], [2, 5, 0.5], [3, 6, 9]]
    assert cloud.fields == ("intensity", "red", "green", "blue")
    np.testing.assert_allclose(cloud.channels(["red", "green", "blue"])[:2], [[1, 0, 0.2], [0, 0.4, 1]], atol=1e-6)
    assert cloud.channels(["intensity"])[:, 0].tolist() == [7, 8, 9]


def test_pcd_of_text():
    lines = [
        " ".join([*map(repr, map(float, row.tolist()[:3])), str(row["i"]), "0 0 0", f"{row['rgb']:.10g}"])
        for row in pcd_rows()
    ]
    text = decode_pcd(pcd("ascii", data="\n".join(lines).encode()))
    binary = decode_pcd(pcd(data=pcd_rows().tobytes()))
    assert np.array_equal(text.xyz, binary.xyz)
    np.testing.assert_allclose(text.features, binary.features, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pcd("binary_compressed"), "PCD data is binary_compressed"),
        (pcd(data=pcd_rows().tobytes()[:-1]), "truncated PCD file"),
        (pcd("ascii", data=b"1 2 3 4 5 6 7 8\n"), "truncated PCD file"),
        (pcd("ascii", data=b"1 2 x 4 5 6 7 8\n"), "damaged PCD file"),
        (pcd(count=0), "no points"),
        (pcd(sizes="4 4 4"), "damaged PCD header"),
        (pcd(sizes="4 4 4 1 1 7", data=bytes(99)), "damaged PCD header"),
        (pcd().replace(b"FIELDS", b"FELDS"), "no FIELDS"),
        (pcd().replace(b"POINTS 3", b"POINTS many"), "POINTS is no whole number"),
        (b"something else\n", "not a PCD file"),
        (b"\x00" * 100, "not a PCD file"),
    ],
)
def test_pcd_that_cannot_be_used(data, reason):
    with pytest.raises(Undecodable, match=reason):
        decode_pcd(data)


# LAS ------------------------------------------------------------------------------------------------------------

UTM = np.array([512_345.0, 5_412_345.0, 321.0])


def las(count=5, compressed=False, colours=65535) -> bytes:
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = [0.001] * 3, UTM
    made = laspy.LasData(header)
    made.x, made.y, made.z = (UTM[axis] + np.arange(count) * 0.125 for axis in range(3))
    made.intensity = np.full(count, 65535 // 5, np.uint16)
    made.classification = np.full(count, 6, np.uint8)
    for name in ("red", "green", "blue"):
        setattr(made, name, np.full(count, colours, np.uint16))
    file = io.BytesIO()
    made.write(file, do_compress=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_las_keeps_millimetres_of_map_coordinates(compressed):
    cloud = decode_las(las(compressed=compressed))
    np.testing.assert_allclose(cloud.world, UTM + np.arange(5)[:, None] * 0.125, atol=1e-3)
    assert np.abs(cloud.xyz).max() < 2
    assert set(cloud.fields) == {"intensity", "red", "green", "blue", "classification", "return_number"}
    assert cloud.channels(["classification"]).tolist() == [[6]] * 5
    np.testing.assert_allclose(cloud.channels(["intensity"]), 0.2, atol=1e-6)


@pytest.mark.parametrize("colours", [65535, 255])
def test_las_colours_of_16_and_of_8_bits(colours):
    assert decode_las(las(colours=colours)).channels(["red"]).tolist() == [[1]] * 5


@pytest.mark.parametrize(
    ("data", "reason"), [(b"LASX", "not a LAS file"), (las()[:60], "damaged LAS file"), (las(0), "no points")]
)
def test_las_that_cannot_be_used(data, reason):
    with pytest.raises(Undecodable, match=reason):
        decode_las(data)


# Arrays ---------------------------------------------------------------------------------------------------------


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@given(st.integers(1, 20), st.booleans())
@settings(max_examples=20, deadline=None)
def test_written_points_are_read_again(count, far):
    generator = np.random.default_rng(count)
    xyz = generator.normal(size=(count, 3)) + far * 1e6
    cloud = PointCloud.of(xyz, generator.random((count, 2)), ("intensity", "ring"), frame="lidar")
    again = decode_npz(encode_points(cloud))
    assert np.array_equal(again.xyz, cloud.xyz)
    assert np.array_equal(again.features, cloud.features)
    assert (again.fields, again.origin, again.frame) == (cloud.fields, cloud.origin, cloud.frame)
    assert encode_points(again) == encode_points(cloud)


def test_arrays_by_their_names():
    bytes_, normals = np.full((2, 3), 51, np.uint8), np.array([[0, 0, 1.0], [1, 0, 0]])
    cloud = decode_npz(npz(points=np.ones((2, 3)), colors=bytes_, normals=normals, intensity=np.array([[0.5], [1]])))
    assert cloud.fields == ("red", "green", "blue", "nx", "ny", "nz", "intensity")
    np.testing.assert_allclose(cloud.features[0], [0.2, 0.2, 0.2, 0, 0, 1, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"points": np.zeros((0, 3))}, "no points"),
        ({"points": np.full((2, 3), np.nan)}, "none of 2 has coordinates"),
        ({"clouds": np.zeros((2, 3))}, "no positions"),
        ({"points": np.zeros((2, 2))}, "no positions"),
        ({"points": np.zeros((2, 3)), "rgb": np.zeros((3, 3), np.uint8)}, "colours of other points"),
        ({"points": np.zeros((2, 3)), "rgb": np.full((2, 3), 128.0)}, "colours beyond 1"),
        ({"points": np.zeros((2, 3)), "normals": np.zeros((2, 2))}, "normals of other points"),
        ({"points": np.zeros((2, 3)), "intensity": np.zeros(3)}, "intensity of other points"),
        ({"xyz": np.zeros((2, 3)), "features": np.zeros((2, 2)), "fields": np.array(["a"])}, "damaged points"),
        ({"xyz": np.zeros((0, 3)), "features": np.zeros((0, 0)), "fields": np.array([], np.str_)}, "no points"),
    ],
)
def test_arrays_that_are_no_points(arrays, reason):
    with pytest.raises(Undecodable, match=reason):
        decode_npz(npz(**arrays))
    with pytest.raises(Undecodable, match=reason):
        read_points(arrays)


def test_one_array():
    cloud = read_points(np.arange(8.0).reshape(2, 4))
    assert cloud.fields == ("value0",)
    for wrong in (np.zeros(3), np.zeros((2, 2)), np.array([["a", "b", "c"]])):
        with pytest.raises(Undecodable, match="no points"):
            read_points(wrong)


# Samples --------------------------------------------------------------------------------------------------------


def test_every_key_has_its_decoder(tmp_path):
    files = {
        "points.npz": npz(points=np.ones((2, 3))),
        "points.npy": npy(np.ones((2, 3))),
        "ply": ply(rows(SCANNET)),
        "pcd": pcd(data=pcd_rows().tobytes()),
        "las": las(),
        "laz": las(compressed=True),
    }
    assert extensions_of("points")[: len(files)] == tuple(files) == tuple(DECODERS)
    for key, data in files.items():
        expected = decode(key, data)
        (tmp_path / f"cloud.{key}").write_bytes(data)
        for raw in (data, tmp_path / f"cloud.{key}", str(tmp_path / f"cloud.{key}"), expected):
            assert np.array_equal(read_points(raw).xyz, expected.xyz)


def test_confused_kinds_of_arrays():
    with pytest.raises(Undecodable, match=r"it is an \.npy file"):
        decode("points.npz", npy(np.ones((2, 3))))
    with pytest.raises(Undecodable, match=r"it is an \.npz file"):
        decode("points.npy", npz(xyz=np.ones((2, 3))))


def test_a_corrupt_sample_is_named():
    with pytest.raises(CorruptSample, match=r"shard: 7\.ply"):
        value_of({"__url__": "shard", "__key__": "7", "ply": b"ply\n"}, extensions_of("points"))


def test_what_holds_no_points():
    with pytest.raises(TypeError, match="got int"):
        read_points(5)
    with pytest.raises(FileNotFoundError):
        read_points("no/such.ply")
    with pytest.raises(Undecodable, match="no points"):
        read_points(PointCloud.of(np.zeros((0, 3))))


def test_real_objects_and_sweeps(shared_data):
    objects = sorted((shared_data / "objects3d_ycb" / "clouds").glob("*.npz"))
    sweeps = sorted((shared_data / "lidar_scan_pair").glob("*.ply"))
    if not objects or not sweeps:
        pytest.skip("no objects or sweeps among the real data sets")
    for path in objects:
        cloud = read_points(path)
        assert len(cloud) == 4096
        np.testing.assert_allclose(np.linalg.norm(cloud.channels(["nx", "ny", "nz"]), axis=1), 1, atol=1e-3)
        assert 0.01 < np.ptp(cloud.xyz, 0).max() < 0.5  # metres
    for path in sweeps:
        cloud = read_points(path)
        assert len(cloud) > 1000
        assert cloud.left_out == 0
