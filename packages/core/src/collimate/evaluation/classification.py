"""What a classification found, and how a report shows it.

Shape legend: N samples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from collimate.evaluation.features import Features, exhibit_of
from collimate.evaluation.metrics import confusion, per_class_recall
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result, number


@dataclass
class ClassificationResult(Result):
    """Scores (N, C) of each sample for each class, beside the numbers."""

    scores: Tensor
    labels: Tensor
    names: list[str]
    features: Features
    modality: str = "image"

    def __post_init__(self) -> None:
        recall = per_class_recall(self.scores, self.labels).tolist()
        counts = self.labels.bincount(minlength=len(self.names)).tolist()
        self.details["per_class"] = [
            {"class": name, "samples": count, "recall": share}
            for name, count, share in zip(self.names, counts, recall, strict=True)
        ]
        self.details["confusion"] = confusion(self.scores, self.labels).tolist()

    def add_to(self, report: Report) -> None:
        from collimate.evaluation import figures

        super().add_to(report)
        matrix = confusion(self.scores, self.labels)
        report.add_figure(figures.confusion(matrix, self.names), "True class (rows) and best class (columns).")
        (encoding,) = self.features.encodings.values()  # of the modality, or of one that is encoded jointly with it
        vectors = encoding.pooled
        caption = "The samples' vectors on their first two principal components; colours are classes."
        report.add_figure(figures.embedding_map(vectors, self.labels, self.names), caption)
        report.add_examples(*self.examples())
        rows: list[list[Any]] = [
            [each["class"], each["samples"], number(each["recall"])]
            for each in sorted(self.details["per_class"], key=lambda each: -(each["recall"] or 0))
        ]
        report.add_table(["class", "samples", "recall"], rows, "Per class")

    def examples(self, count: int = 6) -> tuple[list[tuple[Any, str]], list[tuple[Any, str]]]:
        """Samples with captions: the surest hits, and the surest mistakes. Empty where there is nothing to show."""
        best, choice = self.scores.max(1)
        own = self.scores.gather(1, self.labels[:, None])[:, 0]
        rest = self.scores.scatter(1, self.labels[:, None], -torch.inf).amax(1)
        order = (own - rest).argsort(descending=True).tolist()  # by how far the true class leads
        hits = [place for place in order if choice[place] == self.labels[place]][:count]
        misses = [place for place in reversed(order) if choice[place] != self.labels[place]][:count]
        return tuple(  # type: ignore[return-value]
            [
                (exhibit, f"{self.names[choice[place]]} ({best[place]:.2f}); true: {self.names[self.labels[place]]}")
                for place in places
                if (exhibit := exhibit_of(self.features, place, self.modality)) is not None
            ]
            for places in (hits, misses)
        )
