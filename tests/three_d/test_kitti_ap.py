"""KITTI's average precision against a plain loop over objects and detections; what does not change it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from collimate_3d.lidar.kitti_ap import DIFFICULTIES, EVERYTHING, MIN_OVERLAP, kitti_ap, precision_curves
from collimate_3d.lidar.objects import Objects
from collimate_3d.rotated_iou import iou_3d

NAMES = ("Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "DontCare")


def frame(draw, count):
    """Labels, and detections that are near them, doubled, missing and false."""
    unit = [20, 8, 1, 3, 2, 1, 6.3]
    boxes = draw.uniform(size=(count, 7)) * unit + [5, -4, -1, 1, 0.8, 1, 0]
    high = draw.uniform(15, 90, count)
    left, top = draw.uniform(0, 300, count), draw.uniform(0, 100, count)
    images = np.stack([left, top, left + high, top + high], 1)
    names = np.array(NAMES)[draw.integers(len(NAMES), size=count)]
    truth = Objects(
        tuple(names), boxes, None, None, images, draw.uniform(-3, 3, count), draw.uniform(0, 0.6, count),
        draw.integers(0, 4, count).astype(float),
    )  # fmt: skip
    taken = draw.integers(count, size=count + 3) if count else np.zeros(0, int)
    size = len(taken)
    noise = draw.normal(0, 1, (size, 7)) * [0.1, 0.1, 0.05, 0.1, 0.1, 0.05, 0.1]
    wrong = draw.uniform(size=size) < 0.15
    renamed = np.where(wrong, "Car", names[taken])
    renamed[renamed == "DontCare"] = "Pedestrian"
    found = Objects(
        tuple(renamed), np.abs(boxes[taken] + noise) * np.sign(boxes[taken]), draw.integers(1, 12, size) / 12, None,
        images[taken] + draw.normal(0, 3, (size, 4)), draw.uniform(-3, 3, size),
    )  # fmt: skip
    return truth, found


def frames(seed, count=25, most=12):
    draw = np.random.default_rng(seed)
    return tuple(zip(*(frame(draw, int(draw.integers(0, most))) for _ in range(count)), strict=True))


def overlap_of(metric, truth, found):
    if metric == "3d":
        return iou_3d(torch.from_numpy(truth.boxes), torch.from_numpy(found.boxes)).numpy()
    return image_shares(truth.image_boxes, found.image_boxes)[0]


def image_shares(one, other):
    iou, share = np.zeros((len(one), len(other))), np.zeros((len(one), len(other)))
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            shared = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
            own = np.prod(b[2:] - b[:2])
            iou[i, j], share[i, j] = shared / (np.prod(a[2:] - a[:2]) + own - shared), shared / own
    return iou, share


def plain(truths, detections, name, difficulty, metric, least):
    """(precision, orientation similarity, recall) at each threshold, one object at a time."""
    cases, scores, counted = [], [], 0
    neighbour = {"Car": "Van", "Pedestrian": "Person_sitting"}.get(name)
    for truth, found in zip(truths, detections, strict=True):
        state = []
        for at, own in enumerate(truth.names):
            _, top, _, bottom = truth.image_boxes[at]
            fits = truth.occluded[at] <= difficulty.max_occlusion and truth.truncated[at] <= difficulty.max_truncation
            fits = fits and bottom - top > difficulty.min_height
            state.append(0 if own == name and fits else 1 if own in (name, neighbour) else -1)
        high = [abs(box[3] - box[1]) for box in found.image_boxes]
        dets = [
            1 if high[at] < difficulty.min_height else 0 if own == name else -1 for at, own in enumerate(found.names)
        ]
        counted += state.count(0)
        overlap = overlap_of(metric, truth, found)
        cares = [at for at, own in enumerate(truth.names) if own == "DontCare"]
        absorbed = (image_shares(truth.image_boxes, found.image_boxes)[1][cares] > least).any(0) & (metric == "bbox")
        cases.append((truth, found, state, dets, overlap, absorbed))
        taken = set()
        for i, kind in enumerate(state):
            options = [j for j, d in enumerate(dets) if d >= 0 and j not in taken and overlap[i, j] > least]
            if kind < 0 or not options:
                continue
            best = max(options, key=lambda j: found.scores[j])
            taken.add(best)
            if kind == 0 and dets[best] == 0:
                scores.append(found.scores[best])
    thresholds, recall = [], 0.0
    scores.sort(reverse=True)
    for at, score in enumerate(scores):
        if at + 1 < len(scores) and (at + 2) / counted - recall < recall - (at + 1) / counted:
            continue
        thresholds.append(score)
        recall += 1 / 40
    right, similar = [], []
    for threshold in thresholds:
        hits = wrong = similarity = 0
        for truth, found, state, dets, overlap, absorbed in cases:
            sure, taken = [score >= threshold for score in found.scores], set()
            for i, kind in enumerate(state):
                options = [j for j, d in enumerate(dets) if d >= 0 and sure[j] and j not in taken]
                options = [j for j in options if overlap[i, j] > least]
                good = [j for j in options if dets[j] == 0]
                if kind < 0 or not options:
                    continue
                best = max(good, key=lambda j: overlap[i, j]) if good else options[0]
                taken.add(best)
                if kind == 0 and good:
                    hits += 1
                    similarity += (1 + math.cos(truth.alphas[i] - found.alphas[best])) / 2
            wrong += sum(d == 0 and sure[j] and j not in taken and not absorbed[j] for j, d in enumerate(dets))
        right.append(hits / max(hits + wrong, 1))
        similar.append(similarity / max(hits + wrong, 1))
    return tuple([max(each[at:]) for at in range(len(each))] for each in (right, similar))


@pytest.mark.parametrize("metric", ["bbox", "3d"])
def test_it_is_the_plain_loop(metric):
    truths, detections = frames(0)
    curves = precision_curves(truths, detections, min_overlap={metric: (0.5, 0.3, 0.3)})
    lengths = []
    for at, name in enumerate(("Car", "Pedestrian", "Cyclist")):
        for place, difficulty in enumerate(DIFFICULTIES):
            right, similar = plain(truths, detections, name, difficulty, metric, (0.5, 0.3, 0.3)[at])
            lengths.append(len(right))
            wanted = np.zeros(41)
            wanted[: len(right)] = right
            assert curves.precision[metric][at, place] == pytest.approx(wanted, abs=1e-12)
            if metric == "bbox":
                assert curves.precision["aos"][at, place, : len(similar)] == pytest.approx(similar, abs=1e-12)
    assert max(lengths) > 5


def apart(objects):
    """The same, none over another."""
    aside = 1000.0 * np.arange(len(objects))[:, None]
    return replace(objects, boxes=objects.boxes + aside * np.eye(7)[0], image_boxes=objects.image_boxes + aside)


def test_perfect_detections():
    """They have precision 1 at as many recalls as there are objects that count: KITTI takes a threshold from each."""
    truths, _ = frames(1, 60)
    truths = [apart(truth[np.array([name != "DontCare" for name in truth.names], bool)]) for truth in truths]
    found = [Objects(t.names, t.boxes, np.ones(len(t)), None, t.image_boxes, t.alphas) for t in truths]
    curves = precision_curves(truths, found)
    reached = np.clip(curves.counted - 1, 0, 40) / 40
    for metric in curves.precision:
        assert curves.r40(metric) == pytest.approx(100 * reached)
    assert reached.max() > reached.min()
    without = [Objects(t.names, t.boxes, np.ones(len(t))) for t in truths]
    result = kitti_ap([Objects(t.names, t.boxes) for t in truths], without, difficulties=EVERYTHING)
    classes = ("Car", "Pedestrian", "Cyclist", "mean")
    assert result.metrics == {f"{metric} {name} all": 1.0 for metric in ("bev", "3d") for name in classes}
    assert result.protocol["objects that count"]["Car all"] > 41


def test_another_frame_of_reference_changes_nothing():
    truths, detections = frames(2)
    overlaps = {"bev": (0.5, 0.3, 0.3), "3d": (0.5, 0.3, 0.3)}
    before = precision_curves(truths, detections, min_overlap=overlaps)
    turn, shift = 0.7, np.array([12.0, -30.0, 2.0])
    matrix = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])

    def moved(objects):
        boxes = objects.boxes.copy()
        boxes[:, :3] = boxes[:, :3] @ matrix.T + shift
        boxes[:, 6] += turn
        return Objects(objects.names, boxes, objects.scores, None, objects.image_boxes, objects.alphas,
                       objects.truncated, objects.occluded)  # fmt: skip

    after = precision_curves([moved(t) for t in truths], [moved(d) for d in detections], min_overlap=overlaps)
    for metric in overlaps:
        assert after.precision[metric] == pytest.approx(before.precision[metric], abs=1e-12)
        assert 0 < before.r40(metric).max() < 100


def test_overlap_must_be_strictly_greater():
    one = Objects(("Car",), np.array([[0.0, 0, 0, 4, 2, 2, 0]]))
    half = Objects(("Car",), np.array([[0.0, 0, 0, 2, 2, 2, 0]]), np.ones(1))
    for least, ap in ((0.5, 0.0), (0.499, 100.0)):
        curves = precision_curves([one], [half], ["Car"], {"3d": [least]}, EVERYTHING)
        assert curves.r11("3d")[0, 0] == (ap if ap == 0 else pytest.approx(100 / 11))  # one object, one recall


def test_what_is_refused():
    truths, detections = frames(3, 2)
    with pytest.raises(ValueError, match="2 frames with labels and 1 with detections"):
        precision_curves(truths, detections[:1])
    with pytest.raises(ValueError, match="needs a score"):
        precision_curves(truths, truths)
    bare = [Objects(t.names, t.boxes) for t in truths]
    with pytest.raises(ValueError, match="needs an image box"):
        precision_curves(bare, detections, min_overlap=MIN_OVERLAP)
    assert kitti_ap([Objects.none()], [Objects.none()]).metrics["3d mean moderate"] == 0


def test_objects_as_json():
    truth, found = frames(4, 1, 9)[0][0], frames(4, 1, 9)[1][0]
    for objects in (truth, found, Objects.none()):
        again = Objects.from_json(objects.to_json())
        assert again.to_json() == objects.to_json()
    assert truth.named("Car", "Van").names == tuple(n for n in truth.names if n in ("Car", "Van"))
    with pytest.raises(ValueError, match="2 names, and boxes of 1"):
        Objects(("Car", "Van"), np.zeros((1, 7)))
