"""Detectors judged on whole data sets, with pictures from above."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from collimate import distributed
from collimate.data import EvalLoader, Source
from collimate.data.decoding import value_of
from collimate.data.files import write_atomically
from collimate.evaluation.features import Precision, autocast, evaluating, in_order, place, progress, settings_of
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result
from collimate_3d.detection.center_point import CenterPoint, average_precisions
from collimate_3d.lidar.calibration import CALIBRATION, Calibration
from collimate_3d.lidar.heading_error import heading_errors
from collimate_3d.lidar.kitti import IMAGE_SIZE, format_labels
from collimate_3d.lidar.objects import OBJECTS, Objects
from collimate_3d.lidar.pictures import picture_from_above
from collimate_3d.lidar.sweep import SWEEP

SURE = 0.3  # ours: what pictures show

LOOSE = {"Car": 0.5, "Pedestrian": 0.25, "Cyclist": 0.25}
"""The least overlaps of OpenPCDet's second table (kitti_object_eval_python, eval.py)."""


def evaluate_detection(
    method: CenterPoint,
    data: Source,
    batch_size: int = 4,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    pictures: int = 6,
    overlaps: Mapping[str, float] | None = None,
) -> DetectionResult:
    """Find the objects in sweeps; where they are labelled, KITTI's average precision and errors of the heading.

    Where samples have a calibration, boxes come with their place in the image, and what lies outside of it is left out,
    as it is in the labels of KITTI.

    Args:
        method: a detector.
        data: sweeps.
        batch_size: of each rank.
        num_workers: processes that read and decode.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the networks.
        limit: at most so many sweeps, spread over the data.
        pictures: sweeps that the report shows.
        overlaps: class -> least IoU at which an object is found; KITTI's 0.7 for cars and 0.5 for all others unless
            given. `LOOSE`, of which OpenPCDet reports too, is for detectors on coarse maps.

    Raises:
        ValueError: no sweep can be read.
    """
    known = data.peek(0, (OBJECTS, CALIBRATION)) if len(data) else {}
    also = [key for key in (OBJECTS, CALIBRATION) if key in known]
    loader = EvalLoader(data, method.processors, batch_size, num_workers, also, limit=limit)
    where = place(method, device)
    found: list[Frame] = []
    with evaluating(method):
        for batch in progress(loader, f"Detecting in {data.name}"):
            with torch.inference_mode(), autocast(where, precision):
                objects = method.detect(batch["lidar"].to(where))
            rows = zip(
                batch["key"],
                batch["index"].tolist(),
                objects,
                batch.get(OBJECTS, [None] * len(objects)),
                batch.get(CALIBRATION, [None] * len(objects)),
                strict=True,
            )
            found += [Frame.of(*row) for row in compress(rows, batch["valid"].tolist())]
    places = torch.tensor([frame.place for frame in found], dtype=torch.int64)
    frames = in_order(found, places)
    if not frames:
        raise ValueError(f"{data.name}: there is no sweep that can be read.")
    protocol = settings_of(method, ["lidar"], data, len(frames), limit, precision)
    protocol |= {"least score": method.least_score, "overlap of two boxes": method.overlap}
    shown = [] if distributed.rank() else _pictures(method, data, frames, pictures)
    if OBJECTS not in also:
        counts = {
            f"found {name}": float(sum(frame.found.names.count(name) for frame in frames)) for name in method.classes
        }
        return DetectionResult("Objects in sweeps", counts, {}, protocol, frames=frames, shown=shown)
    truths, detections = [frame.truth or Objects.none() for frame in frames], [frame.found for frame in frames]
    judged = average_precisions(truths, detections, method.classes, overlaps)
    metrics = dict(judged.metrics)
    for name in method.classes:
        errors = heading_errors(truths, detections, name)
        metrics[f"heading error {name}"] = float(errors.mean()) if len(errors) else float("nan")
    protocol |= judged.protocol | {"heading error": "degrees, of what overlaps by more than 0.3 from above"}
    return DetectionResult("Detection in sweeps", metrics, {}, protocol, frames=frames, shown=shown)


@dataclass(frozen=True)
class Frame:
    """What was found in one sweep.

    Attributes:
        key: its name.
        place: in the data.
        found: by the detector.
        truth: what is labelled, if anything is.
        calibration: of its camera, if it is known.
    """

    key: str
    place: int
    found: Objects
    truth: Objects | None = None
    calibration: Calibration | None = None

    @classmethod
    def of(cls, key: str, place: int, found: Objects, entries: list | None, matrices: dict | None) -> Frame:
        truth = None if entries is None else Objects.from_json(entries)
        if matrices is None:
            return cls(key, place, found, truth)
        calibration = Calibration.from_json(matrices)
        return cls(key, place, seen_in_image(found, calibration), truth, calibration)


@dataclass
class DetectionResult(Result):
    """Numbers, what was found, and pictures of some sweeps.

    Attributes:
        frames: in the order of the data.
        shown: pictures with their captions.
    """

    frames: Sequence[Frame] = field(default_factory=list, kw_only=True)
    shown: Sequence[tuple[Image.Image, str]] = field(default_factory=list, kw_only=True)

    def add_to(self, report: Report) -> None:
        super().add_to(report)
        if self.shown:
            report.add_text("Labels are white; what was found has the colour of its class, and fades with its score.")
            report.add_images(self.shown, "Sweeps from above")


def seen_in_image(objects: Objects, calibration: Calibration, size: tuple[int, int] = IMAGE_SIZE) -> Objects:
    """What the camera sees of some objects, with their places in the image and KITTI's observation angles.

    Args:
        size: height and width of the image.
    """
    camera = calibration.boxes_to_camera(objects.boxes)
    images = calibration.image_boxes(objects.boxes, size)
    alphas = camera[:, 6] - np.arctan2(camera[:, 0], camera[:, 2])
    seen = (camera[:, 2] > 0) & (images[:, 2] > images[:, 0]) & (images[:, 3] > images[:, 1])
    return replace(objects, image_boxes=images, alphas=np.arctan2(np.sin(alphas), np.cos(alphas)))[seen]


def write_detections(frames: Sequence[Frame], folder: str | Path) -> Path:
    """`<folder>/boxes.jsonl`, a line for each sweep; where cameras are known, files of KITTI in `<folder>/kitti`."""
    path = Path(folder) / "boxes.jsonl"
    lines = [json.dumps({"key": frame.key, "objects": frame.found.to_json()}) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
    for frame in frames:
        if frame.calibration is not None:
            (path.parent / "kitti").mkdir(exist_ok=True)
            text = format_labels(frame.found, frame.calibration)
            write_atomically(path.parent / "kitti" / f"{Path(frame.key).name}.txt", text.encode())
    return path


def _pictures(method: CenterPoint, data: Source, frames: Sequence[Frame], count: int) -> list[tuple[Image.Image, str]]:
    grid = method.bev
    low = grid.origin
    high = low[0] + grid.shape[1] * grid.cell[0], low[1] + grid.shape[0] * grid.cell[1]
    chosen = [frames[number * len(frames) // count] for number in range(min(count, len(frames)))]
    shown = []
    for frame in chosen:
        sweep = value_of(data.peek(frame.place, (SWEEP,)), (SWEEP,))
        sure = frame.found[frame.found.scores > SURE] if frame.found.scores is not None else frame.found
        picture = picture_from_above(sweep.xyz, frame.truth, sure, bounds=(*low, *high), scale=480 / (high[1] - low[1]))
        shown.append((picture, f"{frame.key}: {len(sure)} found"))
    return shown
