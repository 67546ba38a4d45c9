"""How well scores rank the samples that have a label above those that have not, for hundreds of resamples at once.

With the weights w_i of samples, the positives P and negatives N of a label, and the samples s_i of scores,

    AUROC = sum_{i in P, j in N} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / (w(P) w(N)),

    AP = sum_v (recall at v - recall at the next larger value) * precision at v,    v the values of the scores,

as scikit-learn has them: equal scores are one threshold. Samples whose label is not known (NaN) take no part.

Scores are sorted once a label. Only those thresholds matter at which a positive lies, so that a resample costs one
addition a sample, into the segment between two such thresholds, and sums over the segments.

Shape legend: N samples, C labels, R resamples, S segments, T thresholds at which positives lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from collimate.evaluation.bootstrap import Statistic

AT_A_TIME = 64  # resamples: their sums over segments stay in the cache


class Areas(NamedTuple):
    """Of each resample; NaN where it holds no positive, the first also where it holds no negative."""

    auroc: Float[Tensor, " R"]
    average_precision: Float[Tensor, " R"]


class LabelRanking:
    """The scores of one label, sorted.

    Args:
        scores: larger is likelier; none is NaN.
        labels: 0 or 1, or NaN where it is not known.

    Raises:
        ValueError: the shapes differ, a label is something else, or the score of a known sample is NaN.
    """

    def __init__(self, scores: Float[Tensor, " N"], labels: Shaped[Tensor, " N"]) -> None:
        if scores.shape != labels.shape or scores.ndim != 1:
            raise ValueError(f"The scores are {tuple(scores.shape)}, the labels {tuple(labels.shape)}.")
        labels = labels.double()
        known = ~labels.isnan()
        if not ((labels == 0) | (labels == 1) | ~known).all():
            raise ValueError("A label is 0, 1, or NaN where it is not known; apply a policy for others first.")
        if scores[known].isnan().any():
            raise ValueError("There are scores that are NaN: the model's features are not finite.")
        self.size, self.positives = len(scores), (labels == 1).nonzero().flatten()
        # Thresholds in falling order: number t of each sample's, the largest score being 0.
        threshold = (-scores[known].double()).unique(return_inverse=True)[1]
        holds = torch.zeros(int(threshold.max()) + 1 if len(threshold) else 0, dtype=torch.bool)
        holds[threshold[labels[known] == 1]] = True
        # Segments 2t + 1 are the thresholds that hold a positive, 2t what lies above the t-th of them.
        before = holds.long().cumsum(0) - holds.long()
        self.thresholds = int(holds.sum())
        self.segments = torch.full((self.size,), 2 * self.thresholds + 1)  # the last one: not known
        self.segments[known] = (2 * before + holds.long())[threshold]
        self.places = self.segments[self.positives] // 2

    def __call__(self, weights: Float[Tensor, "R N"]) -> Areas:
        """Both areas for each row of weights."""
        parts = [self._areas(some.T.contiguous()) for some in weights.split(AT_A_TIME)]
        return Areas(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def _areas(self, weights: Float[Tensor, "N R"]) -> Areas:
        columns = weights.shape[1]
        sums = weights.new_zeros(2 * self.thresholds + 2, columns).index_add_(0, self.segments, weights)[:-1].double()
        positive = weights.new_zeros(self.thresholds, columns)
        positive = positive.index_add_(0, self.places, weights[self.positives]).double()
        reached, found = sums.cumsum(0)[1::2], positive.cumsum(0)  # at each threshold: all samples, and positives
        negative = sums[1::2] - positive
        all_positive, everyone = positive.sum(0), sums.sum(0)
        all_negative = everyone - all_positive
        below = all_negative - (reached - found) + negative / 2
        auroc = (positive * below).sum(0) / (all_positive * all_negative)
        return Areas(auroc, (positive * found / reached.clamp_min(1e-300)).sum(0) / all_positive)


def label_statistic(
    scores: Float[Tensor, "N C"], labels: Shaped[Tensor, "N C"], names: Sequence[str] = ()
) -> Statistic:
    """AUROC and average precision of labels as a function of sample weights.

    Args:
        scores: larger is likelier. A label whose scores are all NaN was not scored, and is NaN.
        labels: 0, 1, or NaN where it is not known.
        names: of the labels; with them, each label's own numbers come too.

    Returns:
        `auroc` and `average_precision`, the means over the labels that have both positives and negatives, and
        `auroc/<name>` and `average_precision/<name>` of each label, NaN for the others.

    Raises:
        ValueError: the shapes differ, there are not as many names, or as for `LabelRanking`.
    """
    if scores.shape != labels.shape or (names and len(names) != scores.shape[1]):
        raise ValueError(f"The scores are {tuple(scores.shape)}, the labels {tuple(labels.shape)}, names {len(names)}.")
    rankings = [
        None if score.isnan().all() else LabelRanking(score, label)
        for score, label in zip(scores.T, labels.T, strict=True)
    ]

    def statistic(weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
        nothing = weights.new_full((len(weights),), torch.nan, dtype=torch.float64)
        found = [Areas(nothing, nothing) if each is None else each(weights) for each in rankings]
        areas = torch.stack([each.auroc for each in found])
        precisions = torch.stack([each.average_precision for each in found]).where(~areas.isnan(), torch.nan)
        metrics = {"auroc": areas.nanmean(0), "average_precision": precisions.nanmean(0)}
        for number, name in enumerate(names):
            metrics |= {f"auroc/{name}": areas[number], f"average_precision/{name}": precisions[number]}
        return metrics

    return statistic
