"""Sequences of sweeps with poses: KITTI odometry and SemanticKITTI, and KITTI-360, as sources of samples.

`kitti-odometry:/data/dataset?sequences=train` reads

    sequences/00/velodyne/000000.bin   sequences/00/labels/000000.label   sequences/00/{calib,poses,times}.txt

(poses also as `poses/00.txt`), and `kitti-360:/data/KITTI-360`

    data_3d_raw/<drive>/velodyne_points/data/0000000000.bin   data_poses/<drive>/cam0_to_world.txt
    calibration/calib_cam_to_velo.txt

Poses are turned into those of the LiDAR. A sweep belongs to the one `step` frames before it by its number, never by its
place in a list: KITTI-360 has poses of some frames only, and folders may lack sweeps.

Shape legend: N points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from collimate.data.decoding import Undecodable
from collimate.data.source import Sample, Source
from collimate_3d.lidar.calibration import Calibration
from collimate_3d.lidar.flow import flow_of_poses
from collimate_3d.lidar.kitti import reading
from collimate_3d.lidar.poses import check_pose, inverse_pose, motion_between
from collimate_3d.lidar.sweep import PREVIOUS, SWEEP, Sweep, encode_sweep, read_points

SPLITS = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
    "test": tuple(f"{number:02d}" for number in range(11, 22)),
}
"""The sequences of SemanticKITTI's splits (Behley et al. 2019)."""

SEMANTIC_KITTI = {
    0: 0, 1: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 44: 10, 48: 11, 49: 12,
    50: 13, 51: 14, 52: 0, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 99: 0, 252: 1, 253: 7, 254: 6, 255: 8,
    256: 5, 257: 5, 258: 4, 259: 5,
}  # fmt: skip
"""Number in the label files -> class: 0 for what is not judged, 1 to 19 in the order of the benchmark, where what moves
is of the class of what stands (PRBonn/semantic-kitti-api, semantic-kitti.yaml)."""


@dataclass(frozen=True)
class Frame:
    """Where one sweep of a sequence lies.

    Attributes:
        sequence: its name.
        number: of the frame; the sweep before it has the number before.
        points: the file of its points.
        labels: the file of their labels, if there is one.
        pose: of the LiDAR in the world, if it is known.
        time: seconds, if it is known.
    """

    sequence: str
    number: int
    points: Path
    labels: Path | None = None
    pose: Float[np.ndarray, "4 4"] | None = None
    time: float | None = None


class SequenceSource(Source):
    """Sweeps of sequences, alone or with the one before.

    A sample has `sweep.npz`; with `pairs` also `previous.npz`, whose flow, where both have a pose, is that of a world
    that stands still, the sensor's motion included; and `json`: sequence, frame, and by how many frames both differ.

    Args:
        frames: the sweeps, in any order.
        name: what reports call the source.
        pairs: take only sweeps that have one `step` frames before them.
        step: frames between both.

    Attributes:
        alone: sweeps that were left out, because the one before is missing.

    Raises:
        ValueError: nothing is left, or two frames have one number.
    """

    def __init__(self, frames: Iterable[Frame], name: str, pairs: bool = False, step: int = 1) -> None:
        if step < 1:
            raise ValueError(f"The sweep before lies 1 or more frames before; not {step}.")
        every = sorted(frames, key=lambda frame: (frame.sequence, frame.number))
        by_number = {(frame.sequence, frame.number): frame for frame in every}
        if len(by_number) < len(every):
            raise ValueError(f"{name}: {len(every) - len(by_number)} frames have the number of another in a sequence.")
        before = [by_number.get((frame.sequence, frame.number - step)) if pairs else None for frame in every]
        chosen = [place for place, frame in enumerate(before) if frame is not None or not pairs]
        if not chosen:
            raise ValueError(f"{name}: none of {len(every)} sweeps has one {step} frames before it.")
        self.frames, self.before = [every[place] for place in chosen], [before[place] for place in chosen]
        self.alone, self.name, self.step = len(every) - len(chosen), name, step

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> Sample:
        return self.peek(index, (SWEEP, PREVIOUS, "json"))

    def peek(self, index: int, keys: Sequence[str]) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} sweeps; there is no sweep {index}.")
        frame, before = self.frames[index], self.before[index]
        sample: Sample = {"__key__": f"{frame.sequence}/{frame.number:06d}", "__source__": self.name}
        where = f"{self.name}: {sample['__key__']}"
        if SWEEP in keys:
            sample[SWEEP] = encode_sweep(reading(where, partial(read_frame, frame)))
        if before is not None and PREVIOUS in keys:
            previous = reading(f"{where}, the sweep before", partial(read_frame, before))
            if before.pose is not None and frame.pose is not None:
                flow = reading(where, partial(_flow, previous, frame.pose))
                previous = replace(previous, flow=flow, flow_includes_ego=True)
            sample[PREVIOUS] = encode_sweep(previous)
        if "json" in keys:
            sample["json"] = {"sequence": frame.sequence, "frame": frame.number} | (
                {} if before is None else {"step": self.step}
            )
        return sample


def read_frame(frame: Frame) -> Sweep:
    """One sweep with its labels.

    Raises:
        Undecodable: it is damaged; or labels that are of other points, or of no class that is known.
    """
    points = read_points(frame.points.read_bytes())
    labels, instances = None, None
    if frame.labels is not None:
        labels, instances = read_labels(frame.labels.read_bytes())
    return Sweep.checked(points, pose=frame.pose, time=frame.time, labels=labels, instances=instances)


def read_labels(data: bytes) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """Classes (0 to 19, see `SEMANTIC_KITTI`) and objects of the points in a file of labels.

    Raises:
        Undecodable: the file ends within a number, or has one that is no class.
    """
    if len(data) % 4:
        raise Undecodable("wrong stride", f"{len(data)} bytes are no whole number of uint32 labels")
    both = np.frombuffer(data, "<u4").astype(np.int64)
    raw, instances = both & 0xFFFF, both >> 16
    known = np.full(2**16, -1)
    known[list(SEMANTIC_KITTI)] = list(SEMANTIC_KITTI.values())
    if (wrong := known[raw] < 0).any():
        raise Undecodable("unknown label", f"{np.unique(raw[wrong])[:8].tolist()}; SemanticKITTI's are 0 to 259")
    return known[raw], instances


def open_odometry(path: str, sequences: str | int | Sequence[str] | None = None, **options: Any) -> SequenceSource:
    """The source that `kitti-odometry:<path>` names.

    Args:
        path: the folder with `sequences`.
        sequences: their names, joined by commas; or `train`, `val`, `test` for those of SemanticKITTI; all if None.
        options: `pairs` and `step` of `SequenceSource`.

    Raises:
        FileNotFoundError: a sequence or its calibration is missing.
        ValueError: poses that are none, or too few of them.
    """
    root = Path(path) / "sequences"
    names = _names(root, sequences)
    frames = [frame for name in names for frame in odometry_frames(root / name)]
    return SequenceSource(frames, f"kitti-odometry:{path}", **options)


def odometry_frames(folder: Path) -> list[Frame]:
    """The sweeps of one sequence of KITTI odometry."""
    files = sorted((folder / "velodyne").glob("*.bin"))
    if not files:
        raise FileNotFoundError(f"There is no .bin file in {folder / 'velodyne'}.")
    poses = _odometry_poses(folder)
    times = np.loadtxt(folder / "times.txt", ndmin=1).tolist() if (folder / "times.txt").is_file() else None
    frames = []
    for file in files:
        number, labels = int(file.stem), folder / "labels" / f"{file.stem}.label"
        for what, rows in (("poses", poses), ("times", times)):
            if rows is not None and number >= len(rows):
                raise ValueError(f"{folder}: there are {len(rows)} {what}, and a sweep with the number {number}.")
        pose, time = None if poses is None else poses[number], None if times is None else times[number]
        frames.append(Frame(folder.name, number, file, labels if labels.is_file() else None, pose, time))
    return frames


def open_kitti360(path: str, sequences: str | Sequence[str] | None = None, **options: Any) -> SequenceSource:
    """The source that `kitti-360:<path>` names. Sweeps of which no pose is known are left out.

    Args:
        path: the folder with `data_3d_raw`.
        sequences: drives, joined by commas; all if None.
        options: `pairs` and `step` of `SequenceSource`.

    Raises:
        FileNotFoundError: a drive, its poses or the calibration is missing.
        ValueError: poses that are none.
    """
    root = Path(path)
    to_lidar = np.eye(4)
    to_lidar[:3] = np.loadtxt(root / "calibration" / "calib_cam_to_velo.txt").reshape(3, 4)
    to_camera = inverse_pose(check_pose(to_lidar, "calib_cam_to_velo"))
    frames = []
    for name in _names(root / "data_3d_raw", sequences):
        rows = np.loadtxt(root / "data_poses" / name / "cam0_to_world.txt", ndmin=2)
        for row in rows:
            number = int(row[0])
            points = root / "data_3d_raw" / name / "velodyne_points" / "data" / f"{number:010d}.bin"
            if points.is_file():
                pose = check_pose(row[1:].reshape(4, 4), f"pose of frame {number} of {name}") @ to_camera
                frames.append(Frame(name, number, points, None, pose))
    return SequenceSource(frames, f"kitti-360:{path}", **options)


def _odometry_poses(folder: Path) -> list[Float[np.ndarray, "4 4"]] | None:
    """Poses of the LiDAR, the first at the origin of the world; None where a sequence has none."""
    places = (folder / "poses.txt", folder.parent.parent / "poses" / f"{folder.name}.txt")
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return None
    try:
        to_camera = Calibration.parse((folder / "calib.txt").read_text()).lidar_to_rectified
    except Undecodable as error:
        raise ValueError(f"{folder / 'calib.txt'}: {error}") from None
    rows = np.loadtxt(file, ndmin=2)
    if rows.shape[1] != 12:
        raise ValueError(
            f"{file}: a pose is 12 numbers in a row, the first three of a 4 x 4 matrix; got {rows.shape[1]}."
        )
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows.reshape(-1, 3, 4)
    to_lidar = np.linalg.inv(to_camera)
    return [to_lidar @ check_pose(pose, f"pose {number} in {file}") @ to_camera for number, pose in enumerate(poses)]


def _names(root: Path, sequences: str | int | Sequence[str] | None) -> list[str]:
    """The sequences that are meant; each must be there."""
    if sequences is None:
        names = sorted(each.name for each in root.glob("*") if each.is_dir())
    elif isinstance(sequences, str) and sequences in SPLITS:
        names = list(SPLITS[sequences])
    else:
        listed = sequences.split(",") if isinstance(sequences, str) else sequences
        several = [listed] if isinstance(listed, int) else listed  # 04 on the command line is a number
        names = [f"{each:02d}" if isinstance(each, int) else each for each in several]
    for name in names:
        if not (root / name).is_dir():
            there = ", ".join(sorted(each.name for each in root.glob("*"))) or "nothing"
            raise FileNotFoundError(f"There is no sequence {name} in {root}, which has {there}.")
    if not names:
        raise FileNotFoundError(f"There are no sequences in {root}.")
    return names


def _flow(previous: Sweep, pose: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "N 3"]:
    assert previous.pose is not None
    try:
        return flow_of_poses(previous.xyz, motion_between(previous.pose, pose))
    except ValueError as error:
        raise Undecodable("flow too large", str(error)) from None
