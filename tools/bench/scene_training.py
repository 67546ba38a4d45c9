"""What a training step on whole scenes takes: 200 000 points and 100 objects each, four at a time.

    uv run python -m tools.bench.scene_training
    uv run python -m tools.bench.scene_training --device cuda

Objects by their masks: `SceneGraphVLP` of the recipe scene_graph_scannet, which reads 1024 points of every object.
Objects to be found: `SceneDetector` of the recipe scene_detector_scannet, upon all points. A step is forward, backward
and AdamW. Scenes are boxes of random points, so that only sizes mean anything. Memory: growth of the peak of a fresh
process, or of the GPU, over what the model itself holds; gradients and the optimizer's state are in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from collimate.data.preparation import Preparation, collate
from collimate.training import Method
from collimate_3d import (
    GRUTextEncoder,
    RoomProcessor,
    SceneDetector,
    SceneGraphVLP,
    SceneProcessor,
    TripletGraph,
    VoteNetBackbone,
    WordTokenizer,
)
from collimate_3d.pointnet2 import ObjectPointNet2
from tools.bench import _harness

MASKS, FOUND = "objects by masks", "objects to be found"
WORDS = ["the", "chair", "left", "of", "table"]


def scene(points: int, objects: int, seed: int) -> dict[str, Any]:
    """A sample: boxes of points in a room of 10 m, and eight sentences."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(-5, 5, (objects, 3)), rng.uniform(0.3, 1.5, (objects, 3))], 1)
    instance = np.arange(points) % objects
    xyz = boxes[instance, :3] + rng.uniform(-0.5, 0.5, (points, 3)) * boxes[instance, 3:]
    told = [{"text": "the chair left of the table", "target": place, "words": [[place, 4, 9]]} for place in range(8)]
    arrays = {
        "xyz": xyz.astype(np.float32),
        "rgb": rng.integers(0, 256, (points, 3), dtype=np.uint8),
        "instance": instance,
        "ids": np.arange(objects),
        "labels": rng.choice(["chair", "table"], objects),
        "boxes": boxes.astype(np.float32),
    }
    return {"__key__": str(seed), "scene.npz": arrays, "referrals.json": told, "txt": "a room with chairs"}


def method(name: str, points: int, objects: int) -> Method:
    torch.manual_seed(0)
    if name == FOUND:
        return SceneDetector(VoteNetBackbone(7), RoomProcessor(["chair", "table"], points, objects))
    return SceneGraphVLP(
        ObjectPointNet2(),
        GRUTextEncoder(len(WORDS) + 4, 300, 256),
        TripletGraph(),
        SceneProcessor(["chair", "table"], objects),
        WordTokenizer(WORDS),
    )


def step(name: str, points: int, objects: int, batch_size: int, device: str) -> Callable[[], None]:
    """One step of training."""
    made = method(name, points, objects).train().to(device)
    prepare = Preparation(made.processors, captions=made.captions, optional=made.optional)
    batch = collate([prepare(scene(points, objects, seed)) for seed in range(batch_size)])
    batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    optimizer = torch.optim.AdamW(made.parameters(), 1e-4)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        made.total_loss(made.loss_terms(batch)).backward()
        optimizer.step()

    return run


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--objects", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.points, options.objects, options.batch_size
    if options.peak:
        run = step(options.peak, *sizes, options.device)
        print(_harness.peak_growth(run))
        return
    rows = []
    for name in (MASKS, FOUND):
        arguments = ["--peak", name, "--device", options.device]
        for key in ("points", "objects", "batch_size"):
            arguments += [f"--{key}", str(getattr(options, key))]
        grown = _harness.extra_peak_memory(__spec__.name, *arguments)
        rows.append({"what": name, "peak GiB": grown / 2**30})
    suffix = "_cuda" if options.device != "cpu" else ""
    _harness.report(
        f"scene_training{suffix}", rows, points=sizes[0], objects=sizes[1], batch_size=sizes[2], weights="random"
    )


if __name__ == "__main__":
    main()
