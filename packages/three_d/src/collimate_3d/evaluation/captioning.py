"""Sentences that were written of objects, against those that people or templates have: Scan2Cap's task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from collimate.data import EvalLoader, Source
from collimate.data.referrals import REFERRALS, Referral, referrals_of
from collimate.evaluation.features import Precision, autocast, evaluating, in_order, place, progress, settings_of
from collimate.evaluation.result import Result
from collimate_3d.evaluation.caption_metrics import caption_scores, scores_at_overlap
from collimate_3d.evaluation.grounding import OVERLAPS, BoxSource, annotated_box
from collimate_3d.graphs.geometry import box_overlap
from collimate_3d.language.words import split_words
from collimate_3d.scene_graph_vlp import SceneCaptions
from collimate_3d.scenes.processing import Scenes, unpacked_scenes


def evaluate_captions(
    method: SceneCaptions,
    data: Source,
    boxes: BoxSource = "ground truth",
    batch_size: int = 16,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
) -> Result:
    """Write a sentence of every object on which there are sentences, and compare.

    Of annotated objects the metrics are plain. Of predicted ones they are Scan2Cap's m@k: an object's caption is that
    of the box which overlaps its own most, and counts as empty where it does by less than k.

    Args:
        method: trained.
        data: samples with `scene.npz` and `referrals.json`, whose sentences are the references of their targets.
        boxes: what the objects of the scenes are; as of `evaluate_grounding`.
        batch_size, num_workers, device, precision, limit: as of `evaluate_grounding`.

    Raises:
        ValueError: there are no sentences, or one of predicted objects has no `box`.
    """
    where = place(method, device)
    processors = {"scene": method.processors["scene"]}
    loader = EvalLoader(data, processors, batch_size, num_workers, [REFERRALS], limit=limit)
    found: list[list[tuple[str, list[str], float]]] = []
    index: list[int] = []
    with evaluating(method):
        for batch in progress(loader, f"Describing {data.name}"):
            with torch.inference_mode(), autocast(where, precision):
                said = method.describe(batch["scene"].to(where))
            seen = unpacked_scenes(batch["scene"])
            for row in batch["valid"].nonzero()[:, 0].tolist():
                index.append(int(batch["index"][row]))
                own = Scenes(*(each[row : row + 1] for each in seen))
                found.append(_described(own, said[row], referrals_of(batch[REFERRALS][row]), boxes))
    every = [each for scene in in_order(found, torch.tensor(index, dtype=torch.int64)) for each in scene]
    if not every:
        raise ValueError(f"{data.name}: no scene has a sentence.")
    captions = {str(number): caption for number, (caption, _, _) in enumerate(every)}
    references = {str(number): texts for number, (_, texts, _) in enumerate(every)}
    if boxes == "ground truth":
        metrics = caption_scores(captions, references).metrics
    else:
        overlaps = {str(number): overlap for number, (_, _, overlap) in enumerate(every)}
        metrics = {
            f"{name}@{least:g}": value
            for least in OVERLAPS
            for name, value in scores_at_overlap(captions, references, overlaps, least).metrics.items()
        }
    protocol = {**settings_of(method, ["scene"], data, len(index), limit, precision), "boxes": boxes}
    return Result("Dense captioning", metrics, {}, protocol | {"objects": len(every)})


def _described(
    seen: Scenes, said: Sequence[str], told: Sequence[Referral], boxes: BoxSource
) -> list[tuple[str, list[str], float]]:
    """Of each object that is spoken of: what was written, its sentences, and the overlap of the two boxes."""
    texts: dict[Any, list[str]] = defaultdict(list)
    first: dict[Any, Referral] = {}
    for each in told:
        key = each.target if boxes == "ground truth" else tuple(each.more.get("box", ()))
        texts[key].append(" ".join(split_words(each.text)))
        first.setdefault(key, each)
    assigned = {key: _assigned(seen, said, each, boxes) for key, each in first.items()}
    return [(caption, texts[key], overlap) for key, (caption, overlap) in assigned.items()]


def _assigned(seen: Scenes, said: Sequence[str], told: Referral, boxes: BoxSource) -> tuple[str, float]:
    """What was written of the object that stands for a sentence's target, and their overlap."""
    given = seen.given[0]
    if boxes == "ground truth":
        row = (seen.ids[0][given] == told.target).nonzero()[:, 0].tolist()
        return (said[int(row[0])], 1.0) if row else ("", 0.0)
    overlaps = box_overlap(seen.boxes[0][given], annotated_box(told))
    if not len(overlaps):
        return "", 0.0
    best = int(overlaps.argmax())
    return said[best], float(overlaps[best])
