"""Scenes whose objects were found by a detector: `proposed:world-rooms:test?detector=runs/detector/model`.

What is found takes the place of the annotated objects: ids count the found ones, the surest first, and a point belongs
to the surest box that it lies in. A sentence is on the found object that overlaps its target most, by 0.25 or more, as
in 3D-VLP (leolyj/3D-VLP); otherwise its target is `NOWHERE`, which no loss counts, and which evaluation counts as
missed. `box` of a sentence is where its target was annotated, of which `evaluate_grounding` with `boxes="predicted"`
reports Acc@0.25 and Acc@0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from collimate.data import Sample, Source, open_source
from collimate.data.decoding import value_of
from collimate.data.referrals import REFERRALS, NamedWord, Referral, referrals_of
from collimate.data.scene_graphs import GRAPH
from collimate_3d.graphs.geometry import box_overlap
from collimate_3d.proposals.detector import Found, SceneDetector
from collimate_3d.scenes.processing import SCENE, checked_scene

LEAST = 0.25  # 3D-VLP: the overlap from which a found object is the annotated one
NOWHERE = 2**20
"""The id of what was not found."""


class ProposedScenes(Source):
    """A source's scenes with found objects, and all its texts. Its `graph.json` is left out: it is of other objects.

    The detector runs as scenes are read; write shards (`collimate data shard`) to run it once.

    Args:
        what: scenes with annotated objects, as `open_source` takes them.
        detector: a trained `SceneDetector`: its folder, or itself.
        options: of the source.

    Raises:
        ValueError: the model is no such detector.
    """

    def __init__(self, what: str | Source, detector: str | SceneDetector, **options: Any) -> None:
        self.whole = open_source(what, **options)
        self.name = f"proposed:{self.whole.name}"
        if isinstance(detector, str):
            from collimate.checkpoints import load

            loaded = load(detector)
            if not isinstance(loaded, SceneDetector):
                raise ValueError(f"{detector} holds a {type(loaded).__name__}, no SceneDetector.")
            detector = loaded
        self.detector = detector.eval()

    def __len__(self) -> int:
        return len(self.whole)

    def read(self, index: int) -> Sample:
        sample = {key: value for key, value in self.whole.read(index).items() if key != GRAPH}
        scene = checked_scene(value_of(sample, (SCENE,)))
        processor: Any = self.detector.processors["room"]
        with torch.inference_mode():
            (found,) = self.detector.detect(processor(scene)[None])
        sample[SCENE] = proposed_scene(scene, found, processor.classes)
        if REFERRALS in sample:
            told = referrals_of(value_of(sample, (REFERRALS,)))
            sample[REFERRALS] = [each.to_json() for each in proposed_referrals(told, scene, found.boxes)]
        return sample | {"__source__": self.name}


def proposed_scene(scene: Mapping[str, np.ndarray], found: Found, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """The scene of what was found.

    Args:
        scene: as `checked_scene` gives it.
        classes: names of the found labels.
    """
    xyz = scene["xyz"]
    instance = np.full(len(xyz), -1)
    for number in reversed(range(len(found.boxes))):  # the surest last, over the others
        box = found.boxes[number]
        instance[(np.abs(xyz - box[:3]) <= box[3:] / 2).all(1)] = number
    return {
        **{name: scene[name] for name in ("xyz", "rgb")},
        "instance": instance,
        "ids": np.arange(len(found.boxes)),
        "labels": np.array([classes[label] for label in found.labels], np.str_),
        "boxes": found.boxes.astype(np.float32),
        "edges": _edges(scene, found.boxes),
    }


def proposed_referrals(
    told: Sequence[Referral], scene: Mapping[str, np.ndarray], found: Float[np.ndarray, "M 6"]
) -> list[Referral]:
    """Sentences on what was found, in the place of the annotated objects."""
    ids = scene["ids"].tolist()
    place = dict(zip(ids, _nearest(scene["boxes"], found).tolist(), strict=True))
    boxes = dict(zip(ids, scene["boxes"].tolist(), strict=True))
    counts = dict(zip(*np.unique(scene["labels"], return_counts=True), strict=True))
    labels = dict(zip(ids, scene["labels"].tolist(), strict=True))

    def moved(each: Referral) -> Referral:
        more = dict(each.more)
        if each.target in boxes:
            more |= {"box": boxes[each.target], "distractors": int(counts[labels[each.target]]) - 1}
        words = [NamedWord(place.get(word.object, NOWHERE), word.start, word.stop) for word in each.words]
        return replace(
            each,
            target=place.get(each.target, NOWHERE),
            anchors=tuple(place.get(anchor, NOWHERE) for anchor in each.anchors),
            words=tuple(word for word in words if word.object != NOWHERE),
            more=more,
        )

    return [moved(each) for each in told]


def _nearest(boxes: Float[np.ndarray, "G 6"], found: Float[np.ndarray, "M 6"]) -> Int64[np.ndarray, " G"]:
    """Of each annotated box the found one that overlaps it most, `NOWHERE` where none does by enough."""
    if not len(found) or not len(boxes):
        return np.full(len(boxes), NOWHERE)
    overlaps = box_overlap(torch.from_numpy(boxes)[:, None].float(), torch.from_numpy(found)[None].float())
    best, which = overlaps.max(1)
    return which.masked_fill(best < LEAST, NOWHERE).numpy()


def _edges(scene: Mapping[str, np.ndarray], found: Float[np.ndarray, "M 6"]) -> Int64[np.ndarray, "2 R"]:
    """The annotated relations between objects that were found."""
    edges = _nearest(scene["boxes"], found)[scene["edges"]]
    edges = edges[:, (edges != NOWHERE).all(0) & (edges[0] != edges[1])]
    return np.unique(edges, axis=1)
