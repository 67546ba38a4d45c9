"""The supervised contrastive loss (Khosla et al. 2020, SupCon, arXiv 2004.11362, equation 2: L_out).

Shape legend: B samples of this rank, S samples of all ranks, V views, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from collimate import distributed
from collimate.distributed import Group
from collimate.losses.composition import composed
from collimate.losses.negatives import Distinct
from collimate.losses.softmax import info_nce
from collimate.losses.targets import Blend, Paired, SharedLabels, Targets, Weights


@composed(
    similarity="cosine",
    targets="other views of its sample and label; weights of pairs",
    negatives="all views of all others of all ranks",
)
def supcon_loss(
    features: Float[Tensor, "B V D"],
    labels: Int[Tensor, " B"] | None = None,
    *,
    pair_weights: Float[Tensor, "B S"] | None = None,
    temperature: Tensor | float = 0.07,
    base_temperature: Tensor | float | None = None,
    anchors: Literal["all", "first"] = "all",
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Contrast every view with all other views; positives are the other views of its sample and of its label.

    Args:
        features: V views of each sample.
        labels: positives share a label. Without labels and weights only views of one sample do (SimCLR).
        pair_weights: instead of labels, weights >= 0 of this rank's samples with those of all ranks, row = anchor;
            need not be symmetric. The loss of an anchor is its weighted mean over positives.
        temperature: 0.07 as published.
        base_temperature: the loss is multiplied by temperature / base_temperature; None for 1 (the official code's
            default of 0.07 only rescales).
        anchors: the views that are anchors; "first" is `contrast_mode="one"` of the official code.

    Returns:
        the mean over anchors of all ranks; an anchor without a positive contributes 0 and is counted.

    Raises:
        ValueError: features without a dimension of views, or both labels and weights.
    """
    if features.ndim != 3:
        raise ValueError(f"Features are (samples, views, width); got {tuple(features.shape)}. One view: unsqueeze(1).")
    if labels is not None and pair_weights is not None:
        raise ValueError("Give labels or pair_weights, not both.")
    views = features.shape[1]
    keys = features.flatten(0, 1)
    anchor_views = views if anchors == "all" else 1
    counts = distributed.row_counts(keys, group)
    ids = torch.arange(sum(counts), device=keys.device)
    own_keys = ids[distributed.own(counts, group)].view(-1, views)[:, :anchor_views].flatten()
    relation: Targets = Paired()
    if labels is not None:
        relation = SharedLabels(labels, labels)
    elif pair_weights is not None:
        relation = Weights(pair_weights)
    loss = info_nce(
        features[:, :anchor_views].flatten(0, 1),
        keys,
        1 / temperature,
        targets=_OtherViews(relation, views, own_keys),
        mask=Distinct(own_keys, ids, own=None),
        normalize=normalize,
        group=group,
    )
    return loss if base_temperature is None else loss * (temperature / base_temperature)


@dataclass(frozen=True)
class _OtherViews(Targets):
    """A relation between samples, of which each view takes part but the anchor itself."""

    samples: Targets
    views: int
    own_keys: Int[Tensor, " anchors"]

    def blend(self, keys: Float[Tensor, "M D"], counts: tuple[int, ...], group: Group = None) -> Blend:
        sample_counts = tuple(count // self.views for count in counts)
        summed, mass = self.samples.blend(keys.unflatten(0, (-1, self.views)).sum(1), sample_counts, group)
        own = (
            self.samples.rows.to(keys.dtype)[:, distributed.own(sample_counts, group)].diagonal()
            if isinstance(self.samples, Weights)
            else torch.ones_like(mass)
        )
        anchor_views = self.own_keys.shape[0] // max(mass.shape[0], 1)
        summed, mass, own = (v.repeat_interleave(anchor_views, 0) for v in (summed, mass, own))
        return summed - own[:, None] * keys[self.own_keys], mass * self.views - own

    def flipped(self) -> Targets:
        raise NotImplementedError("The supervised contrastive loss has one direction.")
