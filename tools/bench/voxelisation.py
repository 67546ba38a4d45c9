"""Sweeps a second into voxels and pillars, against rows made unique and, where it is installed, spconv.

    uv run python -m tools.bench.voxelisation
    uv run --with spconv python -m tools.bench.voxelisation

Sweeps of 120 000 points on KITTI's range. "unique" is the short form in torch, `unique(dim=0)` of coordinates; it keeps
no limits. spconv's `PointToVoxel` keeps limits, and pads. Results are held against each other first; all contenders
compute the means of voxels. Time: medians of interleaved calls in one process, one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from collimate_3d.grid import VoxelGrid
from collimate_3d.operators import segment_mean, voxelise, voxelise_limited
from tools.bench import _harness
from tools.bench._clouds import RANGE, sweep

CELLS = {"voxels": (0.05, 0.05, 0.1), "pillars": (0.16, 0.16, 4.0)}  # SECOND and PointPillars on KITTI
LIMITS = {"voxels": (5, 40_000), "pillars": (32, 40_000)}


def ours(points: Tensor, grid: VoxelGrid) -> Tensor:
    found = voxelise(points[:, :3], torch.zeros(len(points), dtype=torch.int64), grid)
    return segment_mean(points, found.voxel, len(found.coords))


def ours_limited(points: Tensor, grid: VoxelGrid, limits: tuple[int, int]) -> Tensor:
    found = voxelise_limited(points[:, :3], torch.zeros(len(points), dtype=torch.int64), grid, *limits)
    return segment_mean(points, found.voxel, len(found.coords))


def unique(points: Tensor, grid: VoxelGrid) -> Tensor:
    cells, inside = grid.cells_of(points[:, :3])
    points = points[inside]
    coords, member = cells[inside].unique(dim=0, return_inverse=True)
    total = torch.zeros(len(coords), points.shape[1]).index_add_(0, member, points)
    return total / torch.bincount(member)[:, None]


def spconv_limited(grid: VoxelGrid, limits: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    from spconv.pytorch.utils import PointToVoxel

    generator = PointToVoxel(list(grid.cell), [*grid.low, *grid.high], 4, limits[1], limits[0])

    def run(points: Tensor) -> Tensor:
        voxels, _, counts = generator(points)
        return voxels.sum(1) / counts[:, None]

    return run


def compare(name: str, sweeps: list[Tensor], repeats: int) -> list[dict]:
    grid, limits = VoxelGrid(RANGE[:3], RANGE[3:], CELLS[name]), LIMITS[name]
    free = {"ours": lambda points: ours(points, grid), "unique": lambda points: unique(points, grid)}
    limited: dict[str, Callable[[Tensor], Tensor]] = {"ours": lambda points: ours_limited(points, grid, limits)}
    if importlib.util.find_spec("spconv"):
        limited["spconv"] = spconv_limited(grid, limits)
    rows = []
    for what, contenders in ((name, free), (f"{name} of at most {limits[0]} points, {limits[1]} of them", limited)):
        expected = contenders["ours"](sweeps[0])
        for run in contenders.values():
            torch.testing.assert_close(run(sweeps[0]), expected, rtol=1e-4, atol=1e-4)
        seconds = _harness.interleaved(
            {which: lambda run=run: [run(points) for points in sweeps] for which, run in contenders.items()}, repeats
        )
        rates = {which: len(sweeps) / value for which, value in seconds.items()}
        ratios = {f"of {which}": rates["ours"] / rate for which, rate in rates.items() if which != "ours"}
        rows.append(
            {"what": what, "cells": len(expected)} | {f"{which}/s": rate for which, rate in rates.items()} | ratios
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=120_000)
    parser.add_argument("--sweeps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sweeps = [sweep(options.points, seed) for seed in range(options.sweeps)]
    rows = [row for name in CELLS for row in compare(name, sweeps, options.repeats)]
    _harness.report("voxelisation", rows, points=options.points)


if __name__ == "__main__":
    main()
