"""How fast boxes are compared and detectors judged.

    uv run python -m tools.bench.boxes

Goals: the IoU of 500 x 500 rotated boxes in 0.2 s on two cores, and KITTI's average precision of 3,769 frames with 30
objects each in 60 s. Clipping one pair at a time in Python stands beside the first, on fewer pairs, as what a plain
implementation costs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from collimate_3d.boxes import footprints
from collimate_3d.lidar.kitti_ap import kitti_ap
from collimate_3d.lidar.objects import Objects
from collimate_3d.rotated_iou import bev_iou, iou_3d, near_pairs
from tools.bench._harness import interleaved, report

NAMES = ("Car", "Car", "Pedestrian", "Cyclist", "Van")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boxes", type=int, default=500)
    parser.add_argument("--frames", type=int, default=3769)
    parser.add_argument("--objects", type=int, default=30, help="in each frame")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    rows = []
    for spread, what in ((70, "over a street"), (5, "crowded"), (1, "all over one another")):
        one, other = boxes(options.boxes, spread, 0), boxes(options.boxes, spread, 1)
        contenders = {
            "bev_iou": lambda one=one, other=other: bev_iou(one, other),
            "iou_3d": lambda one=one, other=other: iou_3d(one, other),
            "clipping, 100 pairs": lambda one=one, other=other: clipped(one[:10], other[:10]),
        }
        pairs = len(near_pairs(one, other)[0])
        for name, seconds in interleaved(contenders, options.turns).items():
            measured = {"seconds": seconds, "cpu_seconds": processor_time(contenders[name])}
            rows.append({"work": name, "boxes": what, "near_pairs": pairs, **measured})
    truths, detections = frames(options.frames, options.objects)
    start, used = time.perf_counter(), processor_time(lambda: kitti_ap(truths, detections))
    measured = {"seconds": time.perf_counter() - start, "cpu_seconds": used}
    rows.append({"work": "kitti_ap, all metrics", "boxes": f"{options.frames} frames", **measured})
    report("boxes", rows, **vars(options))


def processor_time(run: Callable[[], object]) -> float:
    """Seconds of all cores together, which others that want them do not lengthen."""
    start = time.process_time()
    run()
    return time.process_time() - start


def boxes(count: int, spread: float, seed: int) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    low, high = [0, 0, -1, 1, 0.6, 1, -3], [spread, spread, 0, 5, 2, 2, 3]
    return torch.from_numpy(draw.uniform(low, high, (count, 7)))


def clipped(one: torch.Tensor, other: torch.Tensor) -> list[float]:
    """Sutherland and Hodgman in plain lists: the shared area of every pair."""
    areas = []
    for first in footprints(one).tolist():
        for second in footprints(other).tolist():
            polygon = first
            for (x0, y0), (x1, y1) in zip(second, second[1:] + second[:1], strict=True):
                sides = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in polygon]
                kept = []
                for at, (x, y) in enumerate(polygon):
                    (last_x, last_y), side, last = polygon[at - 1], sides[at], sides[at - 1]
                    if (side >= 0) != (last >= 0):
                        share = last / (last - side)
                        kept.append([last_x + share * (x - last_x), last_y + share * (y - last_y)])
                    if side >= 0:
                        kept.append([x, y])
                polygon = kept
            turns = zip(polygon, polygon[1:] + polygon[:1], strict=True)
            areas.append(sum(a[0] * b[1] - a[1] * b[0] for a, b in turns) / 2)
    return areas


def frames(count: int, objects: int) -> tuple[list[Objects], list[Objects]]:
    """Labels of every difficulty, and detections near them."""
    draw = np.random.default_rng(0)
    truths, detections = [], []
    for _ in range(count):
        names = tuple(NAMES[number] for number in draw.integers(len(NAMES), size=objects))
        own = draw.uniform([0, -40, -2, 1, 0.6, 1.4, -3], [70, 40, 0, 4, 1.8, 1.8, 3], (objects, 7))
        high, left, top = draw.uniform([15, 0, 0], [90, 1200, 250], (objects, 3)).T
        images = np.stack([left, top, left + 1.5 * high, top + high], 1)
        hidden, alphas = draw.integers(0, 3, objects).astype(float), draw.uniform(-3, 3, (2, objects))
        truths.append(Objects(names, own, None, None, images, alphas[0], draw.uniform(0, 0.6, objects), hidden))
        found = own + draw.normal(0, 0.05, own.shape) * [1, 1, 1, 0.5, 0.5, 0.5, 1]
        near = images + draw.normal(0, 2, images.shape)
        detections.append(Objects(names, found, draw.uniform(0, 1, objects), None, near, alphas[1]))
    return truths, detections


if __name__ == "__main__":
    main()
