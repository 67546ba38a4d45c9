"""What an evaluation found: numbers with their intervals, and the protocol they were taken by."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from rich.table import Table

if TYPE_CHECKING:
    from collimate.evaluation.report import Report

T = TypeVar("T")


@dataclass
class Result:
    """Numbers, and what they mean.

    Attributes:
        title: what was evaluated.
        metrics: fractions between 0 and 1, ranks and counts, by the field's names.
        intervals: metric -> (low, high), where an interval was taken.
        protocol: data, prompts, preprocessing, precision, counts.
        details: what else the JSON file holds, as plain data.
    """

    title: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    protocol: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that is not defined is None."""
        found = {
            "title": self.title,
            "metrics": self.metrics,
            "intervals": self.intervals,
            "protocol": self.protocol,
            **self.details,
        }
        return _finite(found)

    def rows(self) -> list[list[str]]:
        """Metric, value, interval."""
        return [
            [name, number(value), " to ".join(map(number, self.intervals.get(name, ())))]
            for name, value in self.metrics.items()
        ]

    def table(self) -> Table:
        """For the terminal."""
        table = Table("metric", "value", "95 % interval", title=self.title, title_justify="left")
        for row in self.rows():
            table.add_row(*row)
        return table

    def add_to(self, report: Report) -> None:
        """The numbers and their protocol; evaluations add their figures."""
        report.add_heading(self.title)
        report.add_table(["metric", "value", "95 % interval"], self.rows())
        report.add_facts(self.protocol)
        report.record(self.title, self.to_json())


def number(value: float | None) -> str:
    """A number for people: three decimals below 1, four digits above, a dash for what is not defined."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.4g}"


def one_of_each_sample(examples: Iterable[T]) -> list[T]:
    """The first example of each `sample`, in order."""
    found: dict[Any, T] = {}
    for example in examples:
        found.setdefault(example.sample, example)  # type: ignore[attr-defined]
    return list(found.values())


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
