"""Linear probes of several labels, fitted on ever fewer of the labels, beside what the same encoder does untrained.

A share of the groups (patients) is drawn, the smaller shares inside the larger ones; all samples of a group come
together. For each label a logistic regression is fitted, whose penalty is the one of seven that is likeliest on a fifth
of these groups. A label of which a share lacks positives or negatives teaches nothing: it is scored as chance, so that
means of all shares are over the same labels.

Shape legend: N training samples, M test samples, C labels, D width, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from collimate.evaluation.bootstrap import Statistic, confidence_intervals, evaluate, joined
from collimate.evaluation.label_ranking import label_statistic
from collimate.evaluation.probes import COARSE, HELD_OUT, PENALTIES, LinearProbe, Scaling
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result

FEW_PENALTY = 0.1  # ours: where there are too few groups to choose one on


class ProbeScores(NamedTuple):
    """Logits of the test samples, and which labels taught anything."""

    scores: Float[Tensor, "M C"]
    fitted: Bool[Tensor, " C"]


def label_probe(
    features: Float[Tensor, "N D"],
    labels: Shaped[Tensor, "N C"],
    test_features: Float[Tensor, "M D"],
    groups: Int64[Tensor, " N"],
    scaling: Scaling = "standardize",
    seed: int = 0,
) -> ProbeScores:
    """Score test samples by one logistic regression a label.

    Args:
        features: of the training samples.
        labels: 0, 1, or NaN where it is not known: such samples do not count for that label.
        test_features: what is scored.
        groups: of the training samples; those that choose the penalty share no group with those that are fitted.
        scaling: of the features.
        seed: of the choice of these groups.
    """
    held = rows_of_share(groups, HELD_OUT, seed)
    chosen = torch.zeros(len(groups), dtype=torch.bool).index_fill_(0, held, True)
    scores, fitted = torch.zeros(len(test_features), labels.shape[1]), torch.zeros(labels.shape[1], dtype=torch.bool)
    for column, label in enumerate(labels.T.double()):
        known = ~label.isnan()
        if len(label[known].unique()) < 2:
            continue
        fitted[column] = True
        penalty = _penalty(features, label, known & ~chosen, known & chosen, scaling)
        probe = LinearProbe.fit(features[known], label[known].long(), 2, penalty, scaling)
        scores[:, column] = probe.scores(test_features).diff(dim=1)[:, 0]
    return ProbeScores(scores, fitted)


def rows_of_share(groups: Int64[Tensor, " N"], share: float, seed: int = 0) -> Int64[Tensor, " n"]:
    """The samples of so large a share of the groups, at least one group; with one seed, a smaller share lies inside.

    Raises:
        ValueError: it is no share above 0.
    """
    if not 0 < share <= 1:
        raise ValueError(f"A share lies above 0 and at most at 1; got {share:g}.")
    numbers = groups.unique(return_inverse=True)[1]
    count = int(numbers.max()) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    taken = order[: max(1, round(share * count))]
    return torch.isin(numbers, taken).nonzero().flatten()


def shares_statistic(scores: Mapping[str, Float[Tensor, "M C"]], labels: Shaped[Tensor, "M C"]) -> Statistic:
    """Areas of several rows of scores of the same samples, and how far the first lies above each of the others.

    Args:
        scores: row -> logits; the first is what the others are compared with.
        labels: 0, 1, or NaN where it is not known.

    Returns:
        `<row>/auroc`, `<row>/average_precision`, and `above <row>/auroc` of every row but the first. The first row has
        no name before its metrics.
    """
    first, *others = scores
    statistics = {row: label_statistic(each, labels) for row, each in scores.items()}

    def statistic(weights: Float[Tensor, "R M"]) -> dict[str, Tensor]:
        found = {row: each(weights) for row, each in statistics.items()}
        metrics = dict(found[first])
        for row in others:
            metrics |= {f"{row}/{name}": value for name, value in found[row].items()}
            metrics[f"above {row}/auroc"] = found[first]["auroc"] - found[row]["auroc"]
        return metrics

    return statistic


def percent(share: float) -> str:
    """A share as it stands behind a metric's name: `auroc@10%`."""
    return f"{100 * share:g}%"


def judge_shares(
    title: str,
    scores: Mapping[float, Mapping[str, Float[Tensor, "M C"]]],
    labels: Shaped[Tensor, "M C"],
    groups: Int64[Tensor, " M"],
    protocol: dict[str, Any],
    resamples: int = 1000,
) -> SharesResult:
    """The result of rows of scores at each share of the labels.

    Args:
        title: what was evaluated.
        scores: share -> row -> logits of the test samples, with the same rows for each share.
        labels: of the test samples.
        groups: of the test samples, drawn together by the intervals.
        protocol: how the scores were made.
        resamples: of the intervals.
    """

    def at(share: float, rows: Mapping[str, Tensor]) -> Statistic:
        statistic = shares_statistic(rows, labels)
        return lambda weights: {f"{name}@{percent(share)}": value for name, value in statistic(weights).items()}

    statistic = joined(*(at(share, rows) for share, rows in scores.items()))
    size = len(labels)
    note = {"intervals": f"95 %, {resamples} bootstrap resamples of {len(groups.unique())} test patients"}
    return SharesResult(
        title,
        evaluate(statistic, size),
        confidence_intervals(statistic, size, groups, resamples=resamples),
        {**protocol, **note},
        list(scores),
        list(next(iter(scores.values()))),
    )


@dataclass
class SharesResult(Result):
    """Areas by share of the labels and by row."""

    shares: list[float]
    rows_compared: list[str]

    def add_to(self, report: Report) -> None:
        from collimate.evaluation import figures

        super().add_to(report)
        lines = {}
        for place, row in enumerate(self.rows_compared):
            name = "auroc" if place == 0 else f"{row}/auroc"
            keys = [f"{name}@{percent(share)}" for share in self.shares]
            lines[row] = [
                (100 * share, self.metrics[key], *self.intervals[key])
                for share, key in zip(self.shares, keys, strict=True)
            ]
        caption = "Macro AUROC against the share of labelled patients, with 95 % intervals."
        report.add_figure(figures.by_share(lines), caption)


def _penalty(features: Tensor, label: Tensor, fitted: Tensor, held: Tensor, scaling: Scaling) -> float:
    """Of seven penalties, the one under which the held-out labels are likeliest."""
    if len(label[fitted].unique()) < 2 or len(label[held].unique()) < 2:
        return FEW_PENALTY
    losses: dict[float, float] = {}
    probe: LinearProbe | None = None
    for penalty in PENALTIES[::-COARSE].tolist():  # from strong to weak: each starts near its solution
        probe = LinearProbe.fit(features[fitted], label[fitted].long(), 2, penalty, scaling, start=probe)
        logits = probe.scores(features[held]).diff(dim=1)[:, 0]
        losses[penalty] = binary_cross_entropy_with_logits(logits.double(), label[held]).item()
    return min(losses, key=lambda penalty: losses[penalty])
