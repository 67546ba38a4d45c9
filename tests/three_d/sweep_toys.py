"""Small sweeps and encoders for the methods on LiDAR: points on the ground and on boxes that move."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from collimate.data import Source
from collimate.data.preparation import TrainingPreparation, collate
from collimate_3d.grid import VoxelGrid
from collimate_3d.lidar.processing import SweepProcessor, SweepView
from collimate_3d.lidar.sweep import Sweep, encode_sweep
from collimate_3d.voxel_encoder import VoxelEncoder

GRID = VoxelGrid((0.0, -12.8, -3.0), (25.6, 12.8, 1.0), (0.4, 0.4, 0.16))
CLASSES = ("Car", "Pedestrian", "Cyclist")
SIDES = {"Car": (3.9, 1.6, 1.56), "Pedestrian": (0.8, 0.6, 1.73), "Cyclist": (1.76, 0.6, 1.73)}


class Streets(Source):
    """A few boxes of three classes on flat ground; each sample has the sweep before and its flow."""

    def __init__(self, length: int = 16, points: int = 400, seed: int = 0) -> None:
        self.length, self.points, self.seed, self.name = length, points, seed, "streets"

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> dict[str, Any]:
        drawn = np.random.default_rng((self.seed, index))
        names = [CLASSES[number] for number in drawn.integers(0, 3, 4)]
        sides = np.array([SIDES[name] for name in names])
        places = np.stack([np.arange(4) * 5 + 4 + drawn.random(4), drawn.uniform(-8, 8, 4)], 1)
        heading = drawn.uniform(-np.pi, np.pi, 4)
        speed = drawn.uniform(0, 1, 4)
        before = np.stack([*places.T, sides[:, 2] / 2 - 1.73, *sides.T, heading], 1)
        moved = np.stack([speed * np.cos(heading), speed * np.sin(heading), 0 * speed], 1)
        now = before.copy()
        now[:, :3] += moved
        ground = drawn.uniform((0, -12, -1.74), (25, 12, -1.72), (self.points, 3))
        shares = drawn.uniform(-0.5, 0.5, (4, 40, 3))
        flow = np.concatenate([0 * ground, moved.repeat(40, 0)])
        sample: dict[str, Any] = {"__key__": f"street-{index}", "__source__": self.name}
        for key, boxes, extra in (
            ("previous.npz", before, {"flow": flow.astype(np.float32), "flow_includes_ego": True}),
            ("sweep.npz", now, {}),
        ):
            cosine, sine = np.cos(heading)[:, None], np.sin(heading)[:, None]
            local = shares * sides[:, None]
            turned = np.stack(
                [
                    local[..., 0] * cosine - local[..., 1] * sine,
                    local[..., 0] * sine + local[..., 1] * cosine,
                    local[..., 2],
                ],
                -1,
            )
            xyz = np.concatenate([ground, (turned + boxes[:, None, :3]).reshape(-1, 3)])
            points = np.concatenate([xyz, np.full((len(xyz), 1), 0.5)], 1).astype(np.float32)
            sample[key] = encode_sweep(Sweep.checked(points, pose=np.eye(4), **extra))
        sample["objects.json"] = [{"name": name, "box": box.tolist()} for name, box in zip(names, now, strict=True)]
        return sample


def encoder(width: int = 4) -> VoxelEncoder:
    torch.manual_seed(0)
    return VoxelEncoder(GRID, widths=(width, width, 2 * width, 2 * width), out_width=2 * width)


def processor() -> SweepProcessor:
    return SweepProcessor(600)


def batch_of(method, source: Source, indices, drawn: bool = True, **views: SweepView) -> dict[str, Any]:
    """A batch as training makes it."""
    augmentations = {"lidar": SweepView(), **views} if drawn else {}
    prepare = TrainingPreparation(method.processors, augmentations=augmentations, also=method.also, views=method.views)
    return collate([prepare(source.read(index)) for index in indices])
