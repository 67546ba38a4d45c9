"""LiDAR data sets as sources: what samples hold, through shards too; damaged files, gaps and what is refused."""

import io
import json

import numpy as np
import pytest
import torch

from collimate.data import open_source
from collimate.data.commands import write_shards
from collimate.data.decoding import Undecodable, value_of
from collimate.data.source import CorruptSample
from collimate_3d.boxes import point_counts
from collimate_3d.lidar.calibration import Calibration
from collimate_3d.lidar.kitti import KittiSource, format_labels, parse_labels
from collimate_3d.lidar.nuscenes import AHEAD, NuScenesSource, read_points_ahead
from collimate_3d.lidar.objects import Objects
from collimate_3d.lidar.poses import apply_pose, move_boxes
from collimate_3d.lidar.registration import registered
from collimate_3d.lidar.sequences import read_labels
from collimate_3d.lidar.subsets import label_subset
from collimate_3d.lidar.sweep import Sweep, decode_sweep, encode_sweep
from tests.three_d import lidar_files as files


def sweep_of(sample, key="sweep.npz"):
    return value_of(sample, (key,))


# KITTI ----------------------------------------------------------------------------------------------------------


def test_kitti_frames(tmp_path):
    source = open_source(f"kitti:{files.kitti(tmp_path / 'training').parent}?split=train")
    assert [source.read(index)["__key__"] for index in range(len(source))] == ["000001", "000003"]
    sample = source.read(1)
    np.testing.assert_array_equal(sweep_of(sample).points, files.points(50, 3))
    objects = Objects.from_json(sample["objects.json"])
    assert objects.names == ("Car", "DontCare")
    assert objects.boxes[0] == pytest.approx([20.3, -0.98, -0.91, 4.0, 1.6, 1.5, 0], abs=1e-2)
    assert objects.image_boxes[1].tolist() == [10, 20, 30, 40]
    assert set(source.peek(0, ["objects.json"])) == {"__key__", "__source__", "objects.json"}
    assert len(KittiSource(tmp_path)) == 10
    with pytest.raises(FileNotFoundError, match="no list of the split 'val'"):
        KittiSource(tmp_path, "val")
    with pytest.raises(IndexError, match="2 frames"):
        source.read(2)


def test_through_shards(tmp_path):
    source = KittiSource(files.kitti(tmp_path / "kitti"))
    write_shards(source, str(tmp_path / "shards"), {}, samples_per_shard=4, shuffle=False)
    shards = open_source(str(tmp_path / "shards"))
    assert len(shards) == 10
    for index in (0, 7):
        again, first = shards.read(index), source.read(index)
        np.testing.assert_array_equal(sweep_of(again).points, sweep_of(first).points)
        assert value_of(again, ("objects.json",)) == first["objects.json"]
        found = Calibration.from_json(value_of(again, ("calib.json",)))
        np.testing.assert_array_equal(found.projection, np.reshape(files.CALIB["P2"], (3, 4)))


def test_labels_written_are_labels_read(tmp_path):
    calibration = Calibration.parse(files.calibration_text())
    labels = parse_labels(files.LABELS, calibration)[np.array([0])]
    again = parse_labels(format_labels(labels, calibration), calibration)
    np.testing.assert_allclose(again.boxes, labels.boxes, atol=1e-5)
    np.testing.assert_allclose(again.alphas, labels.alphas, atol=1e-5)
    found = Objects(("Car",), labels.boxes, np.array([0.7]))
    row = parse_labels(format_labels(found, calibration, (375, 1242)), calibration)
    assert row.scores == pytest.approx([0.7])
    assert row.image_boxes[0] == pytest.approx(calibration.image_boxes(labels.boxes, (375, 1242))[0], abs=1e-5)


def test_calibration_is_read_by_name():
    matrices = Calibration.parse(files.calibration_text(names=["Tr_velo_to_cam", "P2", "R0_rect"]))
    assert matrices.projection[0, 3] == 45
    with pytest.raises(Undecodable, match="no line P2"):
        Calibration.parse(files.calibration_text(names=["R0_rect", "Tr_velo_to_cam"]))
    with pytest.raises(Undecodable, match="lidar_to_camera has 11 numbers"):
        Calibration.parse(files.calibration_text({**files.CALIB, "Tr_velo_to_cam": [1.0] * 11}))
    with pytest.raises(Undecodable, match="damaged calibration"):
        Calibration.parse(files.calibration_text().replace("700", "7oo"))


def test_projection_and_its_inverse():
    calibration = Calibration.parse(files.calibration_text())
    xyz = files.points(40)[:, :3]
    rectified = calibration.to_rectified(xyz)
    pixels, depth = calibration.project(rectified)
    np.testing.assert_allclose(calibration.unproject(pixels, depth), rectified, atol=1e-9)
    np.testing.assert_allclose(calibration.to_lidar(rectified), xyz, atol=1e-9)
    seen = calibration.sees(np.concatenate([xyz, -xyz]), (375, 1242))
    assert 0 < seen[:40].sum() < 40
    assert not seen[40:].any()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-4], "wrong stride"),
        (lambda data: files.points(60, values=5)[:, [0, 1, 2, 3, 0]].tobytes(), "wrong stride or scale"),
        (lambda data: b"", "empty sweep"),
        (lambda data: (np.frombuffer(data, "<f4") * np.nan).tobytes(), "empty sweep"),
        (lambda data: (files.points(9) * [1e3, 1, 1, 1]).astype("<f4").tobytes(), "points too far"),
    ],
)
def test_damaged_sweeps(tmp_path, damage, reason):
    source = KittiSource(files.kitti(tmp_path, 1))
    path = tmp_path / "velodyne" / "000000.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptSample, match="000000") as caught:
        source.read(0)
    assert caught.value.reason == reason


def test_damaged_frames(tmp_path):
    source = KittiSource(files.kitti(tmp_path, 1))
    (tmp_path / "label_2" / "000000.txt").write_text("Car 0 0 1 2 3\n")
    with pytest.raises(CorruptSample, match=r"rows have \[6\] columns"):
        source.read(0)
    (tmp_path / "label_2" / "000000.txt").write_text(files.LABELS.replace("1.5 1.6 4.0", "1.5 -1.6 4.0"))
    with pytest.raises(CorruptSample, match="negative side"):
        source.read(0)
    (tmp_path / "calib" / "000000.txt").unlink()
    with pytest.raises(CorruptSample, match="missing file"):
        source.read(0)
    with pytest.raises(FileNotFoundError, match="no folder velodyne"):
        KittiSource(tmp_path / "velodyne")


def test_points_that_are_not_finite_are_counted():
    points = files.points(10)
    points[[2, 5], [0, 3]] = np.nan, np.inf
    sweep = Sweep.checked(points, labels=np.arange(10))
    assert (len(sweep), sweep.dropped) == (8, 2)
    assert sweep.labels.tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    again = decode_sweep(encode_sweep(sweep))
    assert (len(again), again.dropped) == (8, 2)
    assert encode_sweep(again) == encode_sweep(sweep)
    with pytest.raises(Undecodable, match="3 labels for 10 points"):
        Sweep.checked(points, labels=np.arange(3))
    with pytest.raises(Undecodable, match="not orthonormal"):
        Sweep.checked(points, pose=np.diag([2.0, 1, 1, 1]))
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    with pytest.raises(Undecodable, match=r"expected an \.npz"):
        decode_sweep(buffer.getvalue())


def test_shares_of_the_labels_contain_each_other(tmp_path):
    shares = [set(label_subset(3712, fraction, seed=3)) for fraction in (0.05, 0.2, 1)]
    assert [len(share) for share in shares] == [186, 742, 3712]
    assert shares[0] < shares[1]
    assert set(label_subset(3712, 0.05, seed=4)) != shares[0]
    assert label_subset(3, 0.01) == label_subset(3, 0.01)
    assert len(KittiSource(files.kitti(tmp_path), fraction=0.3, seed=1)) == 3
    with pytest.raises(ValueError, match="above 0 and at most at 1"):
        label_subset(10, 0)


# Sequences ------------------------------------------------------------------------------------------------------


def test_odometry(tmp_path):
    files.odometry(tmp_path)
    files.odometry(tmp_path, "01")
    source = open_source(f"kitti-odometry:{tmp_path}?pairs=true&sequences=00")
    assert len(source) == 4
    sample = source.read(0)
    assert sample["json"] == {"sequence": "00", "frame": 1, "step": 1}
    sweep, before = sweep_of(sample), sweep_of(sample, "previous.npz")
    assert sweep.labels[:4].tolist() == [1, 1, 9, 0]
    assert sweep.instances[:4].tolist() == [0, 0, 7, 0]
    assert sweep.time == pytest.approx(0.1)
    assert before.flow_includes_ego
    np.testing.assert_allclose(before.flow, np.tile([-1.0, 0, 0], (20, 1)), atol=1e-5)  # z of the camera is x
    np.testing.assert_allclose(before.pose, np.eye(4), atol=1e-9)
    both = open_source(f"kitti-odometry:{tmp_path}")
    assert len(both) == 10
    assert "previous.npz" not in both.read(0)
    assert set(both.peek(3, ["json"])) == {"__key__", "__source__", "json"}


def test_gaps_part_no_pairs(tmp_path):
    source = open_source(f"kitti-odometry:{files.odometry(tmp_path, numbers=[0, 1, 3, 4, 9], rows=10)}", pairs=True)
    assert [frame.number for frame in source.frames] == [1, 4]
    assert source.alone == 3
    steps = open_source(f"kitti-odometry:{tmp_path}?pairs=true&step=3")
    assert [frame.number for frame in steps.frames] == [3, 4]
    with pytest.raises(ValueError, match="none of 5 sweeps has one 7 frames"):
        open_source(f"kitti-odometry:{tmp_path}?pairs=true&step=7")


def test_damaged_sequences(tmp_path):
    with pytest.raises(ValueError, match="3 poses, and a sweep with the number 3"):
        open_source(f"kitti-odometry:{files.odometry(tmp_path / 'a', rows=3)}")
    with pytest.raises(ValueError, match=r"pose 0 in .*not orthonormal"):
        open_source(f"kitti-odometry:{files.odometry(tmp_path / 'b', turn=0.3)}")
    with pytest.raises(FileNotFoundError, match="no sequence 08"):
        open_source(f"kitti-odometry:{tmp_path / 'b'}?sequences=val")
    source = open_source(f"kitti-odometry:{files.odometry(tmp_path / 'c')}")
    labels = tmp_path / "c" / "sequences" / "00" / "labels" / "000001.label"
    labels.write_bytes(labels.read_bytes()[:-4])
    with pytest.raises(CorruptSample, match="19 labels for 20 points"):
        source.read(1)
    with pytest.raises(Undecodable, match=r"\[300\]"):
        read_labels(np.array([10, 300], "<u4").tobytes())
    (tmp_path / "c" / "sequences" / "00" / "calib.txt").write_text("P2: 1\n")
    with pytest.raises(ValueError, match="no line R0_rect or R_rect; there are P2"):
        open_source(f"kitti-odometry:{tmp_path / 'c'}")


def test_kitti360(tmp_path):
    source = open_source(f"kitti-360:{files.kitti360(tmp_path)}?pairs=true")
    assert [frame.number for frame in source.frames] == [2, 3]
    before = sweep_of(source.read(0), "previous.npz")
    np.testing.assert_allclose(before.flow, np.tile([-1.0, 0, 0], (20, 1)), atol=1e-5)


# nuScenes -------------------------------------------------------------------------------------------------------


def test_nuscenes(tmp_path):
    source = open_source(f"nuscenes:{files.nuscenes(tmp_path)}?version=v1.0-mini")
    assert len(source) == 2
    sample = source.read(0)
    sweep = sweep_of(sample)
    assert len(sweep) == 39  # without the car itself
    np.testing.assert_allclose(sweep.xyz, files.points(40, values=5)[1:, :3], atol=1e-5)
    assert 0 <= sweep.points[:, 3].min() < sweep.points[:, 3].max() <= 1
    np.testing.assert_allclose(sweep.pose[:3, 3], [100, 201, 1.8], atol=1e-9)
    np.testing.assert_allclose(sweep.pose[:3, 0], [0, 1, 0], atol=1e-9)  # ahead is the world's y
    objects = Objects.from_json(sample["objects.json"])
    assert objects.names == ("animal",)
    assert objects.boxes[0] == pytest.approx([20, 0, -0.8, 4, 2, 1.5, 0], abs=1e-6)
    assert objects.tracks.tolist() == [1]
    assert source.read(1)["objects.json"] == []


def test_nuscenes_sweeps_are_laid_over_one_another(tmp_path):
    source = NuScenesSource(files.nuscenes(tmp_path), "v1.0-mini", sweeps=3)
    assert len(sweep_of(source.read(0))) == 39  # the first has none before it
    sweep = sweep_of(source.read(1))
    times = sweep.points[:, 4]
    assert np.unique(times).tolist() == pytest.approx([0, 0.05, 0.1])
    newest, oldest = sweep.xyz[times == 0], sweep.xyz[np.isclose(times, 0.1)]
    np.testing.assert_allclose(oldest - newest, np.tile([-2.0, 0, 0], (39, 1)), atol=1e-4)


def test_nuscenes_refuses(tmp_path):
    files.nuscenes(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Versions in .*: v1\.0-mini"):
        NuScenesSource(tmp_path)
    with pytest.raises(ValueError, match="scene-0001"):
        NuScenesSource(tmp_path, "v1.0-mini", scenes="scene-0002")
    source = NuScenesSource(files.nuscenes(tmp_path / "bad", turn=(0, 0, 0, 0)), "v1.0-mini")
    with pytest.raises(CorruptSample, match="no rotation"):
        source.read(0)


# Real sweeps ----------------------------------------------------------------------------------------------------


def test_real_kitti_frames(shared_data):
    source = open_source(f"kitti:{shared_data / 'lidar_kitti_object'}?image=true")
    assert len(source) == 4
    for index in range(len(source)):
        sample = source.read(index)
        sweep, objects = sweep_of(sample), Objects.from_json(sample["objects.json"])
        assert len(sweep) > 10_000
        assert "jpg" in sample
        objects = objects[np.array([name != "DontCare" for name in objects.names], bool)]
        counts = point_counts(torch.from_numpy(sweep.xyz).double(), torch.from_numpy(objects.boxes))
        near = objects.boxes[:, 0] < 30
        assert (counts.numpy()[near] > 20).all(), sample["__key__"]
        calibration = Calibration.from_json(sample["calib.json"])
        found = calibration.image_boxes(objects.boxes, (375, 1242))
        whole = objects.truncated == 0
        assert np.abs(found - objects.image_boxes)[whole & near].max(initial=0) < 15  # drawn by hand
        again = parse_labels(format_labels(objects, calibration), calibration)
        np.testing.assert_allclose(again.boxes, objects.boxes, atol=1e-4)


def test_real_nuscenes_sweep(shared_data):
    folder = shared_data / "lidar_nuscenes_frame"
    frame = json.loads((folder / "annotation.json").read_text())["data_list"][0]
    xyz = read_points_ahead(folder / frame["lidar_points"]["lidar_path"])[:, :3]
    assert len(xyz) == 26_414  # of 34 688; the others are the car's own roof
    rows = [each for each in frame["instances"] if each["num_lidar_pts"] > 5]
    boxes = move_boxes(AHEAD, np.array([each["bbox_3d"] for each in rows]))
    counts = point_counts(torch.from_numpy(xyz).double(), torch.from_numpy(boxes)).numpy()
    wanted = np.array([each["num_lidar_pts"] for each in rows])
    assert np.abs(counts - wanted).max() <= 0.2 * wanted.max()
    assert np.corrcoef(counts, wanted)[0, 1] > 0.99


def test_real_pair_is_registered(shared_data):
    plyfile = pytest.importorskip("plyfile")
    folder = shared_data / "lidar_scan_pair"
    source, target = (
        np.stack([plyfile.PlyData.read(str(folder / name))["vertex"][axis] for axis in "xyz"], 1)
        for name in ("source.ply", "target.ply")
    )
    wanted = np.loadtxt(folder / "T_target_source.txt")
    found = registered(source, target)
    apart = np.linalg.norm(apply_pose(found, source) - apply_pose(wanted, source), axis=1)
    assert np.median(apart) < 0.03
    assert np.median(np.linalg.norm(apply_pose(wanted, source) - source, axis=1)) > 0.4
