"""Memory and time of a step of pre-training on whole sweeps: E-SSL3D, BEVContrast and PointContrast on KITTI's grid.

    uv run python -m tools.bench.lidar_pretraining
    uv run python -m tools.bench.lidar_pretraining --batch 2 --points 120000 --device cuda

Each method runs in a fresh process: SECOND's whole backbone, 0.05 m voxels, sweeps of 64 rings. Memory is the growth of
the peak over what the process held before the first step; time the median of the steps after it. The turn of a view
decides how much of a sweep is in range, so all are turned by the same draws.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

from collimate_3d.grid import VoxelGrid
from collimate_3d.lidar.processing import SweepProcessor, SweepView
from collimate_3d.lidar.sweep import Sweep
from collimate_3d.pretraining import ESSL3D, BEVContrast, PointContrast
from collimate_3d.voxel_encoder import VoxelEncoder
from tools.bench import _harness
from tools.bench._clouds import RANGE, sweep

METHODS = {"E-SSL3D": ESSL3D, "BEVContrast": BEVContrast, "PointContrast": PointContrast}
STEPS = 2


def batch_of(method: Any, size: int, points: int, device: str) -> dict[str, torch.Tensor]:
    """Views of sweeps, with the sweep before each, whose flow is that of a car at 36 km/h."""
    random.seed(0)
    rows = []
    for number in range(size):
        now, before = (sweep(points, seed=2 * number + each).numpy() for each in (0, 1))
        flow = np.tile(np.float32([-1.0, 0.0, 0.0]), (len(before), 1))
        processors = method.processors
        earlier = Sweep(before, pose=np.eye(4), flow=flow, flow_includes_ego=True)
        row = {key: SweepView()(Sweep(now, pose=np.eye(4)), processors["lidar"]) for key in ("lidar", "lidar_view")}
        if "previous_sweep" in processors:
            row["previous_sweep"] = processors["previous_sweep"](earlier)
        rows.append(row)
    return {key: torch.stack([row[key] for row in rows]).to(device) for key in rows[0]}


def measured(name: str, size: int, points: int, device: str) -> dict[str, Any]:
    """One method, in this process."""
    grid = VoxelGrid(RANGE[:3], RANGE[3:], (0.05, 0.05, 0.1))
    torch.manual_seed(0)
    method: Any = METHODS[name](VoxelEncoder(grid), SweepProcessor(points)).to(device)
    optimizer = torch.optim.AdamW([each for each in method.parameters() if each.requires_grad], 1e-4)
    batch = batch_of(method, size, points, device)
    seconds = []

    def step() -> None:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        method.total_loss(method.loss_terms(batch)).backward()
        optimizer.step()
        method.after_optimizer_step()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)

    growth = _harness.peak_growth(lambda: [step() for _ in range(1 + STEPS)])
    return {
        "method": name,
        "batch": size,
        "points of a sweep": points,
        "peak GiB": growth / 2**30,
        "s a step": statistics.median(seconds[1:]),
    }


def alone(name: str, size: int, points: int, device: str) -> dict[str, Any]:
    """One method, in a process of its own."""
    given = {"only": name, "batch": size, "points": points, "device": device}
    options = [f"--{key}={value}" for key, value in given.items()]
    command = [sys.executable, "-m", "tools.bench.lidar_pretraining", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--points", type=int, default=120_000)
    parser.add_argument("--only", choices=list(METHODS), help="measure this method in this process, and print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(measured(options.only, options.batch, options.points, options.device)))
        return
    rows = [alone(name, options.batch, options.points, options.device) for name in METHODS]
    _harness.report("lidar_pretraining" if options.device == "cpu" else "lidar_pretraining_cuda", rows)


if __name__ == "__main__":
    main()
