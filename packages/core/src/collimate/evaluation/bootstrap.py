"""Bootstrap confidence intervals: a metric is a function of sample weights, and resampling only changes the weights.

So one definition serves the number and its interval, and hundreds of resamples are one matrix product. What is
resampled may be groups (patients, images with all their captions): the samples of a group then come and go together.

Shape legend: N samples, R resamples, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Statistic = Callable[[Float[Tensor, "R N"]], dict[str, Float[Tensor, " R"]]]
"""Metrics as a function of sample weights; a weight of 2 is a sample that was drawn twice."""

BLOCK = 2**24  # weights held at a time


def evaluate(statistic: Statistic, size: int) -> dict[str, float]:
    """The metrics of the samples as they are, each of them once.

    Args:
        statistic: metrics as a function of weights.
        size: N.
    """
    return {name: value.item() for name, value in statistic(torch.ones(1, size)).items()}


def joined(*statistics: Statistic) -> Statistic:
    """The metrics of several statistics of the same samples as one."""
    return lambda weights: {name: value for each in statistics for name, value in each(weights).items()}


def confidence_intervals(
    statistic: Statistic,
    size: int,
    groups: Int64[Tensor, " N"] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals (Efron and Tibshirani 1993, chapter 13).

    Args:
        statistic: metrics as a function of weights.
        size: N.
        groups: the group of each sample; groups are drawn instead of samples.
        level: the share of resamples inside the interval.
        resamples: R.
        seed: of the draws; the same seed gives the same intervals.

    Returns:
        metric -> (low, high); NaN where the metric is NaN in every resample.
    """
    found = [statistic(weights) for weights in _weights(size, groups, resamples, seed)]
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2])
    intervals = {}
    for name in found[0]:
        low, high = torch.cat([part[name] for part in found]).float().nanquantile(tails).tolist()
        intervals[name] = (low, high)
    return intervals


def _weights(size: int, groups: Tensor | None, resamples: int, seed: int) -> Iterator[Float[Tensor, "R N"]]:
    """How often each sample occurs in each resample, some resamples at a time."""
    generator = torch.Generator().manual_seed(seed)
    if groups is not None:
        groups = groups.unique(return_inverse=True)[1]
    units = size if groups is None else int(groups.max()) + 1
    block = max(1, BLOCK // max(size, 1))
    for first in range(0, resamples, block):
        rows = min(block, resamples - first)
        drawn = torch.randint(units, (rows, units), generator=generator)
        counts = torch.zeros(rows, units).scatter_add_(1, drawn, torch.ones(rows, units))
        yield counts if groups is None else counts.index_select(1, groups)
