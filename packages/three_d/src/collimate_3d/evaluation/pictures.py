"""Scenes for people: points seen from above at a slant, boxes around objects, and what an answer rests on.

Shape legend: P points, M objects, S pixels of a side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from collimate.evaluation.modalities import Exhibit, Manner, register_evaluation
from collimate_3d.scene_graph_vlp import SceneGraphVLP
from collimate_3d.scenes.processing import checked_scene

SIDE = 420  # pixels
SLANT = np.deg2rad(50)  # of the view, from the horizontal
BACKGROUND, TARGET, CHOSEN, RESTS = (246, 246, 244), (40, 150, 70), (205, 60, 60), (70, 100, 220)
DOT = 3  # pixels of a point
MARGIN = 0.06  # of the picture around the scene
LEAST = 0.05  # of the largest influence: smaller ones are not drawn
EDGES = [(a, b) for a in range(8) for b in range(a) if bin(a ^ b).count("1") == 1]  # of a box, by its corners


def show_scene(raw: Any) -> Exhibit:
    """A scene's points, for reports."""
    scene = checked_scene(raw)
    return Exhibit(_drawn(scene, _View(scene["xyz"], scene["boxes"])))


def grounding_picture(
    scene: dict[str, np.ndarray], chosen: int, target: int, rests_on: dict[int, float] | None = None
) -> Image.Image:
    """A scene with the box of the answer, that of the target where it is another, and arrows from what it rests on.

    Args:
        scene: as `checked_scene` gives it.
        chosen, target: ids; one that is none of the objects is not drawn. The answer is green where it is right, else
            red, and the target green then.
        rests_on: of `influences`.
    """
    view = _View(scene["xyz"], scene["boxes"])
    picture = _drawn(scene, view)
    draw = ImageDraw.Draw(picture)
    boxes = dict(zip(scene["ids"].tolist(), scene["boxes"], strict=True))
    largest = max((abs(each) for each in (rests_on or {}).values()), default=0.0)
    for number, influence in (rests_on or {}).items():
        if largest and abs(influence) > LEAST * largest and number in boxes and chosen in boxes:
            ends = view(np.stack([boxes[number][:3], boxes[chosen][:3]]))
            draw.line([tuple(end) for end in ends], RESTS, max(1, round(5 * abs(influence) / largest)))
            _dot(draw, ends[0], 4, RESTS)
    for number, colour in ((chosen, TARGET if chosen == target else CHOSEN), (target, TARGET)):
        if number in boxes:
            ends = view(_corners(boxes[number]))
            for a, b in EDGES:
                draw.line([tuple(ends[a]), tuple(ends[b])], colour, 2)
    return picture


@torch.no_grad()
def influences(method: SceneGraphVLP, scene: Tensor, referral: Tensor, chosen: int) -> dict[int, float]:
    """Id of each other object -> by how much the answer's lead over the mean of the objects falls without it.

    The lead is that of the matching head's logit; each object is taken away in turn, so that this says the same of any
    graph.

    Args:
        scene, referral: one scene and one of its sentences, as the processors make them.
        chosen: the id of the answer.
    """
    count = int((scene[:, 0] > 0).sum())
    ids = scene[:count, 1].long().tolist()
    if chosen not in ids:
        return {}
    variants = scene[None].repeat(count + 1, 1, 1)
    variants[torch.arange(count) + 1, torch.arange(count), 0] = 0
    matching, _ = method.ground(variants, referral[None].repeat(count + 1, 1, 1))
    logits = matching[:, 0, :count].float().cpu()
    there = logits.isfinite()
    mean = logits.masked_fill(~there, 0).sum(1) / there.sum(1).clamp_min(1)
    lead = logits[:, ids.index(chosen)] - mean
    return {number: float(lead[0] - lead[row + 1]) for row, number in enumerate(ids) if number != chosen}


class _View:
    """Where points come to lie in a picture; nearer ones lower."""

    def __init__(self, xyz: Float[np.ndarray, "P 3"], boxes: Float[np.ndarray, "M 6"]) -> None:
        everything = np.concatenate([xyz, *(_corners(box) for box in boxes)]) if len(boxes) else xyz
        flat = self._flat(everything) if len(everything) else np.zeros((1, 2))
        low, high = flat.min(0), flat.max(0)
        self.scale = SIDE * (1 - 2 * MARGIN) / max(float((high - low).max()), 1e-6)
        self.middle = (low + high) / 2

    def __call__(self, xyz: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 2"]:
        return (self._flat(xyz) - self.middle) * self.scale + SIDE / 2

    def _flat(self, xyz: np.ndarray) -> np.ndarray:
        return np.stack([xyz[:, 0], -(xyz[:, 1] * np.sin(SLANT) + xyz[:, 2] * np.cos(SLANT))], 1)


def _drawn(scene: dict[str, np.ndarray], view: _View) -> Image.Image:
    pixels = np.full((SIDE, SIDE, 3), BACKGROUND, np.uint8)
    xyz = scene["xyz"]
    depth = xyz[:, 1] * np.cos(SLANT) - xyz[:, 2] * np.sin(SLANT)
    order = np.argsort(-depth)  # the farthest first
    places = view(xyz[order]).round().astype(int)
    for dy in range(DOT):
        for dx in range(DOT):
            x, y = np.clip(places[:, 0] + dx, 0, SIDE - 1), np.clip(places[:, 1] + dy, 0, SIDE - 1)
            pixels[y, x] = scene["rgb"][order]
    return Image.fromarray(pixels)


def _corners(box: Float[np.ndarray, " 6"]) -> Float[np.ndarray, "8 3"]:
    signs = np.array([[(number >> axis & 1) - 0.5 for axis in range(3)] for number in range(8)])
    return box[:3] + signs * box[3:]


def _dot(draw: ImageDraw.ImageDraw, place: np.ndarray, radius: int, colour: tuple[int, int, int]) -> None:
    x, y = place
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)


register_evaluation("scene", Manner(show=show_scene))
