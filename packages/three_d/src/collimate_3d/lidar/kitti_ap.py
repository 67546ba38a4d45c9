"""Average precision as KITTI's object benchmark defines it (Geiger et al. 2012; evaluate_object, and its Python port in
open-mmlab/OpenPCDet).

For a class, a difficulty and a least overlap:

- A labelled object counts where its class, height in the image, occlusion and truncation are those of the difficulty.
  It is ignored, so that finding it is neither right nor wrong, where only its class is, or where its class is the
  neighbouring one (Van for Car, Person_sitting for Pedestrian). All others do not exist.
- A detection counts where its class is right; it is ignored where its image box is too low, whatever its class.
- First each labelled object in turn takes the surest detection that overlaps it by more than the least overlap and is
  not taken yet. The scores of those matches give at most 41 thresholds, nearest to the recalls k/40.
- Then, at each threshold, each object in turn takes the detection that overlaps it most among those that count and are
  sure enough, else the first of those that are ignored. Detections left over are false, except those that lie by more
  than the least overlap in a DontCare region, in the metric of image boxes.
- Precisions are made to fall with recall. AP is their mean over the recalls 0, 0.1, ..., 1 (R11) or 1/40, ..., 1 (R40).

Objects without image boxes, as in data without a camera, are never too low, and come with any difficulty. Overlaps are
exact (`collimate_3d.rotated_iou`). A precision of no detection at all is 0, where the port divides by zero.

Shape legend: G labelled objects, D detections, E pairs of both in one frame, T thresholds, n objects that are matched
side by side, K candidates of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from collimate.evaluation.result import Result
from collimate_3d.lidar.objects import DONT_CARE, Objects
from collimate_3d.rotated_iou import paired_ious

CLASSES = ("Car", "Pedestrian", "Cyclist")
NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}
MIN_OVERLAP = {"bbox": (0.7, 0.5, 0.5), "bev": (0.7, 0.5, 0.5), "3d": (0.7, 0.5, 0.5)}
"""metric -> the least overlap of each of `CLASSES`."""

RECALLS = 40  # steps between recall 0 and 1 at which thresholds are taken


@dataclass(frozen=True)
class Difficulty:
    """Which labelled objects count.

    Attributes:
        min_height: pixels of its image box above which an object counts.
        max_occlusion, max_truncation: up to which it does.
    """

    name: str
    min_height: float = 0.0
    max_occlusion: float = np.inf
    max_truncation: float = np.inf


DIFFICULTIES = (
    Difficulty("easy", 40, 0, 0.15),
    Difficulty("moderate", 25, 1, 0.3),
    Difficulty("hard", 25, 2, 0.5),
)
EVERYTHING = (Difficulty("all"),)
"""For data whose labels know no difficulty."""


class Curves(NamedTuple):
    """Precisions at 41 recalls.

    Attributes:
        precision: metric -> (class, difficulty, recall), from 0 to 1.
        counted: (class, difficulty) labelled objects that count.
    """

    precision: dict[str, Float[np.ndarray, "classes difficulties 41"]]
    counted: Int64[np.ndarray, "classes difficulties"]

    def r40(self, metric: str) -> Float[np.ndarray, "classes difficulties"]:
        """The mean over the 40 recalls above 0, in percent."""
        return 100 * self.precision[metric][..., 1:].mean(-1)

    def r11(self, metric: str) -> Float[np.ndarray, "classes difficulties"]:
        """The mean over the recalls 0, 0.1, ..., 1, in percent."""
        return 100 * self.precision[metric][..., ::4].mean(-1)


def kitti_ap(
    truths: Sequence[Objects],
    detections: Sequence[Objects],
    classes: Sequence[str] = CLASSES,
    min_overlap: Mapping[str, Sequence[float]] | None = None,
    difficulties: Sequence[Difficulty] = DIFFICULTIES,
) -> Result:
    """AP over 40 recalls of each metric, class and difficulty, and its mean over the classes; as fractions.

    Args:
        truths, detections, classes, min_overlap, difficulties: as of `precision_curves`.
    """
    curves = precision_curves(truths, detections, classes, min_overlap, difficulties)
    metrics: dict[str, float] = {}
    for metric in curves.precision:
        values = curves.r40(metric) / 100
        for place, difficulty in enumerate(difficulties):
            metrics |= {
                f"{metric} {name} {difficulty.name}": float(values[at, place]) for at, name in enumerate(classes)
            }
            metrics[f"{metric} mean {difficulty.name}"] = float(values[:, place].mean())
    protocol: dict[str, Any] = {
        "frames": len(truths),
        "average precision": "40 recalls, KITTI's matching",
        "least overlap": {key: list(value) for key, value in (min_overlap or MIN_OVERLAP).items()},
        "objects that count": {
            f"{name} {difficulty.name}": int(curves.counted[at, place])
            for at, name in enumerate(classes)
            for place, difficulty in enumerate(difficulties)
        },
    }
    return Result("KITTI average precision", metrics, {}, protocol)


def precision_curves(
    truths: Sequence[Objects],
    detections: Sequence[Objects],
    classes: Sequence[str] = CLASSES,
    min_overlap: Mapping[str, Sequence[float]] | None = None,
    difficulties: Sequence[Difficulty] = DIFFICULTIES,
) -> Curves:
    """Precision at each recall, for each metric, class and difficulty.

    Args:
        truths, detections: of each frame, in one order; a frame may have none.
        classes: their names; case does not count.
        min_overlap: metric (`bbox`, `bev`, `3d`) -> what a match must overlap by more than, for each class; those of
            the benchmark if None, without `bbox` where there are no image boxes. With `bbox`, and observation angles
            on both sides, comes `aos`, the orientation similarity.

    Raises:
        ValueError: unequal numbers of frames, detections without scores, or `bbox` without image boxes.
    """
    if len(truths) != len(detections):
        raise ValueError(f"{len(truths)} frames with labels and {len(detections)} with detections: give one a frame.")
    truth, found = _Flat(truths), _Flat(detections)
    if any(frame.scores is None for frame in detections if len(frame)):
        raise ValueError("Each detection needs a score, by which detections are ranked.")
    seen = truth.has_image_boxes and found.has_image_boxes
    if min_overlap is None:
        min_overlap = {metric: least for metric, least in MIN_OVERLAP.items() if seen or metric != "bbox"}
    if "bbox" in min_overlap and not seen:
        raise ValueError("The metric bbox needs an image box of every object; leave it out where there is no camera.")
    overlaps = _Overlaps.of(truth, found, min_overlap)
    aos = "bbox" in min_overlap and truth.has_alphas and found.has_alphas
    shape = (len(classes), len(difficulties))
    precision = {name: np.zeros((*shape, RECALLS + 1)) for name in (*min_overlap, *(["aos"] if aos else []))}
    counted = np.zeros(shape, np.int64)
    for at, name in enumerate(classes):
        for place, difficulty in enumerate(difficulties):
            truth_state, found_state = _states(truth, found, name.lower(), difficulty)
            counted[at, place] = (truth_state == COUNTS).sum()
            for metric, leasts in min_overlap.items():
                matching = _Matching(truth, found, truth_state, found_state, overlaps, metric, leasts[at])
                right, similar = matching.curves(aos and metric == "bbox")
                precision[metric][at, place, : len(right)] = right
                if aos and metric == "bbox":
                    precision["aos"][at, place, : len(similar)] = similar
    return Curves(precision, counted)


# What there is --------------------------------------------------------------------------------------------------

COUNTS, IGNORED, ABSENT = 0, 1, -1


class _Flat:
    """The objects of all frames one after another."""

    def __init__(self, frames: Sequence[Objects]) -> None:
        self.frame = np.repeat(np.arange(len(frames)), [len(objects) for objects in frames])
        self.name = np.array([name.lower() for objects in frames for name in objects.names], dtype=object)
        self.boxes = np.concatenate([np.zeros((0, 7)), *(objects.boxes for objects in frames)])
        filled = [objects for objects in frames if len(objects)]
        self.has_image_boxes = all(objects.image_boxes is not None for objects in filled)
        self.has_alphas = all(objects.alphas is not None for objects in filled)
        self.image_boxes = _column(frames, "image_boxes", (0.0, 0.0, 0.0, np.inf))
        self.height = np.abs(self.image_boxes[:, 3] - self.image_boxes[:, 1])
        self.score, self.alpha, self.occluded, self.truncated = (
            _column(frames, name, (0.0,))[:, 0] for name in ("scores", "alphas", "occluded", "truncated")
        )


def _column(frames: Sequence[Objects], name: str, missing: tuple[float, ...]) -> Float[np.ndarray, "M width"]:
    parts = [
        np.tile(np.array(missing), (len(objects), 1)) if (value := getattr(objects, name)) is None else value
        for objects in frames
    ]
    return np.concatenate([np.zeros((0, len(missing))), *(np.reshape(part, (-1, len(missing))) for part in parts)])


def _states(
    truth: _Flat, found: _Flat, name: str, difficulty: Difficulty
) -> tuple[Int64[np.ndarray, " G"], Int64[np.ndarray, " D"]]:
    """Which objects count, are ignored, or do not exist."""
    own, neighbour = truth.name == name, truth.name == NEIGHBOURS.get(name)
    easy = (
        (truth.occluded <= difficulty.max_occlusion)
        & (truth.truncated <= difficulty.max_truncation)
        & (truth.height > difficulty.min_height)
    )
    truth_state = np.where(own & easy, COUNTS, np.where(own | neighbour, IGNORED, ABSENT))
    low = found.height < difficulty.min_height
    return truth_state, np.where(low, IGNORED, np.where(found.name == name, COUNTS, ABSENT))


@dataclass(frozen=True)
class _Overlaps:
    """Pairs of a labelled object and a detection of one frame that may match, ordered by object, then by detection.

    Attributes:
        truth, found: the places of both.
        value: metric -> overlap.
        absorbed: the largest share of each detection's image box that lies in one DontCare region.
    """

    truth: Int64[np.ndarray, " E"]
    found: Int64[np.ndarray, " E"]
    value: dict[str, Float[np.ndarray, " E"]]
    absorbed: Float[np.ndarray, " D"]

    @classmethod
    def of(cls, truth: _Flat, found: _Flat, min_overlap: Mapping[str, Sequence[float]]) -> _Overlaps:
        first, second = _pairs_in_frames(truth.frame, found.frame)
        absorbed = np.zeros(len(found.frame))
        careless = truth.name[first] == DONT_CARE.lower()
        if "bbox" in min_overlap:
            shared, _, own = _image_areas(truth.image_boxes[first[careless]], found.image_boxes[second[careless]])
            np.maximum.at(absorbed, second[careless], shared / np.maximum(own, 1e-12))
        first, second = first[~careless], second[~careless]
        value: dict[str, Any] = {}
        if "bbox" in min_overlap:
            shared, one, other = _image_areas(truth.image_boxes[first], found.image_boxes[second])
            value["bbox"] = shared / np.maximum(one + other - shared, 1e-12)
        if min_overlap.keys() & {"bev", "3d"}:
            one, other = torch.from_numpy(truth.boxes)[first], torch.from_numpy(found.boxes)[second]
            value["bev"], value["3d"] = (iou.numpy() for iou in paired_ious(one, other))
        near = np.zeros(len(first), bool)
        for metric, leasts in min_overlap.items():
            near |= value[metric] > min(leasts)
        return cls(first[near], second[near], {name: each[near] for name, each in value.items()}, absorbed)


def _pairs_in_frames(
    first: Int64[np.ndarray, " G"], second: Int64[np.ndarray, " D"]
) -> tuple[Int64[np.ndarray, " E"], Int64[np.ndarray, " E"]]:
    """All pairs of places with one frame; frames are sorted."""
    start, stop = np.searchsorted(second, first, "left"), np.searchsorted(second, first, "right")
    counts = stop - start
    one = np.repeat(np.arange(len(first)), counts)
    within = np.arange(len(one)) - np.repeat(np.cumsum(counts) - counts, counts)
    return one, np.repeat(start, counts) + within


def _image_areas(
    one: Float[np.ndarray, "E 4"], other: Float[np.ndarray, "E 4"]
) -> tuple[Float[np.ndarray, " E"], Float[np.ndarray, " E"], Float[np.ndarray, " E"]]:
    """Shared area and both areas in square pixels."""
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    return (
        np.maximum(sides, 0).prod(1),
        (one[:, 2:] - one[:, :2]).prod(1),
        (other[:, 2:] - other[:, :2]).prod(1),
    )


# Matching -------------------------------------------------------------------------------------------------------


class _Matching:
    """Objects and detections of one class, difficulty, metric and least overlap."""

    def __init__(
        self,
        truth: _Flat,
        found: _Flat,
        truth_state: Int64[np.ndarray, " G"],
        found_state: Int64[np.ndarray, " D"],
        overlaps: _Overlaps,
        metric: str,
        least: float,
    ) -> None:
        self.truth, self.found, self.truth_state, self.found_state = truth, found, truth_state, found_state
        value = overlaps.value[metric]
        taking_part = (truth_state[overlaps.truth] != ABSENT) & (found_state[overlaps.found] != ABSENT)
        kept = (value > least) & taking_part
        self.turns = _turns(overlaps.truth[kept], overlaps.found[kept], value[kept], truth.frame)
        self.absorbed = overlaps.absorbed > least if metric == "bbox" else np.zeros(len(found.frame), bool)

    def curves(self, aos: bool) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """Precision and orientation similarity at each threshold, both falling with recall."""
        thresholds = _thresholds(self._scores_of_matches(), int((self.truth_state == COUNTS).sum()))
        right, wrong, similarity = self._counts(thresholds, aos)
        every = np.maximum(right + wrong, 1)
        return _falling(right / every), _falling(similarity / every)

    def _scores_of_matches(self) -> Float[np.ndarray, " matches"]:
        """The scores of the surest detections of each object, where both count."""
        taken = np.zeros(len(self.found.frame), bool)
        scores = []
        for turn in self.turns:
            free = turn.given & ~taken[turn.candidates]
            chosen, any_free = _best(np.where(free, self.found.score[turn.candidates], -np.inf), free)
            detection = np.take_along_axis(turn.candidates, chosen[:, None], 1)[:, 0]
            taken[detection[any_free]] = True
            both = any_free & (self.truth_state[turn.truth] == COUNTS) & (self.found_state[detection] == COUNTS)
            scores.append(self.found.score[detection[both]])
        return np.concatenate(scores) if scores else np.zeros(0)

    def _counts(
        self, thresholds: Float[np.ndarray, " T"], aos: bool
    ) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """Right and wrong detections, and the summed orientation similarity of the right ones."""
        sure = self.found.score >= thresholds[:, None]
        taken = np.zeros_like(sure)
        right, similarity = np.zeros(len(thresholds)), np.zeros(len(thresholds))
        counts = self.found_state == COUNTS
        for turn in self.turns:
            free = turn.given & sure[:, turn.candidates] & ~taken[:, turn.candidates]
            good = free & counts[turn.candidates]
            chosen, any_good = _best(np.where(good, turn.overlap, -np.inf), good)
            other, any_free = free.argmax(-1), free.any(-1)  # those that count are tried first
            place = np.where(any_good, chosen, other)
            detection = np.take_along_axis(np.broadcast_to(turn.candidates, free.shape), place[..., None], -1)[..., 0]
            row = np.nonzero(any_free)
            taken[row[0], detection[row]] = True
            hit = any_good & (self.truth_state[turn.truth] == COUNTS)
            right += hit.sum(1)
            if aos:
                turned = self.truth.alpha[turn.truth] - self.found.alpha[detection]
                similarity += np.where(hit, (1 + np.cos(turned)) / 2, 0).sum(1)
        wrong = (sure & ~taken & counts & ~self.absorbed).sum(1)
        return right, wrong, similarity


class _Turn(NamedTuple):
    """Objects of different frames that choose side by side.

    Attributes:
        truth: their places.
        candidates: detections that each may take, in order; 0 where none is `given`.
        overlap: with each.
    """

    truth: Int64[np.ndarray, " n"]
    candidates: Int64[np.ndarray, "n K"]
    overlap: Float[np.ndarray, "n K"]
    given: Bool[np.ndarray, "n K"]


def _turns(
    truth: Int64[np.ndarray, " E"],
    found: Int64[np.ndarray, " E"],
    overlap: Float[np.ndarray, " E"],
    frame: Int64[np.ndarray, " G"],
) -> list[_Turn]:
    """In turn 0 the first object with candidates of each frame chooses, in turn 1 the second, and so on."""
    objects, first, counts = np.unique(truth, return_index=True, return_counts=True)
    if not len(objects):
        return []
    frames = frame[objects]
    number = np.arange(len(objects)) - np.searchsorted(frames, frames, "left")
    turns = []
    for turn in range(number.max() + 1):
        own = number == turn
        places = first[own, None] + np.arange(counts[own].max())
        given = places < (first + counts)[own, None]
        places = np.where(given, places, 0)
        turns.append(_Turn(objects[own], np.where(given, found[places], 0), overlap[places], given))
    return turns


def _best(
    values: Float[np.ndarray, "*T n K"], possible: Bool[np.ndarray, "*T n K"]
) -> tuple[Int64[np.ndarray, "*T n"], Bool[np.ndarray, "*T n"]]:
    """The first of the largest, and whether there is any."""
    return np.asarray(values.argmax(-1)), np.asarray(possible.any(-1))


def _thresholds(scores: Float[np.ndarray, " matches"], counted: int) -> Float[np.ndarray, " T"]:
    """The scores at which recall comes nearest to k / 40 for each k."""
    thresholds, recall = [], 0.0
    falling = np.sort(scores)[::-1].tolist()
    for place, score in enumerate(falling):
        left = (place + 1) / counted
        last = place == len(falling) - 1
        right = left if last else (place + 2) / counted
        if right - recall < recall - left and not last:
            continue
        thresholds.append(score)
        recall += 1 / RECALLS
    return np.array(thresholds)


def _falling(values: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """The largest of each value and those after it."""
    return np.maximum.accumulate(values[::-1])[::-1]
