"""Farthest points and balls: with buckets and cells, against the forms that compare everything.

    uv run python -m tools.bench.point_operators                    # 40 000 points of a room, as VoteNet samples them
    uv run python -m tools.bench.point_operators --points 100000

"plain" are the forms of common torch code: for sampling, a loop that computes all distances anew and updates those that
have shrunk; for balls, the matrix of all distances, and indices sorted behind those that are too far. Results are held
against each other first; those of balls may differ where the matrix of distances rounds at the radius.

Time: medians of interleaved calls in one process, one thread. Memory: growth of the peak of a fresh process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from collimate_3d.operators import ball_query, farthest_points, gathered
from tools.bench import _harness
from tools.bench._clouds import room

OURS, PLAIN = "ours", "plain"
BALLS = ((0.2, 64), (0.4, 32), (1.2, 16))  # radius and neighbours: two of VoteNet's, and a crowded one


def plain_sampling(xyz: Tensor, samples: int) -> Tensor:
    """A loop that computes all distances anew."""
    chosen = torch.zeros(len(xyz), samples, dtype=torch.int64)
    nearest = torch.full(xyz.shape[:2], 1e10)
    last, clouds = torch.zeros(len(xyz), dtype=torch.int64), torch.arange(len(xyz))
    for step in range(samples):
        chosen[:, step] = last
        distance = ((xyz - xyz[clouds, last][:, None]) ** 2).sum(-1)
        shrunk = distance < nearest
        nearest[shrunk] = distance[shrunk]
        last = nearest.max(-1).indices
    return chosen


def plain_ball(xyz: Tensor, centres: Tensor, radius: float, neighbours: int) -> Tensor:
    """All distances, and indices sorted behind those that are too far."""
    points = xyz.shape[1]
    index = torch.arange(points).expand(len(xyz), centres.shape[1], -1).clone()
    index[torch.cdist(centres, xyz) ** 2 >= radius**2] = points
    index = index.sort(-1).values[..., :neighbours]
    return torch.where(index == points, index[..., :1], index)


def runs(name: str, points: int, samples: int) -> dict[str, Callable[[], Tensor]]:
    """The contenders of one row of the table."""
    xyz = room(points)[None]
    if name == "farthest":
        return {OURS: lambda: farthest_points(xyz, samples), PLAIN: lambda: plain_sampling(xyz, samples)}
    radius, neighbours = BALLS[int(name.removeprefix("ball"))]
    centres = gathered(xyz, farthest_points(xyz, samples))
    return {
        OURS: lambda: ball_query(xyz, centres, radius, neighbours).index,
        PLAIN: lambda: plain_ball(xyz, centres, radius, neighbours),
    }


def compare(name: str, points: int, samples: int, repeats: int) -> dict:
    contenders = runs(name, points, samples)
    agreement = float((contenders[OURS]() == contenders[PLAIN]()).float().mean())
    seconds = _harness.interleaved(contenders, repeats)
    memory = {
        which: _harness.extra_peak_memory(__spec__.name, "--peak", name, which, str(points), str(samples))
        for which in contenders
    }
    what = "farthest points" if name == "farthest" else "ball of {} m, {} neighbours".format(*BALLS[int(name[4:])])
    return {
        "what": what,
        "agreement": agreement,
        **{f"{which} s": value for which, value in seconds.items()},
        "speedup": seconds[PLAIN] / seconds[OURS],
        **{f"{which} MiB": value / 2**20 for which, value in memory.items()},
        "memory": memory[OURS] / max(1, memory[PLAIN]),
    }


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--peak"]:
        name, which, points, samples = sys.argv[2:]
        run = runs(name, int(points), int(samples))[which]
        runs(name, 2000, 20)[which]()  # what is loaded at the first call
        print(_harness.peak_growth(run))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=40_000)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    names = ["farthest", *(f"ball{number}" for number in range(len(BALLS)))]
    rows = [compare(name, options.points, options.samples, options.repeats) for name in names]
    _harness.report("point_operators", rows, points=options.points, samples=options.samples)


if __name__ == "__main__":
    main()
