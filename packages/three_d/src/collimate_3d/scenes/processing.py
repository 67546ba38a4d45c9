"""Scenes and sentences on their objects as tensors.

A scene is the field `scene.npz` of a sample, as `collimate.data.scene_graphs.scene_arrays` makes it; sentences are its
field `referrals.json`. Each becomes one tensor, so that loaders, caches and evaluation need know nothing of scenes;
`unpacked_scenes` and `unpacked_referrals` take a batch of them apart.

Shape legend: B scenes, M objects of a scene, P points of an object, S sentences of a scene, L tokens of a sentence.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from collimate.data.decoding import Undecodable, register_modality
from collimate.data.preparation import Augmentation
from collimate.data.referrals import REFERRALS, Referral, referrals_of
from collimate.processing import Processor, Tokenizer

SCENE = "scene.npz"
ARRAYS = {"xyz": 3, "rgb": 3, "instance": None, "ids": None, "labels": None, "boxes": 6}
POINT = 6  # numbers of a point: x, y, z, and red, green, blue
HEAD = 9  # numbers of an object before its edges and points: given, id, class, box
REFERRAL_HEAD = 2  # numbers of a sentence before its tokens: given, target

register_modality("scene", SCENE)
register_modality("referrals", REFERRALS)


class Scenes(NamedTuple):
    """A batch of scenes.

    Attributes:
        given: which rows are objects.
        ids, labels: of the objects; -1 where there is none, and for a class that is not known.
        boxes: centre and extents, in metres.
        related: the edges [subject, object] that the scene came with.
        points: x, y, z from the object's mean, over the largest distance from there; red, green, blue from -1 to 1.
    """

    given: Bool[Tensor, "B M"]
    ids: Int64[Tensor, "B M"]
    labels: Int64[Tensor, "B M"]
    boxes: Float[Tensor, "B M 6"]
    related: Bool[Tensor, "B M M"]
    points: Float[Tensor, "B M P 6"]


class Referrals(NamedTuple):
    """A batch of scenes' sentences.

    Attributes:
        given: which rows are sentences.
        target: the id of the object that each refers to, -1 where there is no sentence.
        ids: its tokens.
        names: of each token the id of the object that it names, -1 for none.
    """

    given: Bool[Tensor, "B S"]
    target: Int64[Tensor, "B S"]
    ids: Int64[Tensor, "B S L"]
    names: Int64[Tensor, "B S L"]


def unpacked_scenes(batch: Float[Tensor, "B M W"]) -> Scenes:
    """What `SceneProcessor` packed."""
    most = batch.shape[1]
    related, points = batch[..., HEAD : HEAD + most], batch[..., HEAD + most :]
    given = batch[..., 0] > 0
    return Scenes(
        given,
        batch[..., 1].long().masked_fill(~given, -1),
        batch[..., 2].long().masked_fill(~given, -1),
        batch[..., 3:HEAD],
        related > 0,
        points.unflatten(-1, (-1, POINT)),
    )


def unpacked_referrals(batch: Int64[Tensor, "B S W"]) -> Referrals:
    """What `ReferralProcessor` packed."""
    given = batch[..., 0] > 0
    ids, names = batch[..., REFERRAL_HEAD:].chunk(2, -1)
    return Referrals(given, batch[..., 1].masked_fill(~given, -1), ids, names.masked_fill(~given[..., None], -1))


class SceneProcessor(Processor):
    """A scene to one row an object: (M, W) float32; see `unpacked_scenes`.

    Objects without points cannot be seen, and are left out. So are those after the first M.

    Args:
        classes: names of the classes, in the order of their numbers; a label that is none of them has the class -1.
        max_objects: M; 80 in 3D-VisTA.
        points: P of each object, 1024 there: evenly spread over the object's points as they are stored, or all of them
            and some twice.
    """

    modality = "scene"

    def __init__(self, classes: Sequence[str], max_objects: int = 80, points: int = 1024) -> None:
        if max_objects < 1 or points < 1:
            raise ValueError(f"A scene has objects, and these have points; not {max_objects} and {points}.")
        self.classes, self.max_objects, self.points = list(classes), max_objects, points
        self._numbers = {name: number for number, name in enumerate(self.classes)}

    def __call__(self, raw: Any) -> Float[Tensor, "M W"]:
        """One scene.

        Raises:
            Undecodable: arrays are missing, of other shapes, or not finite; an edge leads to an object that is not
                there, or from one to itself.
        """
        scene = checked_scene(raw)
        clouds = _clouds(scene)
        seen = [number for number, cloud in enumerate(clouds) if len(cloud)][: self.max_objects]
        most = self.max_objects
        packed = torch.zeros(most, HEAD + most + self.points * POINT)
        for row, number in enumerate(seen):
            packed[row, 0], packed[row, 1] = 1, float(scene["ids"][number])
            packed[row, 2] = self._numbers.get(str(scene["labels"][number]), -1)
            packed[row, 3:HEAD] = torch.from_numpy(scene["boxes"][number])
            packed[row, HEAD + most :] = torch.from_numpy(object_points(clouds[number], self.points)).flatten()
        rows = {number: row for row, number in enumerate(seen)}
        for subject, target in scene["edges"].T.tolist():
            if subject in rows and target in rows:
                packed[rows[subject], HEAD + rows[target]] = 1
        return packed

    def mask(self, batch: Float[Tensor, "B M W"]) -> Bool[Tensor, "B M"]:
        return batch[..., 0] > 0

    def trimmed(self, batch: Float[Tensor, "B M W"]) -> Float[Tensor, "B m w"]:
        """Scenes without the rows that are no object in any of them, nor edges to these."""
        most = batch.shape[1]
        kept = max(1, int(((batch[..., 0] > 0).any(0) * torch.arange(1, most + 1)).max()))
        rows = batch[:, :kept]
        return torch.cat([rows[..., : HEAD + kept], rows[..., HEAD + most :]], -1)

    def example(self) -> dict[str, np.ndarray]:
        angle = np.arange(40) * 0.7
        xyz = np.stack([np.cos(angle) + (angle > 14), np.sin(angle), angle / 20], 1).astype(np.float32)
        boxes = np.array([[0, 0, 0.35, 2, 2, 0.7], [1, 0, 1.0, 2, 2, 0.7]], np.float32)
        label = self.classes[0] if self.classes else ""
        return {
            "xyz": xyz,
            "rgb": (np.arange(120).reshape(40, 3) * 2).astype(np.uint8),
            "instance": (angle > 14).astype(np.int64),
            "ids": np.arange(2),
            "labels": np.array([label, label]),
            "boxes": boxes,
            "edges": np.array([[1], [0]]),
        }


class ReferralProcessor(Processor):
    """Sentences to one row each: (S, 2 + 2 L) int64; see `unpacked_referrals`. Those after the first S are left out.

    Args:
        tokenizer: of the sentences; each is at most its `context_length` L.
        max_sentences: S; 8 in 3D-VLP's training.
    """

    modality = "referrals"

    def __init__(self, tokenizer: Tokenizer, max_sentences: int = 8) -> None:
        if max_sentences < 1:
            raise ValueError(f"A scene has sentences; not {max_sentences}.")
        self.tokenizer, self.max_sentences = tokenizer, max_sentences
        self._pieces = lru_cache(maxsize=2**16)(self._count_pieces)

    def __call__(self, raw: Any) -> Int64[Tensor, "S W"]:
        """The sentences of one scene.

        Raises:
            Undecodable: they are not what `collimate.data.referrals.referrals_of` takes.
        """
        length = self.tokenizer.context_length
        packed = torch.zeros(self.max_sentences, REFERRAL_HEAD + 2 * length, dtype=torch.int64)
        packed[:, REFERRAL_HEAD : REFERRAL_HEAD + length] = self.tokenizer.pad_id
        for row, each in enumerate(listed_referrals(raw)[: self.max_sentences]):
            packed[row, 0], packed[row, 1] = 1, each.target
            packed[row, REFERRAL_HEAD : REFERRAL_HEAD + length] = self.tokenizer(each.text)
            packed[row, REFERRAL_HEAD + length :] = self.names(each)
        return packed

    def mask(self, batch: Int64[Tensor, "B S W"]) -> Bool[Tensor, "B S"]:
        return batch[..., 0] > 0

    def names(self, referral: Referral) -> Int64[Tensor, " L"]:
        """Of each token the object that it names; of a word in pieces, all of them do."""
        found = torch.full((self.tokenizer.context_length,), -1)
        first = 0 if self.tokenizer.start_id is None else 1
        for word in referral.words:
            start = self._pieces(referral.text[: word.start].rstrip())
            stop = self._pieces(referral.text[: word.stop])
            found[first + start : first + stop] = word.object
        ends = self.tokenizer(referral.text) == self.tokenizer.end_id
        return found.masked_fill(ends, -1)  # a text that was cut ends where a word may have stood

    def example(self) -> list[dict[str, Any]]:
        return [{"text": "the one above the other", "target": 1, "anchors": [0], "words": [[1, 4, 7], [0, 18, 23]]}]

    def __reduce__(self) -> tuple[type, tuple[Tokenizer, int]]:  # the cache of a method cannot be sent to workers
        return type(self), (self.tokenizer, self.max_sentences)

    def _count_pieces(self, text: str) -> int:
        """How many tokens a text has, without start and end; a tokenizer begins anew at each word."""
        if not text:
            return 0
        real = self.tokenizer.mask(self.tokenizer(text)[None])[0]
        return int(real.sum()) - 1 - (self.tokenizer.start_id is not None)


class DrawnReferrals(Augmentation):
    """In training, S of a scene's sentences, drawn anew each time; for scenes that have more."""

    def __call__(self, raw: Any, processor: ReferralProcessor) -> Int64[Tensor, "S W"]:
        found = listed_referrals(raw)
        return processor(random.sample(found, min(len(found), processor.max_sentences)))


class SceneAugmentation(Augmentation):
    """Scenes that are turned a little about the vertical, stretched along each axis, and shifted, as in 3D-VLP.

    Boxes become the axis-aligned hulls of the turned ones. Departures: 3D-VLP mirrors scenes too, which makes sentences
    with `left` and `right` false; and tilts them, after which floors are no longer level. Neither is done here.

    Args:
        degrees: of the turn, at most, to either side.
        stretch: logarithm of the factor of each axis, at most, to either side.
        shift: in metres, at most, along each axis.
    """

    def __init__(self, degrees: float = 5.0, stretch: float = 0.1, shift: float = 0.5) -> None:
        self.degrees, self.stretch, self.shift = degrees, stretch, shift

    def __call__(self, raw: Any, processor: SceneProcessor) -> Float[Tensor, "M W"]:
        angle = np.deg2rad(random.uniform(-self.degrees, self.degrees))
        factors = np.exp([random.uniform(-self.stretch, self.stretch) for _ in range(3)])
        shift = np.array([random.uniform(-self.shift, self.shift) for _ in range(3)])
        return processor(moved_scene(checked_scene(raw), angle, factors, shift))


def moved_scene(
    scene: Mapping[str, np.ndarray], angle: float, factors: np.ndarray, shift: np.ndarray
) -> dict[str, np.ndarray]:
    """A scene turned about the vertical, counter-clockwise as seen from above, then stretched, then shifted.

    Args:
        scene: as `checked_scene` gives it.
        angle: in radians.
        factors: of x, y and z.
        shift: in metres.
    """
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    boxes = scene["boxes"].astype(np.float64)
    hull = np.concatenate([boxes[:, :3] @ turn.T * factors + shift, boxes[:, 3:] @ np.abs(turn).T * factors], 1)
    xyz = scene["xyz"].astype(np.float64) @ turn.T * factors + shift
    return {**scene, "xyz": xyz.astype(np.float32), "boxes": hull.astype(np.float32)}


def object_points(cloud: Float[np.ndarray, "N 6"], count: int) -> Float[np.ndarray, "P 6"]:
    """So many points of an object, centred at their mean and divided by the largest distance from it (3D-VisTA).

    Args:
        cloud: x, y, z in metres, and red, green, blue from -1 to 1; one point at least.
    """
    chosen = cloud[np.arange(count) * len(cloud) // count if len(cloud) > count else np.arange(count) % len(cloud)]
    place = chosen[:, :3] - chosen[:, :3].mean(0)
    place /= max(float(np.linalg.norm(place, axis=1).max()), 1e-6)
    return np.concatenate([place, chosen[:, 3:]], 1).astype(np.float32)


def checked_scene(raw: Any) -> dict[str, np.ndarray]:
    """The arrays of a scene; without `edges` there are none.

    Raises:
        Undecodable: as of `SceneProcessor`.
    """
    if not isinstance(raw, Mapping) or (lacking := [name for name in ARRAYS if name not in raw]):
        lacking = ", ".join(ARRAYS) if not isinstance(raw, Mapping) else ", ".join(lacking)
        raise Undecodable("not a scene", f"it lacks {lacking}; see collimate.data.scene_graphs.scene_arrays")
    scene = {name: np.asarray(raw[name]) for name in ARRAYS}
    scene["edges"] = np.asarray(raw.get("edges", np.zeros((2, 0))), np.int64)
    points, objects = scene["instance"].size, scene["ids"].size
    for name, columns in ARRAYS.items():
        rows = points if name in ("xyz", "rgb", "instance") else objects
        wanted = (rows,) if columns is None else (rows, columns)
        if scene[name].shape != wanted:
            raise Undecodable("damaged scene", f"{name} is {scene[name].shape}, expected {wanted}")
    if not (np.isfinite(scene["xyz"]).all() and np.isfinite(scene["boxes"]).all()):
        raise Undecodable("scene not finite", "a point or a box is NaN or infinite")
    edges = scene["edges"]
    if edges.ndim != 2 or len(edges) != 2:
        raise Undecodable("damaged scene", f"edges are {edges.shape}, expected (2, R): subjects and objects")
    if edges.size and (edges.min() < 0 or edges.max() >= objects):
        raise Undecodable("dangling edge", f"an edge leads to object {edges.max()} of {objects}, counted from 0")
    if (edges[0] == edges[1]).any():
        raise Undecodable("edge of an object to itself", "leave it out")
    return scene


def listed_referrals(raw: Any) -> list[Referral]:
    """Sentences that are read already, or as the field has them."""
    if isinstance(raw, list) and raw and isinstance(raw[0], Referral):
        return raw
    return referrals_of(raw)


def _clouds(scene: Mapping[str, np.ndarray]) -> list[Float[np.ndarray, "N 6"]]:
    """The points of each object."""
    order = np.argsort(scene["instance"], kind="stable")
    sorted_ids = scene["instance"][order]
    starts, stops = (np.searchsorted(sorted_ids, scene["ids"], side) for side in ("left", "right"))
    points = np.concatenate([scene["xyz"], scene["rgb"].astype(np.float32) / 127.5 - 1], 1)[order]
    return [points[start:stop] for start, stop in zip(starts, stops, strict=True)]
