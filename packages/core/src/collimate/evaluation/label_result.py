"""What was found of samples with several labels each: areas of each label with intervals, drawn over groups of samples.

Shape legend: N samples, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from collimate.evaluation.bootstrap import confidence_intervals, evaluate, joined
from collimate.evaluation.calibration import calibration_curve, calibration_statistic
from collimate.evaluation.label_ranking import label_statistic
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result, number


def judge_labels(
    title: str,
    scores: Float[Tensor, "N C"],
    labels: Shaped[Tensor, "N C"],
    names: Sequence[str],
    protocol: dict[str, Any],
    groups: Int64[Tensor, " N"] | None = None,
    resamples: int = 1000,
    probabilities: bool = False,
    group_name: str = "patient",
) -> LabelsResult:
    """AUROC and average precision of each label and their means, with intervals.

    Args:
        title: what was evaluated.
        scores: larger is likelier.
        labels: 0, 1, or NaN where it is not known.
        names: of the labels.
        protocol: how the scores were made; what is counted here is added.
        groups: samples of one number, such as one patient's, are drawn together.
        resamples: of the intervals.
        probabilities: whether scores are such, so that they can be calibrated: adds `ece` and `brier`.
        group_name: what a group is, for the protocol.

    Raises:
        ValueError: shapes differ, a label is something else, or a score is NaN.
    """
    statistic = label_statistic(scores, labels, names)
    if probabilities:
        statistic = joined(statistic, calibration_statistic(scores, labels))
    size = len(labels)
    metrics = evaluate(statistic, size)
    judged = sum(metrics[f"auroc/{name}"] == metrics[f"auroc/{name}"] for name in names)
    drawn = "samples" if groups is None else f"{len(groups.unique())} {group_name}s"
    protocol = {
        **protocol,
        "labels": f"{judged} of {len(names)} have positives and negatives; the means are over these",
        "intervals": f"95 %, {resamples} bootstrap resamples of {drawn}",
    }
    intervals = confidence_intervals(statistic, size, groups, resamples=resamples)
    return LabelsResult(title, metrics, intervals, protocol, scores, labels, list(names), probabilities)


@dataclass
class LabelsResult(Result):
    """Scores (N, C) and labels (N, C) beside the numbers; those of each label are in the details."""

    scores: Tensor
    labels: Tensor
    names: list[str]
    probabilities: bool = False

    def __post_init__(self) -> None:
        known = self.labels.double()
        positives, counts = known.nansum(0).long().tolist(), (~known.isnan()).sum(0).tolist()
        per_label = []
        for name, positive, count in zip(self.names, positives, counts, strict=True):
            row: dict[str, Any] = {"label": name, "positives": positive, "known": count}
            for metric in ("auroc", "average_precision"):
                row[metric] = self.metrics.pop(f"{metric}/{name}")
                row[f"{metric}_interval"] = self.intervals.pop(f"{metric}/{name}")
            per_label.append(row)
        self.details["per_label"] = per_label

    def add_to(self, report: Report) -> None:
        from collimate.evaluation import figures

        super().add_to(report)
        rows = [
            [each["label"], f"{each['positives']} of {each['known']}"]
            + [
                text
                for metric in ("auroc", "average_precision")
                for text in (number(each[metric]), " to ".join(map(number, each[f"{metric}_interval"])))
            ]
            for each in self.details["per_label"]
        ]
        columns = ["label", "positives", "AUROC", "95 % interval", "average precision", "95 % interval"]
        report.add_table(columns, rows, "Per label")
        if self.probabilities:
            curves = {
                name: calibration_curve(score, label, bins=10)
                for name, score, label in zip(self.names, self.scores.T, self.labels.T, strict=True)
            }
            caption = "Share of positives against mean probability in ten bins; on the dotted line both agree."
            report.add_figure(figures.reliability(curves), caption)
