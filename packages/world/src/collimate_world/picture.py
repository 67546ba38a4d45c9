"""The camera: pixels, boxes and masks of a scene.

Every shape is a signed distance, so edges are anti-aliased at any size and a box is that of the very pixels painted.

Shape legend: S side of the picture in pixels, N objects, h w rows and columns of an object's window.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from collimate_world.scene import BACKGROUNDS, COLOURS, VIEW, Scene, Thing, projection

Plane = Float32[np.ndarray, "h w"]

_REACH = 1.12  # no shape reaches further from its centre, in radii
_GRADIENT = 0.15  # by how much of its brightness the light changes from the middle of the view to its edge


class Picture:
    """A scene seen by the camera.

    Args:
        scene: what is seen.
        size: side in pixels.
    """

    def __init__(self, scene: Scene, size: int = 64) -> None:
        if size < 8:
            raise ValueError(f"A picture of the world is at least 8 pixels wide, not {size}.")
        self.scene, self.size = scene, size

    @cached_property
    def pixels(self) -> UInt8[np.ndarray, "S S 3"]:
        """RGB; row 0 is the top. Nearer objects hide those behind them."""
        canvas = np.empty((self.size, self.size, 3), np.float32)
        canvas[:] = BACKGROUNDS[self.scene.background]
        for i in self._far_to_near:
            window, alpha, u, v = self._silhouettes[i]
            thing, under = self.scene.things[i], canvas[window]
            paint = np.asarray(COLOURS[thing.colour], np.float32) * _TEXTURES[thing.texture](u, v)[..., None]
            under += alpha[..., None] * (paint - under)
        return (canvas * self._light()).astype(np.uint8)

    @cached_property
    def boxes(self) -> Float32[np.ndarray, "N 4"]:
        """x0, y0, x1, y1 in pixels, the far edges not included: of the pixels that each object more than half covers.

        What other objects hide counts as well.
        """
        return np.array([_box(silhouette) for silhouette in self._silhouettes], np.float32)

    @cached_property
    def masks(self) -> Bool[np.ndarray, "N S S"]:
        """The pixels that show each object: more than half covered by it, and not by a nearer one."""
        masks = np.zeros((len(self.scene.things), self.size, self.size), bool)
        for i in self._far_to_near:
            window, alpha, _, _ = self._silhouettes[i]
            masks[:, *window] &= alpha <= 0.5
            masks[i, *window] = alpha > 0.5
        return masks

    @cached_property
    def _silhouettes(self) -> list[_Silhouette]:
        return [_silhouette(thing, self.size) for thing in self.scene.things]

    @property
    def _far_to_near(self) -> list[int]:
        return sorted(range(len(self.scene.things)), key=lambda i: -self.scene.things[i].distance)

    def _light(self) -> Float32[np.ndarray, "S S 1"]:
        light, axis = self.scene.light, _axis(self.size) * (2 / VIEW)
        across, upwards = _GRADIENT * np.cos(light.direction), _GRADIENT * np.sin(light.direction)
        slope = (1 - _GRADIENT) + np.float32(across / 2) * axis[None, :] - np.float32(upwards / 2) * axis[:, None]
        return (np.float32(light.brightness) * slope)[..., None]


class _Silhouette(NamedTuple):
    window: tuple[slice, slice]  # rows, columns
    alpha: Plane  # the share of each pixel that the object covers
    u: Plane  # coordinates in radii of the object, along its own axes
    v: Plane


def _silhouette(thing: Thing, size: int) -> _Silhouette:
    x, z, radius = projection(thing)
    pixel = VIEW / size
    column, row = x / pixel + size / 2, size / 2 - z / pixel
    reach = _REACH * radius / pixel + 1
    rows, columns = _window(row, reach, size), _window(column, reach, size)
    axis = _axis(size)
    dx, dz = (
        (axis[None, columns] - np.float32(x)) / np.float32(radius),
        (-axis[rows, None] - np.float32(z)) / np.float32(radius),
    )
    cos, sin = np.float32(np.cos(thing.orientation)), np.float32(np.sin(thing.orientation))
    u, v = cos * dx + sin * dz, cos * dz - sin * dx
    distance = _SHAPES[thing.shape](u, v) * np.float32(radius / pixel)
    return _Silhouette((rows, columns), np.clip(0.5 - distance, 0, 1), u, v)


def _window(centre: float, reach: float, size: int) -> slice:
    return slice(max(0, int(centre - reach)), min(size, int(centre + reach) + 2))


def _box(silhouette: _Silhouette) -> tuple[int, int, int, int]:
    (rows, columns), alpha, _, _ = silhouette
    inside = alpha > min(0.5, alpha.max() / 2)  # a shape thinner than a pixel covers none by half
    y, x = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return columns.start + x[0], rows.start + y[0], columns.start + x[-1] + 1, rows.start + y[-1] + 1


@lru_cache
def _axis(size: int) -> Float32[np.ndarray, " S"]:
    """Metres from the middle of the view of each pixel's centre."""
    return (((np.arange(size) + 0.5) / size - 0.5) * VIEW).astype(np.float32)


# Shapes: signed distance from the outline in radii, negative inside; u to the right, v up ----------------------------


def _circle(u: Plane, v: Plane) -> Plane:
    return np.hypot(u, v) - 1


def _square(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - 0.77


def _triangle(u: Plane, v: Plane) -> Plane:
    return np.maximum(0.866025 * np.abs(u) + 0.5 * v, -v) - 0.52


def _star(u: Plane, v: Plane) -> Plane:
    """Five points; in each tenth of the circle the outline is one line, from a tip to a notch."""
    tenth = np.float32(np.pi / 5)
    angle = np.abs((np.arctan2(u, v) + tenth) % (2 * tenth) - tenth)  # 0 towards a tip
    length = np.hypot(u, v)
    notch = 0.42 * np.array([np.cos(tenth), np.sin(tenth)])
    nx, ny = notch[1], 1.06 - notch[0]
    scale = np.float32(1 / np.hypot(nx, ny))
    return (
        np.float32(nx) * (length * np.cos(angle) - np.float32(1.06)) + np.float32(ny) * length * np.sin(angle)
    ) * scale


def _cross(u: Plane, v: Plane) -> Plane:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(u, v) - 0.32, np.maximum(u, v) - 0.98)


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(np.hypot(u, v) - 0.76) - 0.24


def _heart(u: Plane, v: Plane) -> Plane:
    """A square on its corner, and a half circle on each of its upper sides."""
    half, u = 0.8, np.abs(u)
    lobe = np.hypot(u - half / 2, v - half / 2) - half * 0.707107
    return np.minimum((u + np.abs(v) - half) * 0.707107, lobe)


def _crescent(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.hypot(u, v) - 1, 0.82 - np.hypot(u - 0.5, v))


_SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
}


# Textures: the share of the colour that is left -------------------------------------------------------------------


def _plain(u: Plane, v: Plane) -> Plane:
    return np.ones_like(u)


def _striped(u: Plane, v: Plane) -> Plane:
    return 0.78 + 0.22 * np.sin(9 * u)


def _dotted(u: Plane, v: Plane) -> Plane:
    return 1 - 0.45 * (np.sin(8 * u) * np.sin(8 * v) > 0.3)


_TEXTURES: dict[str, Callable[[Plane, Plane], Plane]] = {"plain": _plain, "striped": _striped, "dotted": _dotted}
