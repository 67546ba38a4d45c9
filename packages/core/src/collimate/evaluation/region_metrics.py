"""Metrics of regions: retrieval, the choice among a picture's boxes, found boxes; as functions of regions' weights.

*Retrieval* is that of CLOC (arXiv 2410.02746, section 5): the regions of all pictures and their texts look for each
other. As phrases repeat, a text counts as found if any of the same words is near enough, and a region if any of the
same words is; `strict/...` counts only the region's own text, and the text's own region. Of equal scores the first is
best.

*Referring*: of the boxes of a picture, the one whose vector is nearest to a phrase. It is right if it bears the phrase.
One that all boxes of a picture bear is not asked.

*Grounding*: the overlap of the box that a method finds for a phrase with the phrase's own. What is always there to be
beaten is one box for all, the mean of the true ones.

Shape legend: N regions, M boxes of a picture, P phrases asked, R resamples, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from collimate.evaluation.bootstrap import Statistic
from collimate.evaluation.metrics import RECALLS, ranks

GOOD_OVERLAP = 0.5  # of intersection and union, from which a box counts as found: PASCAL VOC's


class RegionRanks(NamedTuple):
    """The rank, from 0, of each region's best text, and of each text's best region."""

    of_text: Int64[Tensor, " N"]
    of_region: Int64[Tensor, " N"]


def region_ranks(region: Float[Tensor, "N D"], text: Float[Tensor, "N D"], answers: Int64[Tensor, " N"]) -> RegionRanks:
    """Rank the texts of all regions by each region, and all regions by each text.

    Args:
        region, text: vectors, not normalised; region i is of text i.
        answers: what is of equal number answers each other: the number of the phrase, or, strictly, of the region.
    """
    region, text = normalize(region.float(), dim=-1), normalize(text.float(), dim=-1)
    return RegionRanks(
        ranks(lambda rows, columns: region[rows] @ text[columns].T, answers, answers),
        ranks(lambda rows, columns: text[rows] @ region[columns].T, answers, answers),
    )


def region_retrieval_statistic(
    by_phrase: RegionRanks, strictly: RegionRanks, recalls: Sequence[int] = RECALLS
) -> Statistic:
    """Recalls in both directions as a function of the weights of regions; the candidates stay what they are."""
    named = {
        "region_to_text": by_phrase.of_text,
        "text_to_region": by_phrase.of_region,
        "strict/region_to_text": strictly.of_text,
        "strict/text_to_region": strictly.of_region,
    }

    def statistic(weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
        total = weights.sum(1)
        return {
            f"{name}_recall@{k}": weights @ (rank < k).float() / total for name, rank in named.items() for k in recalls
        }

    return statistic


class Choice(NamedTuple):
    """A phrase asked among the boxes of a picture.

    Attributes:
        phrase: the number of the phrase among those of the boxes.
        chosen: the number of the box.
        hit: whether it bears the phrase.
        chance: the share of the boxes that do.
    """

    phrase: int
    chosen: int
    hit: bool
    chance: float


def referred(region: Float[Tensor, "M D"], text: Float[Tensor, "M D"], phrases: Sequence[str]) -> list[Choice]:
    """Which box of a picture each of its phrases chooses.

    Args:
        region, text: vectors of the boxes, and of the phrase of each; not normalised.
        phrases: of the boxes.
    """
    scores = normalize(text.float(), dim=-1) @ normalize(region.float(), dim=-1).T
    found = []
    for phrase in dict.fromkeys(phrases):
        share = phrases.count(phrase) / len(phrases)
        if share < 1:
            asked = phrases.index(phrase)
            chosen = int(scores[asked].argmax())
            found.append(Choice(asked, chosen, phrases[chosen] == phrase, share))
    return found


def referring_statistic(choices: Sequence[Choice]) -> Statistic:
    """`referring_accuracy` and its chance as a function of the weights of phrases."""
    hits, chances = (torch.tensor([float(getattr(one, name)) for one in choices]) for name in ("hit", "chance"))

    def statistic(weights: Float[Tensor, "R P"]) -> dict[str, Tensor]:
        total = weights.sum(1)
        return {"referring_accuracy": weights @ hits / total, "referring_chance": weights @ chances / total}

    return statistic


def overlap(found: Float[Tensor, "P 4"], boxes: Float[Tensor, "P 4"]) -> Float[Tensor, " P"]:
    """Intersection over union of each found box with its own; 0 for a box without area."""
    corner = torch.maximum(found[:, :2], boxes[:, :2])
    shared = (torch.minimum(found[:, 2:], boxes[:, 2:]) - corner).clamp_min(0).prod(1)
    areas = [(each[:, 2:] - each[:, :2]).clamp_min(0).prod(1) for each in (found, boxes)]
    return shared / (areas[0] + areas[1] - shared).clamp_min(torch.finfo(shared.dtype).tiny)


def grounding_statistic(found: Float[Tensor, "P 4"], boxes: Float[Tensor, "P 4"]) -> Statistic:
    """Overlap, and that of the mean box, as a function of the weights of phrases."""
    overlaps = overlap(found, boxes)
    of_mean = overlap(boxes.mean(0).expand_as(boxes), boxes)
    good, good_of_mean = ((each >= GOOD_OVERLAP).float() for each in (overlaps, of_mean))
    named = {
        "grounding_iou": overlaps,
        f"grounding_accuracy@{GOOD_OVERLAP}": good,
        "grounding_iou_of_mean_box": of_mean,
        f"grounding_accuracy@{GOOD_OVERLAP}_of_mean_box": good_of_mean,
    }

    def statistic(weights: Float[Tensor, "R P"]) -> dict[str, Tensor]:
        return {name: weights @ values / weights.sum(1) for name, values in named.items()}

    return statistic
