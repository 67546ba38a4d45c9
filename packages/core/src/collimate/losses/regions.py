"""Regions and the texts for them: the contrast that leaves out similar texts, and where a text's box is found.

CLOC (Chen et al. 2025, arXiv 2410.02746, section 3, equations 2 to 4). With the vectors z of all R regions of all ranks
and t of their texts, as unit vectors, and a multiplier s,

    L_R->T = 1/R Σ_r -log [ exp(s z_r t_r) / Σ_{q in K_r} exp(s z_r t_q) ],    K_r = {r} and all q with t_r t_q <= 0.9,
    L_T->R likewise with the roles exchanged,                                  L_CLOC = (L_R->T + L_T->R) / 2,
    L_g = 1/(4 R) Σ_r || l_r - l'_r ||²,     l the box of a region and l' the one that is found for its text;

    λ = the share of the images that have a region,                            added to the loss: λ (L_CLOC + L_g).

K is symmetric, so that one mask serves both directions; no gradient runs through it. Regions are rows of their own,
without padding, so that every mean runs over the regions that exist: ranks may hold any number of them, and none.

Shape legend: n regions of this rank, N of all ranks in rank order, B images of this rank, M regions an image, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize as to_unit

from collimate import distributed
from collimate.distributed import Group
from collimate.kernels.tiles import own_cells
from collimate.losses.softmax import global_mean, symmetric_info_nce

SIMILAR = 0.9  # CLOC, section 3
ROWS = 1024  # of the mask, where it is counted: 16 MiB of cosines at 4096 regions


class RegionLosses(NamedTuple):
    """λ L_CLOC and λ L_g; the second is None where no boxes were looked for."""

    region_text: Float[Tensor, ""]
    grounding: Float[Tensor, ""] | None


def region_losses(
    region: Float[Tensor, "B M D"],
    text: Float[Tensor, "B M D"],
    given: Bool[Tensor, "B M"],
    logit_scale: Float[Tensor, ""] | float,
    found: Float[Tensor, "B M 4"] | None = None,
    boxes: Float[Tensor, "B M 4"] | None = None,
    similar: float | None = SIMILAR,
    group: Group = None,
) -> RegionLosses:
    """What a batch's regions add to its loss.

    Args:
        region, text: this rank's features, normalised inside.
        given: which rows are regions; the others have no effect, and gradients of 0.
        logit_scale: the multiplier s of the cosines, not its logarithm.
        found, boxes: the boxes that are found for the texts, and the true ones.
        similar, group: as of `region_text_loss`.
    """
    share = share_with_regions(given, group)
    contrast = region_text_loss(region[given], text[given], logit_scale, similar, group=group)
    if found is None or boxes is None:
        return RegionLosses(share * contrast, None)
    return RegionLosses(share * contrast, share * box_loss(found[given], boxes[given], group))


def region_text_loss(
    region: Float[Tensor, "n D"],
    text: Float[Tensor, "n D"],
    logit_scale: Float[Tensor, ""] | float,
    similar: float | None = SIMILAR,
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, ""]:
    """L_CLOC: each region against the texts of all regions, those of its own image among them, and the other way round.

    Args:
        region, text: this rank's features, any floating dtype; region i is of text i.
        logit_scale: the multiplier s of the cosines, not its logarithm.
        similar: two regions whose texts have a cosine above it are no negatives of each other; None lets all be.
        normalize: whether to bring the features to unit length for the contrast; to compare texts they always are.
        group: the ranks that contrast with each other.

    Returns:
        the loss, float32 (float64 for float64 features); an exact 0 with gradients of 0 where no rank has a region.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    keep = None if similar is None else different_texts(text, similar, group)
    return symmetric_info_nce(region, text, logit_scale, mask=keep, normalize=normalize, group=group)


def box_loss(found: Float[Tensor, "n 4"], boxes: Float[Tensor, "n 4"], group: Group = None) -> Float[Tensor, ""]:
    """L_g: the mean squared error over the coordinates of the regions of all ranks; 0 where there are none.

    Args:
        found, boxes: x0, y0, x1, y1, in the same unit; the gradient runs through either.

    Raises:
        ValueError: they are not of the same regions.
    """
    if found.shape != boxes.shape or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"Boxes are (regions, 4); got {tuple(found.shape)} and {tuple(boxes.shape)}.")
    return global_mean((found - boxes).square().mean(1), None, group)


@torch.no_grad()
def share_with_regions(given: Bool[Tensor, "B M"], group: Group = None) -> Float[Tensor, ""]:
    """λ: the share of the images of all ranks that have a region; the same on every rank.

    Args:
        given: whether each of an image's rows is a region.
    """
    counts = torch.stack([given.any(1).sum(), torch.tensor(len(given), device=given.device)])
    having, images = distributed.all_sum(counts, group).unbind()
    return having / images.clamp_min(1)


@torch.no_grad()
def kept_share(text: Float[Tensor, "n D"], similar: float = SIMILAR) -> Float[Tensor, ""]:
    """The share of the pairs of this rank's own regions that are negatives of each other; NaN where there is no pair.

    Class names as texts repeat so often that few are left.
    """
    keep, size = different_texts(text, similar, distributed.LOCAL), len(text)
    kept = torch.zeros((), device=text.device)
    for first in range(0, size, ROWS):
        kept += keep(slice(first, min(first + ROWS, size)), slice(0, size)).sum()
    return (kept - size) / (size * (size - 1))


@dataclass(frozen=True)
class DifferentTexts:
    """A mask of negatives, made tile by tile: pairs whose texts are too similar are dropped, but for a region's own.

    Attributes:
        query_texts, key_texts: unit vectors of this rank's texts and of those of all ranks.
        similar: the largest cosine of two texts that are different.
        own: the first of this rank's own texts.
    """

    query_texts: Float[Tensor, "n D"]
    key_texts: Float[Tensor, "N D"]
    similar: float
    own: int

    def __call__(self, rows: slice, columns: slice) -> Bool[Tensor, "rows columns"]:
        kept = self.query_texts[rows] @ self.key_texts[columns].T <= self.similar
        own_cells(kept, rows, columns, self.own)[0].fill_(True)
        return kept


@torch.no_grad()
def different_texts(text: Float[Tensor, "n D"], similar: float, group: Group = None) -> DifferentTexts:
    """The mask of regions whose texts differ, of this rank's regions with those of all ranks."""
    text = to_unit(text.detach().to(torch.promote_types(text.dtype, torch.float32)), dim=-1)
    counts = distributed.row_counts(text, group)
    return DifferentTexts(text, distributed.gather(text, group, counts), similar, distributed.own(counts, group).start)
