"""Detectors of rooms: how many objects they find, and how well boxes lie."""

from __future__ import annotations

import numpy as np
import torch

from collimate.data import EvalLoader, Source
from collimate.evaluation.features import Precision, autocast, evaluating, in_order, place, progress, settings_of
from collimate.evaluation.result import Result
from collimate_3d.graphs.geometry import box_overlap
from collimate_3d.lidar.kitti_ap import EVERYTHING, kitti_ap
from collimate_3d.lidar.objects import Objects
from collimate_3d.proposals.detector import SceneDetector

OVERLAPS = (0.25, 0.5)  # VoteNet's and ScanRefer's


def evaluate_scene_detection(
    method: SceneDetector,
    data: Source,
    batch_size: int = 8,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
) -> Result:
    """Find the objects of rooms: average precision of each class, and the share of objects that any box covers.

    Average precision is KITTI's over 40 recalls, of axis-aligned boxes; VoteNet's is that of Pascal VOC, over every
    recall, which differs a little.

    Args:
        method: trained.
        data: samples with `scene.npz`.
        batch_size, num_workers, device, precision, limit: as of `evaluate_grounding`.

    Raises:
        ValueError: no room can be read.
    """
    where = place(method, device)
    loader = EvalLoader(data, method.processors, batch_size, num_workers, limit=limit)
    rows: list[tuple[Objects, Objects]] = []
    index: list[int] = []
    classes = method.processors["room"].classes  # type: ignore[union-attr]
    with evaluating(method):
        for batch in progress(loader, f"Detecting in {data.name}"):
            with torch.inference_mode(), autocast(where, precision):
                found = method.detect(batch["room"].to(where))
            room = method.processors["room"].unpacked(batch["room"])  # type: ignore[union-attr]
            for row in batch["valid"].nonzero()[:, 0].tolist():
                known = room.given[row] & (room.labels[row] >= 0)
                truth = _objects(room.boxes[row][known].numpy(), room.labels[row][known].numpy(), classes)
                own = found[row]
                rows.append((truth, _objects(own.boxes, own.labels, classes, own.scores)))
                index.append(int(batch["index"][row]))
    every = in_order(rows, torch.tensor(index, dtype=torch.int64))
    if not every:
        raise ValueError(f"{data.name}: there is no room that can be read.")
    truths, detections = zip(*every, strict=True)
    metrics: dict[str, float] = {}
    for least in OVERLAPS:
        judged = kitti_ap(truths, detections, classes, {"3d": [least] * len(classes)}, EVERYTHING).metrics
        metrics |= {
            f"AP@{least:g} {name.removeprefix('3d ').removesuffix(' all')}": value for name, value in judged.items()
        }
        metrics[f"recall@{least:g}"] = _recall(truths, detections, least)
    protocol = settings_of(method, ["room"], data, len(every), limit, precision)
    protocol |= {"least score": method.least_score, "overlap of two boxes": method.overlap}
    return Result("Detection in rooms", metrics, {}, protocol)


def _objects(boxes: np.ndarray, labels: np.ndarray, classes: list[str], scores: np.ndarray | None = None) -> Objects:
    upright = np.concatenate([boxes, np.zeros((len(boxes), 1))], 1).astype(np.float64)
    names = tuple(classes[label] for label in labels)
    return Objects(names, upright, scores=None if scores is None else scores.astype(np.float64))


def _recall(truths: tuple[Objects, ...], detections: tuple[Objects, ...], least: float) -> float:
    """The share of annotated objects that a found box overlaps by so much, whatever its class."""
    hits = [
        box_overlap(torch.from_numpy(truth.boxes[:, None, :6]), torch.from_numpy(found.boxes[None, :, :6])).amax(1)
        for truth, found in zip(truths, detections, strict=True)
        if len(truth) and len(found)
    ]
    total = sum(len(truth) for truth in truths)
    return float(sum(int((each >= least).sum()) for each in hits)) / max(1, total)
