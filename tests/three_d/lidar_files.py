"""Small folders in the layouts of the LiDAR data sets, for tests."""

import json

import numpy as np

CALIB = {
    "P2": [700, 0, 600, 45, 0, 700, 180, -0.3, 0, 0, 1, 0.005],
    "R0_rect": [1, 0, 0, 0, 1, 0, 0, 0, 1],
    "Tr_velo_to_cam": [0, -1, 0, 0.02, 0, 0, -1, -0.06, 1, 0, 0, -0.3],
}


def points(count, seed=0, values=4):
    draw = np.random.default_rng(seed)
    xyz = draw.uniform([2, -20, -2], [60, 20, 1], (count, 3))
    return np.concatenate([xyz, draw.uniform(0, 1, (count, values - 3))], 1).astype("<f4")


def calibration_text(matrices=None, names=None):
    lines = {name: (matrices or CALIB)[name] for name in (names or CALIB)}
    return "\n".join(f"{name}: {' '.join(map(str, numbers))}" for name, numbers in lines.items()) + "\n"


LABELS = """Car 0.00 0 -1.57 600 150 680 210 1.5 1.6 4.0 1.0 1.6 20.0 -1.57
DontCare -1 -1 -10 10 20 30 40 -1 -1 -1 -1000 -1000 -1000 -10
"""


def kitti(root, count=10):
    for folder in ("velodyne", "calib", "label_2", "ImageSets"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        (root / "velodyne" / f"{number:06d}.bin").write_bytes(points(50, number).tobytes())
        (root / "calib" / f"{number:06d}.txt").write_text(calibration_text())
        (root / "label_2" / f"{number:06d}.txt").write_text(LABELS)
    (root / "ImageSets" / "train.txt").write_text("000001\n000003\n")
    return root


def odometry(root, sequence="00", numbers=range(5), rows=5, turn=0.0):
    """Poses of a camera that goes ahead by 1 m a frame."""
    folder = root / "sequences" / sequence
    for each in ("velodyne", "labels"):
        (folder / each).mkdir(parents=True)
    (folder / "calib.txt").write_text(
        calibration_text({"P2": CALIB["P2"], "Tr": CALIB["Tr_velo_to_cam"]}, ["P2", "Tr"])
    )
    poses = [np.eye(4)[:3] + np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, turn, 0, number]]) for number in range(rows)]
    (folder / "poses.txt").write_text("".join(" ".join(map(str, pose.ravel())) + "\n" for pose in poses))
    (folder / "times.txt").write_text("".join(f"{0.1 * number:.6e}\n" for number in range(rows)))
    for number in numbers:
        (folder / "velodyne" / f"{number:06d}.bin").write_bytes(points(20, number).tobytes())
        labels = np.array([10, 252, 40 | (7 << 16), 0] * 5, "<u4")
        (folder / "labels" / f"{number:06d}.label").write_bytes(labels.tobytes())
    return root


def kitti360(root, numbers=(1, 2, 3, 7), drive="drive_0"):
    (root / "calibration").mkdir(parents=True)
    (root / "data_poses" / drive).mkdir(parents=True)
    velodyne = root / "data_3d_raw" / drive / "velodyne_points" / "data"
    velodyne.mkdir(parents=True)
    to_lidar = np.array([[0, 0, 1, 0.3], [-1, 0, 0, 0.0], [0, -1, 0, -0.1]])
    (root / "calibration" / "calib_cam_to_velo.txt").write_text(" ".join(map(str, to_lidar.ravel())))
    rows = []
    for number in numbers:
        pose = np.eye(4)
        pose[2, 3] = number
        rows.append(" ".join(map(str, [number, *pose.ravel()])))
        (velodyne / f"{number:010d}.bin").write_bytes(points(20, number).tobytes())
    (velodyne / f"{100:010d}.bin").write_bytes(points(20).tobytes())  # a sweep of which no pose is known
    (root / "data_poses" / drive / "cam0_to_world.txt").write_text("\n".join(rows))
    return root


def nuscenes(root, turn=(0.5**0.5, 0, 0, 0.5**0.5)):
    """Two key frames with a sweep between them; the car looks along the world's y, and goes 1 m a sweep."""
    tables = root / "v1.0-mini"
    tables.mkdir(parents=True)
    (root / "samples").mkdir()
    raw = points(40, values=5)
    raw[:, :2] = raw[:, 1::-1]  # what is ahead lies along y
    raw[:, 0] *= -1
    raw[:, 3] *= 255
    raw[0, :2] = 0.5
    lidar = [
        {
            "token": f"d{at}", "sample_token": f"s{at // 2}", "ego_pose_token": f"e{at}",
            "calibrated_sensor_token": "c", "timestamp": 1_000_000 + 50_000 * at, "is_key_frame": at % 2 == 0,
            "prev": f"d{at - 1}" if at else "", "filename": f"samples/{at}.pcd.bin",
        }
        for at in range(3)
    ]  # fmt: skip
    for row in lidar:
        (root / row["filename"]).write_bytes(raw.tobytes())
    camera = {**lidar[0], "token": "x", "filename": "samples/x.jpg", "ego_pose_token": "other"}
    content = {
        "scene": [{"token": "scene", "name": "scene-0001"}],
        "sample": [{"token": f"s{at}", "scene_token": "scene"} for at in range(2)],
        "sample_data": [*lidar, camera],
        "ego_pose": [
            {"token": f"e{at}", "rotation": turn, "translation": [100.0, 200.0 + at, 0]} for at in range(3)
        ],
        "calibrated_sensor": [
            {"token": "c", "rotation": [0.5**0.5, 0, 0, -(0.5**0.5)], "translation": [1.0, 0, 1.8]}
        ],
        "category": [{"token": "k", "name": "vehicle.car"}, {"token": "a", "name": "animal"}],
        "instance": [{"token": "i0", "category_token": "k"}, {"token": "i1", "category_token": "a"}],
        "sample_annotation": [
            {
                "sample_token": "s0", "instance_token": "i1", "translation": [100.0, 221.0, 1.0],
                "size": [2.0, 4.0, 1.5], "rotation": [0.5**0.5, 0, 0, 0.5**0.5],
            }
        ],
    }  # fmt: skip
    for name, rows in content.items():
        (tables / f"{name}.json").write_text(json.dumps(rows))
    return root
