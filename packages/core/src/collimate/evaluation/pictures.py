"""Pictures of reports: what a method sees, laid over what it saw.

Shape legend: H W pixels of the processed picture, h w cells of a grid, N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

SIDE = 320  # pixels of the shorter side of what is drawn
LEGEND = 8  # classes that a legend names
Boxes = Sequence[Sequence[float]]
_GREEN, _RED = (72, 214, 120), (240, 84, 74)
_HEAT = colormaps["inferno"]
_WHEEL = [tuple(round(255 * part) for part in colormaps["tab10"](number)[:3]) for number in (0, 1, 2, 3, 4, 5, 6, 8, 9)]


def canvas(processed: Shaped[Tensor, "3 H W"]) -> Image.Image:
    """What a processor made of a picture, large enough to draw on. Values that are no bytes are stretched to them."""
    pixels = processed.float()
    if processed.dtype != torch.uint8:
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp_min(1e-12) * 255
    picture = Image.fromarray(pixels.byte().expand(3, -1, -1).permute(1, 2, 0).numpy())
    return picture.resize(_enlarged(picture), Image.Resampling.BICUBIC)


def heat(
    picture: Image.Image,
    scores: Float[Tensor, "h w"],
    boxes: Float[Tensor, "N 4"],
    size: tuple[int, int],
    at: tuple[int, int],
) -> Image.Image:
    """A map as warm colours over the picture, with boxes and a cross.

    Args:
        picture: a canvas.
        scores: the map, stretched from its minimum to its maximum.
        boxes: in pixels of the processed picture.
        size: height and width of that.
        at: where the cross goes, x and y in its pixels.
    """
    fit = (picture.height, picture.width)
    values = interpolate(scores[None, None].float(), fit, mode="bilinear")[0, 0]
    values = ((values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)).numpy()
    colours = 255 * _HEAT(values)[..., :3]
    strength = (0.1 + 0.62 * values)[..., None]
    grey = np.asarray(picture, np.float32) @ np.array([0.3, 0.59, 0.11], np.float32)
    under = 0.35 * grey[..., None] + 0.65 * np.asarray(picture, np.float32)
    found = Image.fromarray((under + strength * (colours - under)).astype(np.uint8))
    draw = ImageDraw.Draw(found)
    across, down = picture.width / size[1], picture.height / size[0]
    for x0, y0, x1, y1 in boxes.tolist():
        right, bottom = min(x1 * across, picture.width - 3), min(y1 * down, picture.height - 3)
        corners = (max(x0 * across, 2), max(y0 * down, 2), right, bottom)
        if corners[0] < corners[2] and corners[1] < corners[3]:
            for width, colour in ((6, (0, 0, 0)), (2, (255, 255, 255))):
                draw.rectangle(_grown(corners, (width - 2) / 2), outline=colour, width=width)
    x, y, arm = (at[0] + 0.5) * across, (at[1] + 0.5) * down, 0.03 * picture.width
    for width, colour in ((7, (0, 0, 0)), (3, (80, 255, 160))):
        draw.line((x - arm, y - arm, x + arm, y + arm), fill=colour, width=width)
        draw.line((x - arm, y + arm, x + arm, y - arm), fill=colour, width=width)
    return found


def boxed(picture: Image.Image, chosen: Boxes, own: Boxes, others: Boxes, right: bool) -> Image.Image:
    """A picture with boxes: what was chosen, green if it is right and red if not; what was meant, dashed; and the rest.

    Args:
        picture: a canvas.
        chosen, own, others: x0, y0, x1, y1 as shares of the picture.
        right: whether the choice is.
    """
    found = picture.copy()
    draw = ImageDraw.Draw(found)
    for boxes, colour, width in ((others, (235, 235, 235), 1), (chosen, _GREEN if right else _RED, 4)):
        for box in boxes:
            if corners := _corners(box, picture):
                draw.rectangle(_grown(corners, 1), outline=(0, 0, 0), width=width + 2)
                draw.rectangle(corners, outline=colour, width=width)
    for box in own:
        if corners := _corners(box, picture):
            _dashed(draw, corners)
    return found


def segmented(
    picture: Image.Image, truth: Int64[Tensor, "H W"], predicted: Int64[Tensor, "H W"], names: Sequence[str]
) -> Image.Image:
    """The picture, its classes and those that were found, side by side, above a legend of the commonest.

    Args:
        picture: a canvas.
        truth, predicted: the class of each pixel, -1 where none is known: left as it is.
        names: of the classes.
    """
    both = torch.cat([truth.flatten(), predicted.flatten()])
    common = both[both >= 0].bincount(minlength=len(names)).argsort(descending=True, stable=True).tolist()
    shown = [number for number in common if (both == number).any()]
    colours = {number: _WHEEL[place % len(_WHEEL)] for place, number in enumerate(shown)}
    panels = [picture, *(_painted(picture, labels, colours) for labels in (truth, predicted))]
    gap, line = 8, 40
    wide = 3 * picture.width + 2 * gap
    font, x, y, marks = _font(28), 0.0, picture.height + 12, []
    for number in shown[:LEGEND]:
        length = 36 + font.getlength(str(names[number])) + 26
        if x and x + length > wide:
            x, y = 0.0, y + line
        marks.append((x, y, number))
        x += length
    sheet = Image.new("RGB", (wide, int(y + line)), (250, 250, 250))
    for place, panel in enumerate(panels):
        sheet.paste(panel, (place * (picture.width + gap), 0))
    draw = ImageDraw.Draw(sheet)
    for x, y, number in marks:
        draw.rounded_rectangle((x + 2, y + 4, x + 28, y + 30), 6, fill=colours[number])
        draw.text((x + 36, y + 17), str(names[number]), fill=(40, 45, 55), font=font, anchor="lm")
    return sheet


def worded(picture: Image.Image, chosen: Int64[Tensor, "h w"], words: Sequence[str]) -> Image.Image:
    """The word that fits each cell best, over the cell; one that is empty leaves it dim.

    Args:
        picture: a canvas.
        chosen: the word's number.
        words: what is written.
    """
    picture = picture.resize((picture.width * 3 // 2, picture.height * 3 // 2), Image.Resampling.BICUBIC)
    used = [number for number in chosen.unique().tolist() if words[number]]
    colours = {number: _WHEEL[place % len(_WHEEL)] for place, number in enumerate(used)}
    found = _painted(picture, torch.where(torch.isin(chosen, torch.tensor(used)), chosen, -1), colours, 0.5, 0.45)
    draw = ImageDraw.Draw(found)
    rows, columns = chosen.shape
    wide, high = picture.width / columns, picture.height / rows
    for row in range(rows):
        for column in range(columns):
            word = words[int(chosen[row, column])]
            if word:
                size = min(0.36 * high, 15 * 0.82 * wide / max(_font(15).getlength(word), 1))
                middle, font = ((column + 0.5) * wide, (row + 0.5) * high), _font(max(7, int(size)))
                draw.text(middle, word, (255, 255, 255), font, "mm", stroke_width=1, stroke_fill=(0, 0, 0))
    return found


def _painted(
    picture: Image.Image, labels: Int64[Tensor, "H W"], colours: dict[int, Any], strength: float = 0.6, dim: float = 0.6
) -> Image.Image:
    """Colours over the cells that have one; the others are dimmed."""
    rows = torch.arange(picture.height) * labels.shape[0] // picture.height
    columns = torch.arange(picture.width) * labels.shape[1] // picture.width
    large = labels[rows][:, columns].numpy()
    under = np.asarray(picture, np.float32)
    found = dim * under
    for number, colour in colours.items():
        own = large == number
        found[own] = (1 - strength) * under[own] + strength * np.array(colour, np.float32)
    return Image.fromarray(found.astype(np.uint8))


def _corners(box: Sequence[float], picture: Image.Image) -> tuple[float, float, float, float] | None:
    """A box of shares in the canvas' pixels, so far inside that its outline is seen; None where it has no area."""
    sides, edge = (picture.width, picture.height), 3
    x0, y0, x1, y1 = (min(max(share * sides[at % 2], edge), sides[at % 2] - 1 - edge) for at, share in enumerate(box))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _dashed(draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], dash: int = 9) -> None:
    x0, y0, x1, y1 = corners
    for start, end in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        steps = max(1, round(length / dash))
        points = [
            tuple(a + (b - a) * step / steps for a, b in zip(start, end, strict=True)) for step in range(steps + 1)
        ]
        for number, (one, other) in enumerate(pairwise(points)):
            draw.line((*one, *other), fill=(255, 255, 255) if number % 2 else (0, 0, 0), width=3)


def _enlarged(picture: Image.Image) -> tuple[int, int]:
    scale = SIDE / min(picture.size)
    return round(picture.width * scale), round(picture.height * scale)


def _grown(corners: tuple[float, ...], by: float) -> tuple[float, ...]:
    return corners[0] - by, corners[1] - by, corners[2] + by, corners[3] + by


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which knows more letters than Pillow's."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
