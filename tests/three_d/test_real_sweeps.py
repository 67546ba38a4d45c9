"""Real sweeps beyond reading: frames that a detector learns by heart, and a pair that features lay over one another."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from collimate.data import Source
from collimate.data.decoding import value_of
from collimate_3d.bev import BEVBackbone
from collimate_3d.detection import CenterPoint
from collimate_3d.evaluation.registration import evaluate_registration
from collimate_3d.grid import VoxelGrid
from collimate_3d.lidar.kitti import KittiSource
from collimate_3d.lidar.nuscenes import AHEAD, read_points_ahead
from collimate_3d.lidar.objects import OBJECTS, Objects
from collimate_3d.lidar.poses import apply_pose, move_boxes
from collimate_3d.lidar.processing import SweepProcessor, SweepView
from collimate_3d.lidar.sweep import SWEEP, Sweep, encode_sweep
from collimate_3d.lidar.transforms import Transform
from collimate_3d.pretraining import PointContrast
from collimate_3d.rotated_iou import bev_iou
from collimate_3d.voxel_encoder import BEVEncoder, VoxelEncoder

from .sweep_toys import batch_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class NuScenesFrame(Source):
    """One key frame as mmdetection3d describes it, with the objects of which at least ten points are seen."""

    name = "nuscenes-frame"

    def __init__(self, folder: Path, reach: float) -> None:
        self.folder, self.reach = folder, reach
        self.frame = json.loads((folder / "annotation.json").read_text())

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> dict:
        (frame,), kinds = self.frame["data_list"], self.frame["metainfo"]["categories"]
        names = {number: name for name, number in kinds.items()}
        points = read_points_ahead(self.folder / frame["lidar_points"]["lidar_path"])[:, :4]
        rows = [each for each in frame["instances"] if each["num_lidar_pts"] >= 10 and each["bbox_label_3d"] >= 0]
        boxes = move_boxes(AHEAD, np.array([each["bbox_3d"] for each in rows]))
        near = np.abs(boxes[:, :2]).max(1) < self.reach
        objects = Objects(tuple(names[each["bbox_label_3d"]] for each in rows), boxes)[near]
        sweep = encode_sweep(Sweep.checked(points))
        return {"__key__": "frame", "__source__": self.name, SWEEP: sweep, OBJECTS: objects.to_json()}


class Labelled(Source):
    """Boxes alone, without what KITTI grades difficulty by, so that every object in range counts."""

    def __init__(self, data: Source) -> None:
        self.data, self.name = data, data.name

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int) -> dict:
        sample = self.data.peek(index, (SWEEP, OBJECTS))
        objects = Objects.from_json(sample[OBJECTS])
        x, y = objects.boxes[:, :2].T
        inside = (x > 0) & (x < 51.2) & (np.abs(y) < 25.6)
        seen = Objects(objects.names, objects.boxes)[inside]
        return {**sample, OBJECTS: seen.to_json()}


class WithoutIntensity(Source):
    """Real sweeps, of which the strength of the echo is left out: each sensor has its own scale."""

    def __init__(self, data: Source) -> None:
        self.data, self.name = data, data.name

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int) -> dict:
        sample = self.data.peek(index, (SWEEP,))
        return sample | {SWEEP: encode_sweep(dark(value_of(sample, (SWEEP,)).points))}


def dark(points: np.ndarray) -> Sweep:
    return Sweep.checked(np.concatenate([points[:, :3], np.zeros((len(points), 1))], 1).astype(np.float32))


def trained(method, batches: Iterator[dict], steps: int, lr: float):
    optimizer = torch.optim.Adam(method.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        method.total_loss(method.loss_terms(next(batches))).backward()
        optimizer.step()
    return method.eval()


def detector(grid: VoxelGrid, classes: list[str]) -> CenterPoint:
    lift = VoxelEncoder(grid, widths=(8, 16, 16, 16), out_width=16)
    neck = BEVBackbone(lift.width, (1, 1), (1, 2), (32, 32), (2, 4), (32, 32))
    return CenterPoint(BEVEncoder(lift, neck), SweepProcessor(30_000), classes, head_width=32, norm_momentum=0.1)


def learned_by_heart(source: Source, grid: VoxelGrid, classes: list[str], steps: int = 200) -> tuple[float, float]:
    """Recall and precision of a detector on what it was taught, at an overlap of 0.5 from above.

    KITTI's average precision takes its thresholds from the scores of what is found; of so few objects even the labels
    themselves get but 0.1.
    """
    method = detector(grid, classes)
    batch = batch_of(method, source, range(len(source)), drawn=False)
    trained(method, iter(lambda: batch, None), steps, 3e-3)
    truths = [Objects.from_json(entries).named(*classes) for entries in batch[OBJECTS]]
    right = labelled = claimed = 0
    for truth, found in zip(truths, method.detect(batch["lidar"]), strict=True):
        assert found.scores is not None
        sure = found[found.scores > 0.3]
        labelled, claimed = labelled + len(truth), claimed + len(sure)
        for name in set(truth.names):
            boxes = [torch.from_numpy(each.named(name).boxes) for each in (truth, sure)]
            right += int((bev_iou(*boxes) > 0.5).any(1).sum()) if len(boxes[1]) else 0
    recall, precision = right / labelled, right / max(claimed, 1)
    print(f"\n{source.name}: {right} of {labelled} objects, {claimed} boxes")
    return recall, precision


def test_kitti_frames_are_learned_by_heart(shared_data):
    source = Labelled(KittiSource(str(shared_data / "lidar_kitti_object"), front=True))
    grid = VoxelGrid((0.0, -25.6, -3.0), (51.2, 25.6, 1.0), (0.2, 0.2, 0.16))
    recall, precision = learned_by_heart(source, grid, ["Car", "Pedestrian", "Cyclist"])
    assert recall == 1
    assert precision > 0.9


def test_a_nuscenes_frame_is_learned_by_heart(shared_data):
    source = NuScenesFrame(shared_data / "lidar_nuscenes_frame", reach=38.0)
    grid = VoxelGrid((-38.4, -38.4, -4.0), (38.4, 38.4, 2.0), (0.2, 0.2, 0.2))
    classes = sorted({each["name"] for each in source.read(0)[OBJECTS]})
    recall, precision = learned_by_heart(source, grid, classes)
    assert recall > 0.9  # barriers stand end to end
    assert precision > 0.9


def test_real_pair_is_registered_by_features(shared_data):
    """A backbone that saw four other frames lays a sweep over the next, from an angle of which nothing is known."""
    plyfile = pytest.importorskip("plyfile")
    folder = shared_data / "lidar_scan_pair"
    source, target = (
        dark(np.stack([plyfile.PlyData.read(str(folder / name))["vertex"][axis] for axis in "xyz"], 1))
        for name in ("source.ply", "target.ply")
    )
    turned = Transform(angle=0.7).matrix.numpy()
    motion = np.loadtxt(folder / "T_target_source.txt") @ np.linalg.inv(turned)
    source = dark(apply_pose(turned, source.xyz))

    grid = VoxelGrid((-38.4, -38.4, -3.0), (38.4, 38.4, 2.0), (0.3, 0.3, 0.2))
    encoder = VoxelEncoder(grid, widths=(16, 32, 32, 32), out_width=32)
    method = PointContrast(encoder, SweepProcessor(25_000), point_level="conv2", pairs=512)
    before = evaluate_registration(method, source, target, motion, device="cpu").metrics

    frames = WithoutIntensity(KittiSource(str(shared_data / "lidar_kitti_object")))
    view = SweepView(0.5, np.pi / 2, (1.0, 1.0), 0.2)
    batches = (batch_of(method, frames, [2 * step % 4, 2 * step % 4 + 1], lidar=view) for step in range(1000))
    trained(method, batches, 80, 3e-3)
    after = evaluate_registration(method, source, target, motion, device="cpu").metrics
    print(f"\nuntaught: {before}\ntaught: {after}")
    assert after["right matches"] > 1.2 * before["right matches"]
    assert after["rotation error"] < before["rotation error"] / 4  # 8 degrees to 0.2 or, of some seeds, 1.1
    assert after["translation error"] < 0.3
