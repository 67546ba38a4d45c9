"""How far probabilities can be believed: of the samples said to be of a label with 0.8, are 80 % of it?

Guo et al. 2017, arXiv 1706.04599, section 2, for each label alone. With bins of equal width over [0, 1], n_b the weight
of the samples whose probability lies in bin b, p_b their mean probability and y_b the share of positives among them,

    ECE = sum_b n_b / n |y_b - p_b|,    Brier = mean (p_i - y_i)^2.

Samples whose label is not known (NaN) take no part. A probability on an edge belongs to the bin above it, as in
torchmetrics.

Shape legend: N samples, C labels, R resamples, B bins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from collimate.evaluation.bootstrap import Statistic

BINS = 15  # Guo et al. 2017, table 1


class Calibration(NamedTuple):
    """Of each bin; NaN where no sample lies in it."""

    predicted: Float[Tensor, " B"]
    observed: Float[Tensor, " B"]
    counts: Float[Tensor, " B"]


def calibration_curve(
    probabilities: Float[Tensor, " N"], labels: Shaped[Tensor, " N"], bins: int = BINS
) -> Calibration:
    """Mean probability, share of positives and number of the samples of each bin.

    Args:
        probabilities: between 0 and 1.
        labels: 0, 1, or NaN where it is not known.
        bins: B.

    Raises:
        ValueError: the shapes differ, or there is a probability that is none.
    """
    sums = _sums(probabilities, labels, torch.ones(len(labels), 1), bins)[..., 0]
    predicted, positive, counts = sums
    return Calibration(predicted / counts, positive / counts, counts)


def calibration_statistic(
    probabilities: Float[Tensor, "N C"], labels: Shaped[Tensor, "N C"], bins: int = BINS
) -> Statistic:
    """`ece` and `brier`, the means over the labels, as a function of sample weights.

    Args:
        probabilities: between 0 and 1.
        labels: 0, 1, or NaN where it is not known.
        bins: B.

    Raises:
        ValueError: the shapes differ, or there is a probability that is none.
    """
    _check(probabilities, labels)
    known = ~labels.double().isnan()
    squares = torch.where(known, (probabilities.double() - labels.double()).square(), 0)

    def statistic(weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
        weights = weights.double()
        total = weights @ known.double()
        brier = weights @ squares / total
        errors = []
        for probability, label in zip(probabilities.T, labels.T, strict=True):
            predicted, positive, counts = _sums(probability, label, weights.T.contiguous(), bins)
            errors.append((predicted - positive).abs().sum(0) / counts.sum(0))
        return {"ece": torch.stack(errors).nanmean(0), "brier": brier.nanmean(1)}

    return statistic


def _sums(probabilities: Tensor, labels: Tensor, weights: Float[Tensor, "N R"], bins: int) -> Float[Tensor, "3 B R"]:
    """Of each bin: summed probabilities, positives, samples."""
    _check(probabilities, labels)
    known = ~labels.double().isnan()
    probability, label, weights = probabilities[known].double(), labels[known].double(), weights[known].double()
    place = (probability * bins).long().clamp(max=bins - 1)
    parts = [weights * probability[:, None], weights * label[:, None], weights]
    return torch.stack([weights.new_zeros(bins, weights.shape[1]).index_add_(0, place, part) for part in parts])


def _check(probabilities: Tensor, labels: Tensor) -> None:
    if probabilities.shape != labels.shape:
        raise ValueError(f"The probabilities are {tuple(probabilities.shape)}, the labels {tuple(labels.shape)}.")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("Probabilities lie between 0 and 1: scores are no probabilities.")
