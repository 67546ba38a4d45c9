"""What an evaluation by region found, and how a report shows it.

Shape legend: r regions of a known class, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from collimate.data import Source
from collimate.data.decoding import extensions_of, value_of
from collimate.data.regions import Box
from collimate.evaluation.metrics import per_class_recall
from collimate.evaluation.prompts import prompts
from collimate.evaluation.region_metrics import GOOD_OVERLAP, Choice, RegionRanks, overlap
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result, number, one_of_each_sample

NAMES = 20  # names that a figure has room for


Classes = str | Sequence[str] | Mapping[str, Sequence[str]] | None


@dataclass(frozen=True)
class SeenRegion:
    """A region of which something is seen.

    Attributes:
        sample: its place in the source.
        phrase, name: the words, and the class if it has one.
        box: in shares of the processed picture.
        cut: the same in pixels of the picture as it is stored.
        vector: in the space of texts, (D,), float32, not normalised.
        found: where the method finds the phrase, (4,), as `box`; None where it looks for none, or where several boxes
            of the picture bear the phrase.
    """

    sample: int
    phrase: str
    name: str | None
    box: Box
    cut: Box
    vector: Float[Tensor, " D"]
    found: Float[Tensor, " 4"] | None


class NamedRegions(NamedTuple):
    """The regions whose class is known, and the classes."""

    rows: list[int]
    labels: Int64[Tensor, " r"]
    texts: dict[str, list[str]]

    @classmethod
    def of(
        cls,
        regions: Sequence[SeenRegion],
        classes: Classes,
        templates: str | Sequence[str],
        known: Sequence[str] | None,
    ) -> NamedRegions | None:
        """None where there are not two classes, or no region of one."""
        occurring = sorted({region.name for region in regions if region.name is not None})
        names = known if known and set(occurring) <= set(known) else occurring
        texts = prompts(classes, templates, names) if classes or len(names) > 1 else {}
        places = {name: number for number, name in enumerate(texts)}
        rows = [row for row, region in enumerate(regions) if region.name in places]
        if len(texts) < 2 or not rows:
            return None
        return cls(rows, torch.tensor([places[str(regions[row].name)] for row in rows]), texts)


@dataclass
class RegionResult(Result):
    """Every region, and which boxes were chosen for phrases, beside the numbers."""

    regions: list[SeenRegion]
    choices: list[tuple[list[SeenRegion], Choice]]
    ranks: RegionRanks
    named: NamedRegions | None
    scores: Float[Tensor, "r C"] | None
    data: Source
    processor: Any
    modality: str = "image"

    def __post_init__(self) -> None:
        if self.named is None or self.scores is None:
            return
        shares = per_class_recall(self.scores, self.named.labels).tolist()
        counts = self.named.labels.bincount(minlength=len(shares)).tolist()
        rows = zip(self.named.texts, counts, shares, strict=True)
        self.details["per_class"] = [
            {"class": name, "regions": count, "accuracy": share} for name, count, share in rows if count
        ]

    def add_to(self, report: Report) -> None:
        from collimate.evaluation import figures

        super().add_to(report)
        ranks = {"find the text": self.ranks.of_text, "find the region": self.ranks.of_region}
        sizes = dict.fromkeys(ranks, len(self.regions))
        caption = "Share of queries with a right answer among the k best; dashed: chance, with one right answer."
        report.add_figure(figures.recall_curves(ranks, sizes), caption)
        right, wrong = self.referred()
        report.add_images(
            right, "Phrases and the boxes they choose, surest first; the other boxes are thin", "good large"
        )
        report.add_images(wrong, "Phrases that choose another box; their own is dashed", "bad large")
        best, worst = self.grounded()
        report.add_images(best, "Boxes found for phrases, best first; their own are dashed", "good large")
        report.add_images(worst, "Boxes found for phrases, worst first", "bad large")
        if per_class := self.details.get("per_class"):
            per_class = sorted(per_class, key=lambda each: -each["regions"])
            chance = 1 / len(self.named.texts) if self.named else 0.0
            bars = {each["class"]: (each["accuracy"], chance) for each in per_class[:NAMES]}
            caption = f"Accuracy by class; the stroke is chance. The {len(bars)} commonest of {len(per_class)}."
            report.add_figure(figures.shares(bars), caption)
            rows = [[each["class"], each["regions"], number(each["accuracy"])] for each in per_class]
            report.add_table(["class", "regions", "accuracy"], rows, "Per class")

    def referred(self, count: int = 6) -> tuple[list[tuple[Any, str]], list[tuple[Any, str]]]:
        """Pictures with their boxes: phrases that chose rightly, and wrongly; one of each picture."""
        drawn: list[list[tuple[Any, str]]] = []
        for hit in (True, False):
            some = one_of_each_sample(_Drawn(rows[0].sample, rows, one) for rows, one in self.choices if one.hit == hit)
            drawn.append([(self._chosen(*each[1:]), each.rows[each.choice.phrase].phrase) for each in some[:count]])
        return drawn[0], drawn[1]

    def grounded(self, count: int = 6) -> tuple[list[tuple[Any, str]], list[tuple[Any, str]]]:
        """Pictures with the box that was found for a phrase, and its own: the best, the worst, one of each picture."""
        worth = sorted(
            (float(overlap(region.found[None], torch.tensor([region.box]))), number)
            for number, region in enumerate(self.regions)
            if region.found is not None
        )
        order = [_Found(self.regions[number].sample, self.regions[number], value) for value, number in worth]
        return tuple(  # type: ignore[return-value]
            [(self._found(one.region), f"{one.region.phrase}: overlap {one.overlap:.2f}") for one in several[:count]]
            for several in (one_of_each_sample(reversed(order)), one_of_each_sample(order))
        )

    def _chosen(self, rows: Sequence[SeenRegion], choice: Choice) -> Any:
        from collimate.evaluation import pictures

        phrase, chosen = rows[choice.phrase].phrase, rows[choice.chosen]
        own = [region.box for region in rows if region.phrase == phrase and region is not chosen]
        others = [region.box for region in rows if region.phrase != phrase and region is not chosen]
        return pictures.boxed(self._canvas(chosen.sample), [chosen.box], own, others, choice.hit)

    def _found(self, region: SeenRegion) -> Any:
        from collimate.evaluation import pictures

        assert region.found is not None
        good = bool(overlap(region.found[None], torch.tensor([region.box])) >= GOOD_OVERLAP)
        return pictures.boxed(self._canvas(region.sample), [region.found.tolist()], [region.box], [], good)

    def _canvas(self, sample: int) -> Any:
        """The picture as the encoder sees it, large enough to draw on."""
        from collimate.evaluation import pictures

        return pictures.canvas(self.processor(value_of(self.data.read(sample), extensions_of(self.modality))))


class _Drawn(NamedTuple):
    sample: int
    rows: list[SeenRegion]
    choice: Choice


class _Found(NamedTuple):
    sample: int
    region: SeenRegion
    overlap: float
