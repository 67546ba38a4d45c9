"""What lies where in a picture, as data say it, and which of a sample's regions training reads.

The field `regions.json` of a sample is a list of objects, each in one of two forms, in pixels of the picture as it is
stored:

- `{"box": [x0, y0, x1, y1], "phrase": "a small red circle", "name": "red circle"}`: two corners, the far edges not
  included; the words for it; and, if it has one, the class;
- `{"bbox": [x, y, width, height], "category": "bear", "phrases": ["a bear", "the one on the left"]}`, as COCO writes a
  box. Of several phrases evaluation takes the first and training draws one.

With `"normalised": true` the numbers are shares of the picture's width and height instead. A table has the field in a
column `regions` or `boxes`. A method that reads regions says so in `Method.regions`; a recipe's `data.regions` replaces
its choice.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from collimate.configurable import Configurable
from collimate.data.decoding import Undecodable, check_text, decode_json

T = TypeVar("T")
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1: two corners, the far edges not included."""
Placement = tuple[float, float, float, float]
"""Scale and shift of a picture's x and y, as `ImageProcessor.placement` gives them."""

REGIONS = "regions.json"
LARGE = 32  # ours, in pixels: in a picture of more, a box within the first pixel of the corner is in other units


@dataclass(frozen=True)
class Region:
    """A box in a picture.

    Attributes:
        box: x0, y0, x1, y1 in pixels, the far edges not included.
        phrase: the words for what is in it.
        name: its class, or None.
        more: further words for the same. Training draws among all of them.
    """

    box: Box
    phrase: str
    name: str | None = None
    more: tuple[str, ...] = ()


def regions_of(value: Any, size: tuple[int, int] | None = None) -> list[Region]:
    """The regions of a decoded field; none for None. Boxes may reach beyond the picture, and may have no area.

    Args:
        value: what `regions.json` holds, or the same as a string.
        size: width and height of the picture. With it, normalised boxes become pixels, and boxes that cannot be of this
            picture are refused.

    Raises:
        Undecodable: it is in neither form, or a box is damaged; says which, what was expected, and what to do.
    """
    if isinstance(value, str):  # a cell of a CSV table
        value = decode_json(value.encode()) if value.strip() else None
    if value is None:
        return []
    if not isinstance(value, Sequence):
        raise Undecodable("regions are no list", f"expected a list of objects, got {str(value)[:40]!r}")
    return [_region(f"region {number}", each, size) for number, each in enumerate(value)]


def placed_box(box: Box, placement: Placement) -> Box:
    """Where a box comes to lie in the processed picture; it may reach beyond it."""
    scale_x, scale_y, shift_x, shift_y = placement
    x0, y0, x1, y1 = box
    return x0 * scale_x + shift_x, y0 * scale_y + shift_y, x1 * scale_x + shift_x, y1 * scale_y + shift_y


def clipped(box: Box, width: float, height: float) -> Box:
    """The part of a box that lies in the picture; without area where there is none."""
    x0, x1 = (min(max(x, 0.0), width) for x in box[::2])
    y0, y1 = (min(max(y, 0.0), height) for y in box[1::2])
    return x0, y0, x1, y1


def is_seen(box: Box) -> bool:
    """Whether a clipped box is at least a pixel wide and high."""
    return box[2] - box[0] >= 1 and box[3] - box[1] >= 1


class RegionChoice(Configurable):
    """What a batch holds of its samples' regions: up to M of each, drawn anew at every reading.

    It draws from Python's global generator.

    Args:
        max_regions: M; a sample with fewer regions gives all it has. CLOC's 4 unless given.

    Raises:
        ValueError: M is not positive.
    """

    def __init__(self, max_regions: int = 4) -> None:
        if max_regions < 1:
            raise ValueError(f"max_regions is at least 1, not {max_regions}.")
        self.max_regions = max_regions

    def __call__(self, regions: Sequence[T]) -> list[T]:
        """Up to M of them, none twice."""
        return random.sample(regions, min(self.max_regions, len(regions)))


# One region -----------------------------------------------------------------------------------------------------


def _region(which: str, each: Any, size: tuple[int, int] | None) -> Region:
    if not isinstance(each, Mapping) or not ("box" in each or "bbox" in each):
        raise Undecodable(
            "not a region",
            f"{which}: expected a box and a phrase or a name, or COCO's bbox and category; got {str(each)[:80]}",
        )
    name = each.get("name", each.get("category"))
    name = None if name is None else str(name)
    phrases = [each["phrase"]] if each.get("phrase") else list(each.get("phrases") or [name])
    if not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
        raise Undecodable(
            "region without phrase",
            f"{which}: a region has a phrase, or a name or category to stand for it; got {str(each)[:80]}",
        )
    box = _corners(which, each)
    if each.get("normalised", each.get("normalized")):
        box = _pixels(which, box, size)
    elif size is not None:
        _check_units(which, box, size)
    if size is not None:
        _check_place(which, box, size)
    first, *more = (check_text(str(phrase)) for phrase in phrases)
    return Region(box, first, name, tuple(more))


def _corners(which: str, each: Mapping[str, Any]) -> Box:
    """The box as two corners, in whatever unit it is."""
    form = "box" if "box" in each else "bbox"
    try:
        a, b, c, d = map(float, each[form])
    except (OverflowError, TypeError, ValueError):
        a = b = c = d = math.nan
    if not all(map(math.isfinite, (a, b, c, d))):
        raise Undecodable("box is no four numbers", f"{which}: {form} is {str(each[form])[:80]}")
    box = (a, b, c, d) if form == "box" else (a, b, a + c, b + d)
    if box[2] < box[0] or box[3] < box[1]:
        expected = "[x0, y0, x1, y1] with x0 <= x1 and y0 <= y1" if form == "box" else "[x, y, width, height]"
        raise Undecodable(
            "inverted box",
            f"{which}: expected {expected}, got {each[form]}; sort the corners, or write a corner with width and "
            "height as `bbox`",
        )
    return box


def _pixels(which: str, box: Box, size: tuple[int, int] | None) -> Box:
    if size is None:
        raise Undecodable("normalised box", f"{which}: it needs the picture's size, which is not known here")
    if min(box) < -1 or max(box) > 2:  # detectors may reach a little beyond the edge, never by a whole picture
        raise Undecodable(
            "normalised box in pixels",
            f"{which}: expected shares of the picture, 0 to 1, got {list(box)}; leave `normalised` out for pixels",
        )
    width, height = size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def _check_units(which: str, box: Box, size: tuple[int, int]) -> None:
    if 0 < max(box) <= 1 and min(size) > LARGE:
        raise Undecodable(
            "box not in pixels",
            f"{which}: {list(box)} is within a pixel of the corner of a picture of {size[0]} x {size[1]}; expected "
            'pixels: if these are shares of it, say `"normalised": true`',
        )


def _check_place(which: str, box: Box, size: tuple[int, int]) -> None:
    width, height = size
    has_area = box[0] < box[2] and box[1] < box[3]
    if has_area and not (box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0):
        raise Undecodable(
            "box outside the picture",
            f"{which}: {list(box)} lies outside of {width} x {height} pixels; is it of another size of the picture?",
        )
