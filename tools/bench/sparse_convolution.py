"""Sparse convolutions in plain torch, against dense ones and, where it is installed, spconv on the same device.

    uv run python -m tools.bench.sparse_convolution
    uv run --with spconv python -m tools.bench.sparse_convolution            # beside spconv's CPU build
    uv run python -m tools.bench.sparse_convolution --device cuda

A submanifold convolution of 3 x 3 x 3 on a sweep in voxels of 0.4 x 0.4 x 0.2 m, first with the search for neighbours,
then with it done, as in all further layers of a resolution, and forward with backward; and SECOND's whole backbone on
KITTI's grid. Results are held against each other first. Time: medians of interleaved calls in one process.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv3d

from collimate_3d.grid import VoxelGrid
from collimate_3d.operators import segment_mean, voxelise
from collimate_3d.sparse import SparseVoxels, SubmanifoldConv3d
from collimate_3d.voxel_backbone import VoxelBackBone8x
from tools.bench import _harness
from tools.bench._clouds import RANGE, sweep

OURS, SPCONV, DENSE = "ours", "spconv", "dense"


def voxels_of(cell: tuple[float, float, float], device: str, spare: int = 0) -> SparseVoxels:
    """The means of a sweep's voxels on KITTI's range, with so many empty layers above it."""
    grid, points = VoxelGrid(RANGE[:3], RANGE[3:], cell), sweep().to(device)
    found = voxelise(points[:, :3], torch.zeros(len(points), dtype=torch.int64, device=device), grid)
    depth, height, width = grid.shape
    means = segment_mean(points, found.voxel, len(found.coords))
    return SparseVoxels.build(means, found.coords, (depth + spare, height, width), 1)


def fresh(voxels: SparseVoxels) -> SparseVoxels:
    """The same without what was found out about its sites."""
    return SparseVoxels.build(voxels.features, voxels.coords, voxels.shape, voxels.batch_size)


def backends() -> list[str]:
    return [OURS, SPCONV] if importlib.util.find_spec("spconv") else [OURS]


def layers(channels: int, device: str) -> dict[str, SubmanifoldConv3d]:
    torch.manual_seed(0)
    made = {
        name: SubmanifoldConv3d(channels, channels, backend="torch" if name == OURS else "spconv").to(device)
        for name in backends()
    }
    for layer in made.values():
        layer.load_state_dict(made[OURS].state_dict())
    return made


def learn(layer: SubmanifoldConv3d, voxels: SparseVoxels, features: Tensor) -> Callable[[], None]:
    def run() -> None:
        layer.zero_grad(set_to_none=True)
        layer(voxels.with_features(features)).features.square().sum().backward()

    return run


def learn_dense(weight: Tensor, full: Tensor, occupied: Tensor) -> Callable[[], None]:
    def run() -> None:
        weight.grad = full.grad = None
        (conv3d(full, weight, padding=1) * occupied).square().sum().backward()

    return run


def compare_layers(channels: int, device: str, repeats: int) -> list[dict]:
    voxels = voxels_of((0.4, 0.4, 0.2), device)
    features = torch.randn(len(voxels), channels, generator=torch.Generator().manual_seed(0)).to(device)
    voxels = voxels.with_features(features)
    made = layers(channels, device)
    weight = made[OURS].weight.detach().permute(0, 4, 1, 2, 3).contiguous()
    full = voxels.dense()
    occupied = voxels.with_features(torch.ones_like(features[:, :1])).dense()
    with torch.no_grad():
        expected = made[OURS](voxels)
        for layer in made.values():
            torch.testing.assert_close(layer(voxels).features, expected.features, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(conv3d(full, weight, padding=1) * occupied, expected.dense(), rtol=1e-4, atol=1e-4)

    def without_grad(run: Callable[[], Any]) -> Callable[[], Any]:
        return torch.no_grad()(run)

    dense = without_grad(lambda: conv3d(full, weight, padding=1) * occupied)
    first = {name: without_grad(lambda layer=layer: layer(fresh(voxels))) for name, layer in made.items()}
    later = {name: without_grad(lambda layer=layer: layer(voxels)) for name, layer in made.items()}
    leaf = features.clone().requires_grad_()
    both = {name: learn(layer, voxels, leaf) for name, layer in made.items() if name == OURS or device != "cpu"}
    both[DENSE] = learn_dense(weight.clone().requires_grad_(), full.clone().requires_grad_(), occupied)
    steps = {"first forward": {**first, DENSE: dense}, "later forward": {**later, DENSE: dense}, "with backward": both}
    return [row(f"{what}, {channels} channels", runs, len(voxels), repeats) for what, runs in steps.items()]


def compare_backbones(device: str, repeats: int) -> dict:
    voxels = voxels_of((0.05, 0.05, 0.1), device, spare=1)
    made = {}
    for name in backends():
        torch.manual_seed(0)
        made[name] = VoxelBackBone8x(backend="torch" if name == OURS else "spconv").eval().to(device)
    with torch.no_grad():
        expected = made[OURS](voxels).out
        for backbone in made.values():
            torch.testing.assert_close(backbone(voxels).out.features, expected.features, rtol=1e-3, atol=1e-4)
    runs = {name: torch.no_grad()(lambda backbone=each: backbone(fresh(voxels))) for name, each in made.items()}
    return row("SECOND's backbone", runs, len(voxels), repeats)


def row(what: str, runs: dict[str, Callable[[], Any]], voxels: int, repeats: int) -> dict:
    seconds = _harness.interleaved(runs, repeats)
    others = {name: value / seconds[OURS] for name, value in seconds.items() if name != OURS}
    return {
        "what": what,
        "voxels": voxels,
        **{f"{name} s": value for name, value in seconds.items()},
        **{f"of {name}": value for name, value in others.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [each for channels in options.channels for each in compare_layers(channels, options.device, options.repeats)]
    rows.append(compare_backbones(options.device, options.repeats))
    name = "sparse_convolution_cuda" if options.device != "cpu" else "sparse_convolution"
    _harness.report(name, rows, beside=backends()[1:])


if __name__ == "__main__":
    main()
