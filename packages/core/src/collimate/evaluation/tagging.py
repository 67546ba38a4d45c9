"""Zero-shot tagging: samples with any number of classes each, ranked for every class by what its prompts say.

Shape legend: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from jaxtyping import Bool
from torch import Tensor

from collimate.data import Source
from collimate.data.source import CorruptSample
from collimate.evaluation.bootstrap import confidence_intervals, evaluate
from collimate.evaluation.features import Features, exhibit_of, other_modality
from collimate.evaluation.metrics import average_precision, multilabel_statistic
from collimate.evaluation.options import Reading
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result, number
from collimate.evaluation.zero_shot import scored
from collimate.training import Method

LABELS = "labels.json"
"""The key of a sample under which its classes lie: a list of names or of numbers, which may be empty."""


def has_several_labels(source: Source) -> bool:
    """Whether samples have lists of classes: the first one that can be read tells."""
    for place in range(len(source)):
        try:
            return LABELS in source.peek(place, (LABELS,))
        except CorruptSample:
            continue
    return False


def evaluate_tagging(
    method: Method,
    data: Source | Features,
    classes: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    templates: str | Sequence[str] | None = None,
    modality: str | None = None,
    limit: int | None = None,
    resamples: int = 1000,
    windows: int = 1,
    **options: Unpack[Reading],
) -> TaggingResult:
    """Average precision of the samples' similarities with each class (AudioSet, FSD50K, ...).

    Args:
        method: a method that encodes text and something else.
        data: samples with `labels.json`, or features extracted with `also=["labels.json"]`.
        classes, templates, modality, limit, resamples, windows: as for `evaluate_zero_shot`.
        options: batch_size, num_workers, device, precision; as for it, too.

    Raises:
        ValueError: the classes are not known, or a label is none of them.
    """
    modality = modality or other_modality(method)
    found = scored(method, data, LABELS, modality, classes, templates, limit, windows, **options)
    labels = indicators(found.features.extras[LABELS], found.names)
    statistic = multilabel_statistic(found.scores, labels)
    protocol = {
        **found.protocol,
        "labels": f"{labels.double().sum(1).mean():.2f} a sample",
        "intervals": f"95 %, {resamples} bootstrap resamples of samples",
    }
    metrics = evaluate(statistic, len(labels))
    intervals = confidence_intervals(statistic, len(labels), resamples=resamples)
    return TaggingResult(
        "Zero-shot tagging", metrics, intervals, protocol, found.scores, labels, found.names, found.features, modality
    )


def indicators(labels: Sequence[Sequence[str | int]], names: Sequence[str]) -> Bool[Tensor, "N C"]:
    """True where a sample has a class.

    Args:
        labels: each sample's classes, by name or by number.
        names: of the classes, in the order of their numbers.

    Raises:
        ValueError: one is no class.
    """
    numbers: dict[str | int, int] = {name: place for place, name in enumerate(names)}
    numbers |= {place: place for place in range(len(names))}
    found = torch.zeros(len(labels), len(names), dtype=torch.bool)
    for row, several in enumerate(labels):
        if unknown := [each for each in several if each not in numbers]:
            raise ValueError(f"Sample {row} has the label {unknown[0]!r}, which is none of the {len(names)} classes.")
        found[row, [numbers[each] for each in several]] = True
    return found


@dataclass
class TaggingResult(Result):
    """Scores (N, C) and labels (N, C) of each sample for each class, beside the numbers."""

    scores: Tensor
    labels: Tensor
    names: list[str]
    features: Features
    modality: str = "image"

    def __post_init__(self) -> None:
        precisions, counts = average_precision(self.scores, self.labels).tolist(), self.labels.sum(0).tolist()
        self.details["per_class"] = [
            {"class": name, "samples": count, "average_precision": precision if count else None}
            for name, count, precision in zip(self.names, counts, precisions, strict=True)
        ]

    def add_to(self, report: Report) -> None:
        super().add_to(report)
        report.add_examples(*self.examples())
        rows = [
            [each["class"], each["samples"], number(each["average_precision"])]
            for each in sorted(self.details["per_class"], key=lambda each: -(each["average_precision"] or 0))
        ]
        report.add_table(["class", "samples", "average precision"], rows, "Per class")

    def examples(self, count: int = 6) -> tuple[list[tuple[Any, str]], list[tuple[Any, str]]]:
        """Samples with their best class and true ones: where it is one of them, and where it is not."""
        best, choice = self.scores.max(1)
        right = self.labels.gather(1, choice[:, None])[:, 0]
        order = best.argsort(descending=True).tolist()
        parts = ([place for place in order if bool(right[place]) is wanted][:count] for wanted in (True, False))
        return tuple(  # type: ignore[return-value]
            [
                (exhibit, f"{self.names[choice[place]]} ({best[place]:.2f}); true: {self._true(place)}")
                for place in places
                if (exhibit := exhibit_of(self.features, place, self.modality)) is not None
            ]
            for places in parts
        )

    def _true(self, place: int) -> str:
        return ", ".join(self.names[label] for label in self.labels[place].nonzero().flatten().tolist()) or "none"
