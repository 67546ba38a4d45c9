"""The app's verbs on LiDAR sweeps. What is heavy is imported when they run."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "bfloat16", "float16"]


def detect(
    checkpoint: str,
    data: str,
    output: str = "runs/detect",
    batch_size: int = 4,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    pictures: int = 6,
) -> None:
    """Find objects in LiDAR sweeps: boxes as JSON lines, and a report with pictures from above.

    Where the data have labels, average precisions are reported; where they have calibrations, files in KITTI's format
    are written, too.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run, of a detector.
        data: sweeps: `kitti:<folder>?split=val`, `world-sweeps:test`, shards, ...
        output: the folder of boxes.jsonl, report.html and report.json.
        batch_size: sweeps at a time.
        num_workers: processes that read and decode; 0 reads in this one.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the networks.
        limit: at most so many sweeps, spread over the data.
        pictures: sweeps that the report shows.
    """
    import collimate
    from collimate.data import open_source
    from collimate.evaluation.commands import publish
    from collimate_3d.detection import CenterPoint, evaluate_detection, write_detections

    model = collimate.load(checkpoint)
    if not isinstance(model, CenterPoint):
        raise ValueError(f"{checkpoint} holds a {type(model).__name__}, which is no detector.")
    found = evaluate_detection(model, open_source(data), batch_size, num_workers, device, precision, limit, pictures)
    publish(found, checkpoint, output, Boxes=write_detections(found.frames, output))
