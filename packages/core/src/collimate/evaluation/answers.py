"""What a classifier makes of a data set: its classes for each sample and, where there are labels, how right it is.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from collimate.data import Source
from collimate.data.decoding import LABELS
from collimate.encoding import Encoding
from collimate.evaluation.bootstrap import confidence_intervals, evaluate
from collimate.evaluation.classification import ClassificationResult
from collimate.evaluation.features import Features, Precision, extract
from collimate.evaluation.metrics import classification_statistic, multilabel_statistic
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result, number
from collimate.training import Classifier


@dataclass
class Answers:
    """A model's answers.

    Attributes:
        probabilities: (N, K), of the model's classes.
        targets: (N, K), 0 or 1, or what each class is worth between them; None where samples have no labels.
        features: names and settings of the samples.
        names: of the classes.
    """

    probabilities: Float[Tensor, "N K"]
    targets: Float[Tensor, "N K"] | None
    features: Features
    names: list[str]

    def write(self, path: Path, top: int = 5) -> None:
        """A .csv table: each sample with its labels and its likeliest classes, the best first."""
        best = self.probabilities.topk(min(top, len(self.names)))
        ranked = [f"{what} {rank + 1}" for rank in range(best.values.shape[1]) for what in ("class", "probability")]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["key", *(() if self.targets is None else ("labels",)), *ranked])
            for row, key in enumerate(self.features.keys):
                given = [] if self.targets is None else [self._named(self.targets[row])]
                pairs = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
                found = [cell for number, value in pairs for cell in (self.names[number], f"{value:.4f}")]
                table.writerow([key, *given, *found])

    def _named(self, target: Float[Tensor, " K"]) -> str:
        return "; ".join(self.names[number] for number in target.nonzero().flatten().tolist())


@dataclass
class SeveralLabelsResult(Result):
    """Each class's average precision, beside the numbers of all."""

    def add_to(self, report: Report) -> None:
        super().add_to(report)
        rows = [
            [each["class"], each["samples"], number(each["average precision"])] for each in self.details["per_class"]
        ]
        report.add_table(["class", "samples", "average precision"], rows, "Per class")


def answer(
    model: Classifier,
    source: Source,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
) -> Answers:
    """Let a model classify a source; all ranks share the work, and get all of it.

    Args:
        model: with its classes.
        source: samples, with labels or without.
        batch_size, num_workers, device, precision, limit: see `collimate.evaluation.features.extract`.

    Raises:
        ValueError: nothing could be read, or a label is none of the model's classes.
    """
    model.labels.check_source(source)
    labelled = bool(set(LABELS) & source.peek(0, LABELS).keys())
    also = ["labels"] if labelled else []
    features = extract(model, source, [model.judged], also, False, batch_size, num_workers, device, precision, limit)
    pooled = features.encodings[model.judged].pooled
    with torch.inference_mode():
        probabilities = model.cpu().probabilities(Encoding(pooled))
    targets = torch.stack([model.labels(each) for each in features.extras["labels"]]) if labelled else None
    return Answers(probabilities, targets, features, model.labels.names)


def judge(answers: Answers, model: Classifier, resamples: int = 1000) -> Result:
    """How right answers are, by the model's own metrics and their like.

    Args:
        answers: with targets.
        model: that gave them.
        resamples: of the bootstrap intervals; 0 for none, which of hundreds of classes take long.

    Raises:
        ValueError: the data has no labels.
    """
    exclusive = model.labels.exclusive
    scores, targets, features = answers.probabilities, answers.targets, answers.features
    if targets is None:
        raise ValueError(f"{features.settings['data']} has no labels to judge answers by.")
    labels = targets.argmax(1)
    statistic = classification_statistic(scores, labels) if exclusive else multilabel_statistic(scores, _held(targets))
    metrics = evaluate(statistic, len(scores)) | model.metrics(scores, targets)
    intervals = confidence_intervals(statistic, len(scores), resamples=resamples) if resamples else {}
    protocol = {**features.settings, "intervals": f"95 %, {resamples} bootstrap resamples" if resamples else "none"}
    if exclusive:
        return ClassificationResult(
            "Classification", metrics, intervals, protocol, scores, labels, answers.names, features, model.modalities[0]
        )
    details: dict[str, Any] = {"per_class": _per_class(answers)}
    return SeveralLabelsResult("Classification by several labels", metrics, intervals, protocol, details=details)


def _per_class(answers: Answers) -> list[dict[str, Any]]:
    """Classes that occur, the worst first."""
    assert answers.targets is not None
    found = []
    held = _held(answers.targets)
    for place, name in enumerate(answers.names):
        column = slice(place, place + 1)
        if positives := int(held[:, column].sum()):
            each = evaluate(multilabel_statistic(answers.probabilities[:, column], held[:, column]), len(held))
            found.append({"class": name, "samples": positives, "average precision": each["mean_average_precision"]})
    return sorted(found, key=lambda each: each["average precision"])


def _held(targets: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """0 or 1: what a class is worth counts as a label from one half on."""
    return (targets >= 0.5).to(targets.dtype)
