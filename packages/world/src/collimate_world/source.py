"""The world as a source of samples, made when they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import UInt8

from collimate.data import Sample
from collimate_world.captions import KINDS, Kind, caption, phrase
from collimate_world.generated import Generated
from collimate_world.negatives import negatives
from collimate_world.picture import Picture
from collimate_world.relations import relations
from collimate_world.scene import COLOURS, HELD_OUT, SHAPES, Combinations, Scene, sample_scene

N = TypeVar("N", int, float)
CLASS_NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
"""The classes of single-object scenes, in the order of their numbers."""

HELD_OUT_CLASSES = [number for number, name in enumerate(CLASS_NAMES) if tuple(name.split()) in HELD_OUT]
"""The numbers of the classes that never occur in the training split."""

TEMPLATES = ["one {}", "a picture of one {}", "there is one {}", "{}"]
"""Prompts for zero-shot classification; without an article, which would have to agree with the name."""


class WorldSource(Generated):
    """Scenes as samples: `world:train?objects=2-4` on the command line.

    A sample has `png` (uint8 array of (size, size, 3)), `txt`, `captions.json` (one of each kind, with its truth),
    `regions.json` (box in pixels and phrase of each object), `json` (the scene, and that it is synthetic), and for
    scenes of one object `cls`. Where they are asked for, it has `instances.png` (the number of the object that each
    pixel shows, from 1 in the order of the regions) and `compositional.json` (captions with hard negatives).

    Args:
        split: train, val or test. Held-out combinations of colour and shape occur in the last two only.
        objects: how many objects a scene has: a number, or a range as in `2-4`.
        length: number of scenes.
        size: side of the pictures in pixels.
        seed: another seed, another world of the same kind.
        text: the kind of caption that is the sample's `txt`.
        noise_rate: the share of noisy captions that are wrong.
        combinations: `seen` in training, `held_out`, or `all`; by default what the split allows.
        masks: samples have `instances.png`.
        negatives: samples have `compositional.json`.

    Raises:
        ValueError: an argument is not one of these; says which are.
    """

    def __init__(
        self,
        split: str = "train",
        objects: int | str = 1,
        length: int = 10_000,
        size: int = 64,
        seed: int = 0,
        text: str = "short",
        noise_rate: float = 0.4,
        combinations: str | None = None,
        masks: bool = False,
        negatives: bool = False,
    ) -> None:
        if text not in KINDS:
            raise ValueError(f"The text of a sample is one of {', '.join(KINDS)}; not {text!r}.")
        if not 0 <= noise_rate <= 1:
            raise ValueError(f"The noise rate is a share between 0 and 1, not {noise_rate}.")
        super().__init__(f"world:{split}?objects={objects}", split, length, seed)
        self.combinations: Combinations | None = cast(Combinations | None, combinations)
        self.objects = number_range(objects, int, "The number of objects")
        self.size = size
        self.text, self.noise_rate = cast(Kind, text), noise_rate
        self.masks, self.negatives = masks, negatives
        if self.objects == (1, 1):
            self.class_names, self.templates = CLASS_NAMES, TEMPLATES
        self.scene(0)  # refuses what no scene can have, before training starts

    def scene(self, index: int) -> Scene:
        """The scene of a sample."""
        return sample_scene(self.split, index, self.seed, self.objects, self.combinations)

    def made(self, index: int) -> Sample:
        scene = self.scene(index)
        picture = Picture(scene, self.size)
        captions = [caption(scene, kind, noise_rate=self.noise_rate) for kind in KINDS]
        sample: Sample = {
            "__key__": f"{self.split}-{'-'.join(map(str, self.objects))}-{self.seed}-{index:08d}",
            "__source__": self.name,
            "png": picture.pixels,
            "txt": captions[KINDS.index(self.text)].text,
            "captions.json": [dict(vars(one)) for one in captions],
            "regions.json": regions(picture),
            "json": description(scene) | {"split": self.split, "seed": self.seed, "index": index},
        }
        if self.objects == (1, 1):
            sample["cls"] = CLASS_NAMES.index(scene.things[0].name)
        if self.masks:
            sample["instances.png"] = instances(picture)
        if self.negatives:
            sample["compositional.json"] = [dict(vars(one)) for one in negatives(scene)]
        return sample


def regions(picture: Picture) -> list[dict[str, Any]]:
    """Box (x0, y0, x1, y1 in pixels) and phrase of each object."""
    return [
        {"box": box.tolist(), "phrase": phrase(thing), "name": thing.name}
        for thing, box in zip(picture.scene.things, picture.boxes, strict=True)
    ]


def instances(picture: Picture) -> UInt8[np.ndarray, "S S"]:
    """For each pixel the number, from 1, of the object that it shows; 0 for the background."""
    numbers = np.arange(1, len(picture.masks) + 1, dtype=np.uint8)
    return (picture.masks * numbers[:, None, None]).sum(axis=0, dtype=np.uint8)


def description(scene: Scene) -> dict[str, Any]:
    """A scene as JSON: its graph, and that it is synthetic."""
    return {
        "synthetic": True,
        "objects": [dict(vars(thing)) for thing in scene.things],
        "relations": [list(relation) for relation in relations(scene)],
        "background": scene.background,
        "light": dict(vars(scene.light)),
    }


def number_range(words: float | str, number: Callable[[str], N], what: str) -> tuple[N, N]:
    """The least and the greatest of a range as in `2-4`, or of a number alone.

    Raises:
        ValueError: it is neither.
    """
    low, _, high = str(words).partition("-")
    try:
        return number(low), number(high or low)
    except ValueError:
        raise ValueError(f"{what} is a number or a range as in 2-4, not {words!r}.") from None
