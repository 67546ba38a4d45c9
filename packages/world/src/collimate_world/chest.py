"""Chest films of synthetic patients: soft shapes for body, lungs, heart, ribs and spine, and what is found in them.

Drawn as films hang: the patient's right is the picture's left. What lets rays through is dark.

Shape legend: S side of the picture in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from collimate_world.patient import SIDES, Visit

Plane = Float32[np.ndarray, "S S"]

LUNG_CENTRE, LUNG_RADIUS = (0.43, -0.08), (0.33, 0.66)  # of the patient's left lung; the picture reaches from -1 to 1
CHEST_WIDTH = 2 * (LUNG_CENTRE[0] + LUNG_RADIUS[0])
HEART_HEIGHT = 0.30
_SOFT = 0.03  # width of an edge
_DRAWS = 1  # of the visit's random numbers, as the next one
_WAVES = 8


class _Lung(NamedTuple):
    """Where the lung is, from 0 to 1, and how far from its middle each point is, 1 being its rim."""

    inside: Plane
    distance: Plane


def chest_film(visit: Visit, size: int = 64) -> Plane:
    """The X-ray of a visit, from 0, black, to 1, white.

    Args:
        visit: see `collimate_world.patient.sample_visit`.
        size: S.
    """
    rng = visit.generator(_DRAWS)
    x, y = _plane(size, rng)
    x = x / visit.build
    texture = _texture(x, y, rng)
    lungs = {side: _lung(x, y, sign) for side, sign in zip(SIDES, (-1, 1), strict=True)}
    heart = _heart(x, y, visit.cardiothoracic)
    middle = np.exp(-_fourth(x / 0.15))
    air = np.zeros_like(x)
    film = 0.70 * _step(1 - _fourth(x / 0.98) - _fourth((y - 0.15) / 1.15), 0.1)
    for side, lung in lungs.items():
        filled = _filled(visit, side, x, y, texture)
        aerated = lung.inside * (1 - heart) * (1 - middle) * (1 - filled)
        film += 0.09 * aerated * texture * _vessels(visit, side, lung)
        film += _pleura(visit, side, lung, y) * aerated
        air += aerated
    film *= 1 - 0.72 * air
    film += _bones(x, y)
    exposure, contrast = rng.uniform((-0.04, 0.88), (0.04, 1.08))
    film = contrast * film + exposure + 0.02 * rng.standard_normal(film.shape, np.float32)
    return np.clip(film, 0, 1).astype(np.float32)


def _plane(size: int, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """The coordinates of the pixels, of a patient who stands a little askew."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    angle, right, down, scale = rng.uniform((-0.04, -0.04, -0.04, 0.97), (0.04, 0.04, 0.04, 1.03)).astype(np.float32)
    x, y = line[None, :] - right, line[:, None] - down
    return scale * (x * np.cos(angle) + y * np.sin(angle)), scale * (y * np.cos(angle) - x * np.sin(angle))


def _step(value: Plane, width: float = _SOFT) -> Plane:
    """From 0 to 1 where the value rises through 0."""
    return 0.5 + 0.5 * np.tanh(value / width)


def _fourth(value: Plane) -> Plane:
    """Its fourth power; numpy's own takes thirty times as long below 0."""
    return np.square(np.square(value))


def _lung(x: Plane, y: Plane, sign: int) -> _Lung:
    across, along = (sign * x - LUNG_CENTRE[0]) / LUNG_RADIUS[0], (y - LUNG_CENTRE[1]) / LUNG_RADIUS[1]
    distance = (np.abs(across) ** 2.5 + np.abs(along) ** 2.5) ** 0.4
    dome = 0.50 - 0.10 * np.exp(-((across / 0.8) ** 2))
    return _Lung(_step(1 - distance, 2 * _SOFT) * _step(dome - y), distance)


def _heart(x: Plane, y: Plane, cardiothoracic: float) -> Plane:
    """The heart's shadow; a larger one reaches further to the patient's left."""
    radius = cardiothoracic * CHEST_WIDTH / 2
    centre = 0.07 + 0.35 * (radius - 0.3)
    return _step(1 - np.hypot((x - centre) / radius, (y - 0.27) / HEART_HEIGHT), 3 * _SOFT)


def _bones(x: Plane, y: Plane) -> Plane:
    """Ribs, which fall towards the sides, collar bones and vertebrae."""
    side = np.abs(x)
    chest = _step(1 - np.hypot(x / 0.86, (y + 0.05) / 0.85), 2 * _SOFT) * _step(side - 0.12)
    ribs = np.maximum(np.cos((y - 0.30 * side + 0.25 * side**2) * 28), 0) ** 2 * chest
    collar = np.exp(-(((y + 0.74 - 0.28 * side) / 0.035) ** 2)) * _step(side - 0.08) * _step(0.72 - side)
    spine = np.exp(-_fourth(x / 0.09)) * (1 + 0.5 * np.cos(y * 25))
    return 0.07 * ribs + 0.13 * collar + 0.05 * spine


def _texture(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    """Something irregular between -1 and 1: plane waves of any direction."""
    angles, phases = rng.uniform(0, 2 * np.pi, (2, _WAVES)).astype(np.float32)
    lengths = rng.uniform(10, 30, _WAVES).astype(np.float32)
    waves = np.zeros_like(x)
    for angle, phase, length in zip(angles, phases, lengths, strict=True):
        waves += np.cos(length * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return waves / _WAVES**0.5


def _filled(visit: Visit, side: str, x: Plane, y: Plane, texture: Plane) -> Plane:
    """How much of a lung holds no air, from 0 to 1, at each point of its side."""
    filled = np.zeros_like(x)
    outwards = x if side == "left" else -x
    if visit.place.get("pleural effusion") == side:
        level = 0.30 - 0.40 * visit.severity["pleural effusion"]
        surface = level + 0.12 - 0.35 * np.maximum(outwards - 0.1, 0) ** 2  # it climbs along the ribs
        filled = 0.92 * _step(y - surface, 1.5 * _SOFT)
    where, _, zone = visit.place.get("lung opacity", "").partition(" ")
    if where == side:
        middle = -0.38 if zone == "upper" else 0.14
        cloud = np.exp(-(((outwards - 0.46) / 0.18) ** 2) - ((y - middle) / 0.19) ** 2)
        dense = (0.60 + 0.35 * visit.severity["lung opacity"]) * cloud * (1 + 0.25 * texture)
        filled = 1 - (1 - filled) * (1 - np.clip(dense, 0, 1))
    return filled


def _vessels(visit: Visit, side: str, lung: _Lung) -> Plane | float:
    """How much of the lung's markings is seen: none where it has collapsed."""
    return _step(_rim(visit) - lung.distance, 0.05) if visit.place.get("pneumothorax") == side else 1.0


def _pleura(visit: Visit, side: str, lung: _Lung, y: Plane) -> Plane | float:
    """The fine line of a collapsed lung, and the air beyond it, which is black, most of it above."""
    if visit.place.get("pneumothorax") != side:
        return 0.0
    rim, above = _rim(visit), _step(0.25 - y, 0.2)
    line = np.exp(-(((lung.distance - rim) / 0.06) ** 2))
    return above * (0.55 * line - 0.65 * _step(lung.distance - rim, 0.05))


def _rim(visit: Visit) -> float:
    return 0.80 - 0.30 * visit.severity["pneumothorax"]
