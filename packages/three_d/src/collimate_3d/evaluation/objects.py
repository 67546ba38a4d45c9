"""Objects by their names: the word level of a scene-language model as a zero-shot classifier.

An object is told by its cloud and its box alone, before the graph (o_m), and a name by the mean of the unit vectors of
its words (w_l), so that `collimate.evaluation.evaluate_zero_shot` serves objects as it serves pictures.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from collimate.data import Sample, Source
from collimate.data.decoding import register_modality, value_of
from collimate.encoding import Encoding
from collimate.evaluation import Manner, register_evaluation
from collimate.evaluation.classification import ClassificationResult
from collimate.evaluation.zero_shot import evaluate_zero_shot
from collimate.training import Method
from collimate_3d.evaluation.pictures import show_scene
from collimate_3d.scene_graph_vlp import SceneGraphVLP
from collimate_3d.scenes.processing import SCENE, SceneProcessor, checked_scene, unpacked_scenes

OBJECT = "object.npz"

register_modality("object", OBJECT)
register_evaluation("object", Manner(show=show_scene))


def evaluate_objects(
    method: SceneGraphVLP,
    data: Source,
    classes: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    templates: str | Sequence[str] | None = None,
    **options: Any,
) -> ClassificationResult:
    """Classify the objects of scenes by the names of their classes.

    Args:
        method: trained.
        data: samples with `scene.npz`.
        classes: names, a file of names, or class -> full texts; the classes of the method's scenes if None.
        templates: what names are put into; the name alone if None.
        options: of `evaluate_zero_shot`.

    Raises:
        ValueError: no object is of a known class.
    """
    scenes: Any = method.processors["scene"]
    return evaluate_zero_shot(ObjectNames(method), ObjectSource(data, scenes.classes), classes, templates, **options)


class ObjectSource(Source):
    """Each object of known class of each scene as a sample: `object.npz`, a scene of it alone, and `cls`.

    All scenes are read once, to count.

    Raises:
        ValueError: there is no such object.
    """

    def __init__(self, scenes: Source, classes: Sequence[str]) -> None:
        self.scenes, self.class_names = scenes, list(classes)
        self.name = f"objects of {scenes.name}"
        known = set(classes)
        self.places: list[list[int]] = []
        for index in range(len(scenes)):
            labels = checked_scene(value_of(scenes.peek(index, (SCENE,)), (SCENE,)))["labels"].tolist()
            self.places.append([number for number, label in enumerate(labels) if label in known])
        self._ends = list(accumulate(len(each) for each in self.places))
        if not self._ends or not self._ends[-1]:
            raise ValueError(f"{scenes.name}: no object is of the classes {', '.join(self.class_names[:8])}.")

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> Sample:
        number = bisect_right(self._ends, index)
        place = self.places[number][index - (self._ends[number - 1] if number else 0)]
        sample = self.scenes.read(number)
        scene = checked_scene(value_of(sample, (SCENE,)))
        own = scene["instance"] == scene["ids"][place]
        alone = {name: scene[name][own] for name in ("xyz", "rgb", "instance")}
        alone |= {name: scene[name][place : place + 1] for name in ("ids", "labels", "boxes")}
        return {
            "__key__": f"{sample['__key__']}-{int(scene['ids'][place])}",
            "__source__": self.name,
            OBJECT: alone,
            "cls": self.class_names.index(str(scene["labels"][place])),
        }


class ObjectNames(Method):
    """A trained `SceneGraphVLP` as a method of objects and their names; for evaluation.

    Args:
        method: whose weights it shares.
    """

    modalities = ("object", "text")

    def __init__(self, method: SceneGraphVLP) -> None:
        super().__init__()
        self.method = method
        scenes: Any = method.processors["scene"]
        self.processors = {
            "object": SceneProcessor(scenes.classes, 1, scenes.points),
            "text": method.processors["text"],
        }

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        if modality == "object":
            objects = self.method.objects(unpacked_scenes(inputs))
            return Encoding(self.method.projections["object"](objects)[:, 0])
        found = self.method("text", inputs, mask)
        ends = torch.tensor(_special(self.processors["text"]), device=inputs.device)
        words = found.token_mask & ~torch.isin(inputs, ends)
        vectors = normalize(found.tokens, dim=-1) * words[..., None]
        return Encoding(vectors.sum(1) / words.sum(1, keepdim=True).clamp_min(1))


def _special(tokenizer: Any) -> list[int]:
    return [each for each in (tokenizer.start_id, tokenizer.end_id) if each is not None]
