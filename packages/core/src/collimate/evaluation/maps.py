"""Maps of texts over pictures: what a method gives, and what they are worth.

A method is localized by a map: a number for each token of a picture and each text, larger where the token fits the text
better. A method that has a map of its own defines

    localization_map(image: Encoding, text: Encoding) -> (N, T, L)

with the N pictures and T texts as its `encode` gives them and the L tokens of a picture, those in front of its grid
(`Encoding.prefix`) left out; only differences within one picture and text count. For any other method, the map is the
cosine of each token with the text (`localization_map` below), which needs tokens in the joint space, such as
`Projection.project` makes. A tower that pools the mean of its tokens is trained to have such; the tokens of one that
pools a class token were never compared with a text.

*Pointing game* (Zhang et al. 2018, arXiv 1608.00507, section 4.1): a phrase is found if the maximum of its map, the
middle of one cell, lies inside one of its boxes. Departure: no margin of 15 pixels round the boxes. Chance is the share
of the picture that the boxes take. Beside it, the share of the map's mass that lies inside the boxes, the map's minimum
counting as 0: its chance is the same.

*Segmentation by similarity*: the maps of all classes, enlarged to the picture bilinearly; each pixel takes the best
class. Only pixels whose class is known are counted; there is no class for the background (as in the 20-class form of
PASCAL VOC). `miou` is the mean, over the classes that occur, of the intersection over the union in all pictures.

Shape legend: N pictures, T texts, C classes, P phrases, B boxes, L tokens of a picture, h w their grid, H W pixels of
the processed picture, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize

from collimate.encoding import Encoding
from collimate.evaluation.bootstrap import Statistic
from collimate.evaluation.features import is_cosine
from collimate.evaluation.regions import inside
from collimate.training import Method

CLASSES_AT_A_TIME = 32  # maps enlarged to the picture at a time


# The map ----------------------------------------------------------------------------------------------------------


@runtime_checkable
class Localizer(Protocol):
    """A method with a map of its own."""

    def localization_map(self, image: Encoding, text: Encoding) -> Float[Tensor, "N T L"]:
        """How well each token on the grid of each picture fits each text; larger is better, on any scale.

        Args:
            image: N pictures.
            text: T texts. Their mask leaves start and end tokens out.
        """
        ...


def localization_map(method: Method, image: Encoding, text: Encoding) -> Float[Tensor, "N T L"]:
    """How well each token of each picture fits each text: by the method's own map, or by cosines.

    Where the method ranks by the cosine of pooled vectors, it is that of the token with the text's pooled vector. Where
    it has another score, as late interaction, it is the mean of those with the text's words: every word counts, so that
    texts that share some are told apart.

    Raises:
        ValueError: there are no tokens, or they are not in the space of the texts.
    """
    if image.tokens is None:
        raise ValueError(f"{type(method).__name__} gives no tokens of a picture: there is nothing to localize by.")
    if isinstance(method, Localizer):
        return method.localization_map(image, text)
    if is_cosine(method) or text.tokens is None:
        wanted = normalize(text.pooled.float(), dim=-1)
    else:  # the mean of cosines with unit vectors is the product with their mean
        words = normalize(text.tokens.float(), dim=-1) * text.token_mask[..., None]
        wanted = words.sum(1) / text.token_mask.sum(1, keepdim=True).clamp_min(1)
    if image.tokens.shape[2] != wanted.shape[1]:
        raise ValueError(
            f"The tokens of a picture have width {image.tokens.shape[2]}, texts {wanted.shape[1]}: they are not in one "
            f"space, so {type(method).__name__} needs a `localization_map` of its own."
        )
    return torch.einsum("nld,td->ntl", normalize(image.tokens[:, image.prefix :].float(), dim=-1), wanted)


# What is counted --------------------------------------------------------------------------------------------------


def point(scores: Float[Tensor, "h w"], boxes: Float[Tensor, "B 4"], height: int, width: int) -> Point:
    """Whether a map's maximum, and how much of its mass, lies inside any of some boxes.

    Args:
        scores: the map. Of equal maxima the first counts; where all are equal, the mass is spread evenly.
        boxes: x0, y0, x1, y1 in pixels of the processed picture.
        height, width: of that picture.
    """
    within = inside(boxes, height, width).float()
    cells = (scores.shape[0], scores.shape[1])
    share = adaptive_avg_pool2d(within[None, None], cells)[0, 0]  # of each cell that is inside
    weights = scores - scores.min()
    weights = weights if weights.sum() > 0 else torch.ones_like(weights)
    row, column = divmod(int(scores.argmax()), scores.shape[1])
    x, y = int((column + 0.5) * width / scores.shape[1]), int((row + 0.5) * height / scores.shape[0])
    return Point(bool(within[y, x]), float((weights * share).sum() / weights.sum()), float(within.mean()), (x, y))


class Point(NamedTuple):
    """What `point` finds.

    Attributes:
        hit: whether the maximum lies inside.
        mass: the share of the map's mass that lies inside.
        area: the share of the picture that the boxes take.
        at: x and y of the maximum in pixels.
    """

    hit: bool
    mass: float
    area: float
    at: tuple[int, int]


def pointing_statistic(points: Sequence[Point]) -> Statistic:
    """Pointing as a function of the weights of phrases.

    Returns:
        `pointing_accuracy`; `mass_inside`; `area_share`, which is the chance of both; and by how much each is above it.
    """
    hits, masses, areas = (torch.tensor(values, dtype=torch.float32) for values in list(zip(*points, strict=True))[:3])

    def statistic(weights: Float[Tensor, "R P"]) -> dict[str, Tensor]:
        accuracy, mass, chance = (weights @ values / weights.sum(1) for values in (hits, masses, areas))
        return {
            "pointing_accuracy": accuracy,
            "mass_inside": mass,
            "area_share": chance,
            "pointing_above_chance": accuracy - chance,
            "mass_above_chance": mass - chance,
        }

    return statistic


def pixel_counts(predicted: Int64[Tensor, "H W"], truth: Int64[Tensor, "H W"], classes: int) -> Int64[Tensor, "3 C"]:
    """For each class: pixels that are of it and found to be, found to be, and of it.

    Args:
        predicted: the best class of each pixel.
        truth: the class of each pixel, -1 where it is not known: such pixels are not counted.
        classes: C.
    """
    known = truth >= 0
    predicted, truth = predicted[known], truth[known]
    both = truth[predicted == truth]
    return torch.stack([values.bincount(minlength=classes) for values in (both, predicted, truth)])


def segmentation_statistic(counts: Int64[Tensor, "N 3 C"]) -> Statistic:
    """Segmentation as a function of the weights of pictures.

    Args:
        counts: of `pixel_counts`.

    Returns:
        `miou`, the mean over the classes that occur; `miou_chance`, that of uniformly random answers, with numerators
        and denominators as they are on average; `pixel_accuracy`.
    """

    def statistic(weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
        both, predicted, truth = torch.einsum("rn,nkc->krc", weights.double(), counts.double())
        occurs, pixels, classes = truth > 0, truth.sum(1, keepdim=True), truth.shape[1]
        ious = both / (predicted + truth - both)
        chances = truth / (pixels + truth * (classes - 1))  # (t/C) / (P/C + t - t/C)
        return {
            "miou": ious.where(occurs, torch.nan).nanmean(1),
            "miou_chance": chances.where(occurs, torch.nan).nanmean(1),
            "pixel_accuracy": both.sum(1) / pixels[:, 0],
        }

    return statistic


def best_class(maps: Float[Tensor, "C h w"], height: int, width: int) -> Int64[Tensor, "H W"]:
    """The class of the largest map at each pixel, the maps enlarged bilinearly; of equal ones, the first."""
    best, found = torch.full((height, width), -torch.inf), torch.zeros(height, width, dtype=torch.int64)
    for first in range(0, len(maps), CLASSES_AT_A_TIME):
        some = interpolate(maps[None, first : first + CLASSES_AT_A_TIME], (height, width), mode="bilinear")[0]
        value, number = some.max(0)
        found = torch.where(value > best, number + first, found)
        best = torch.maximum(best, value)
    return found
