"""What ALIP's gates make of a data set: which texts they distrust and, where the truth is known, how rightly.

Every sample is weighed as in training (`collimate_vision_language.alip`), by the history that the model has learnt. A
model without one, such as CLIP, weighs by the means of the data set.

Shape legend: N samples, R resamples.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collimate.data import CaptionChoice, CorruptSample, Sample, Source
from collimate.data.captions import captions_of
from collimate.data.decoding import Undecodable, value_of
from collimate.data.loading import restoring_generators, seed_generators
from collimate.distributed import LOCAL
from collimate.evaluation import figures
from collimate.evaluation.bootstrap import Statistic, confidence_intervals, evaluate
from collimate.evaluation.embedding import Part
from collimate.evaluation.features import Features, Precision, encode_all, exhibit_of, extract
from collimate.evaluation.metrics import multilabel_statistic
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result
from collimate.training import Method
from collimate_vision_language.alip import ALIP, PAIRS, Gates, gates, similarities, updated_history


class Texts(NamedTuple):
    """A sample's raw text and synthetic caption, and whether they are true; None where nobody said."""

    text: str
    caption: str | None
    text_true: bool | None
    caption_true: bool | None


def evaluate_consistency(
    method: Method,
    data: Source,
    captions: Mapping[str, CaptionChoice] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
) -> ConsistencyResult:
    """Weigh every sample of a data set; those without a raw text are left out.

    Where entries of a sample's `captions.json` say `"true": true` or `false`, as those of the procedural world do, the
    result says how well weights and cosines tell wrong texts from true ones.

    Args:
        method: encodes images and text.
        data: samples with pictures, raw texts and, as far as there are any, synthetic captions.
        captions: which are the `text` and the `caption` of a sample, where ALIP's own choice does not fit.
        batch_size: of each rank.
        num_workers: processes that read and decode.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the encoders.
        limit: at most so many samples, spread over the data.
        resamples: of the bootstrap intervals.

    Raises:
        ValueError: no sample has a raw text.
    """
    size = len(data) if limit is None else min(limit, len(data))
    choices = {**ALIP.captions, **(captions or {})}
    read = {place: _texts(data, place, choices) for place in (number * len(data) // size for number in range(size))}
    known = {place: texts for place, texts in read.items() if texts is not None}
    if not known:
        raise ValueError(f"{data.name}: no sample has a raw text.")
    part = Part(data, list(known))
    images = extract(method, part, ["image"], (), False, batch_size, num_workers, device, precision)
    texts = [known[part.places[row]] for row in images.index.tolist()]
    given = torch.tensor([each.caption is not None for each in texts])
    raw = encode_all(method, "text", [each.text for each in texts], device=device, precision=precision).pooled
    caption = torch.zeros_like(raw)
    if synthetic := [each.caption for each in texts if each.caption is not None]:
        caption[given] = encode_all(method, "text", synthetic, device=device, precision=precision).pooled
    found = similarities(images.encodings["image"].pooled, raw, caption)
    begun = getattr(method, "history", torch.full((3,), torch.nan)).detach().cpu()
    history = torch.where(begun.isnan(), updated_history(begun, found, given, group=LOCAL), begun)
    gammas = [getattr(method, name, 2.0) for name in ("gamma_sample", "gamma_pair")]  # 2: as published
    weights = gates(found, history, given, *gammas)
    statistic = _statistic(texts, found, weights)
    protocol = {
        **images.settings,
        "data": data.name,
        "without a raw text": len(read) - len(known),
        "history": {pair: f"{value:.3f}" for pair, value in zip(PAIRS, history.tolist(), strict=True)},
        "history of": "these data" if begun.isnan().any() else "the model",
        "gamma of samples, of pairs": gammas,
        "intervals": f"95 %, {resamples} bootstrap resamples of samples",
    }
    return ConsistencyResult(
        "Consistency",
        evaluate(statistic, len(texts)),
        confidence_intervals(statistic, len(texts), resamples=resamples),
        protocol,
        texts,
        found,
        weights,
        images,
    )


@dataclass
class ConsistencyResult(Result):
    """The texts, similarities (N, 3) and weights of each sample beside the numbers.

    The numbers: `sample_weight`, `text_weight` and `caption_weight`, the means of W^s, W^t and W^c; and of texts and of
    captions of which some are true and some are wrong the means of W^s W^t and of W^s W^c of either kind, and the share
    of (true, wrong) pairs which the weight, or a cosine, ranks right (`..._auroc`).
    """

    texts: list[Texts]
    similarities: Float[Tensor, "N 3"]
    weights: Gates
    features: Features

    def add_to(self, report: Report) -> None:
        super().add_to(report)
        report.add_figure(figures.histograms(self.panels()), "What pairs count in the loss, and the cosines behind it.")
        order = self.weights.image_text.argsort(stable=True).tolist()
        report.add_images(self.examples(order), "Lowest weights of image and text", "bad")
        report.add_images(self.examples(order[::-1]), "Highest weights of image and text", "good")

    def panels(self) -> dict[str, dict[str, Tensor]]:
        """Quantity -> group of samples -> values; the groups are those whose text, or caption, is true or wrong."""
        given = torch.tensor([each.caption is not None for each in self.texts])
        by_text, by_caption = (_groups(truths) for truths in zip(*(each[2:] for each in self.texts), strict=True))
        text_caption, image_text, image_caption = self.similarities.unbind(1)
        values = {
            "weight of image and text": (self.weights.image_text, by_text),
            "weight of image and caption": (self.weights.image_caption, by_caption),
            "cosine of text and caption": (text_caption.masked_fill(~given, torch.nan), by_text),
            "cosine of image and text": (image_text, by_text),
            "cosine of image and caption": (image_caption.masked_fill(~given, torch.nan), by_caption),
        }
        return {
            name: {group: value[members] for group, members in groups.items() if members.any()}
            for name, (value, groups) in values.items()
        }

    def examples(self, order: Sequence[int], count: int = 8) -> list[tuple[Any, str]]:
        """The first pictures of an order, each with text, caption, weight and, if known, the truth."""
        verdicts = {True: ", true", False: ", wrong", None: ""}
        return [
            (
                exhibit_of(self.features, place, "image"),
                f"{texts.text} | {texts.caption or 'no caption'} | {self.weights.image_text[place]:.3f}"
                + verdicts[texts.text_true],
            )
            for place in order[:count]
            for texts in [self.texts[place]]
        ]

    def write_table(self, path: str | Path) -> None:
        """Every sample's texts, cosines and weights as CSV, to sort or sift the data by."""
        columns = {f"cosine {pair}": column for pair, column in zip(PAIRS, self.similarities.T, strict=True)}
        columns |= {f"weight {name}": column for name, column in self.weights._asdict().items()}
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["key", *columns, *Texts._fields])
            numbers = torch.stack(list(columns.values()), 1).tolist()
            for key, row, texts in zip(self.features.keys, numbers, self.texts, strict=True):
                table.writerow([key, *(f"{number:.5g}" for number in row), *texts])


def _statistic(texts: Sequence[Texts], found: Float[Tensor, "N 3"], weights: Gates) -> Statistic:
    """The numbers as functions of how often each sample counts."""
    repeats = Counter(each.caption for each in texts)
    repeated = torch.tensor([repeats[each.caption] > 1 for each in texts])
    given = torch.tensor([each.caption is not None for each in texts])
    everyone = torch.ones_like(given)
    means = {  # name -> what is averaged, over whom
        "sample_weight": (weights.sample, everyone),
        "text_weight": (weights.text, everyone),
        "caption_weight": (weights.caption, given),
        "without_caption": (~given, everyone),
        "duplicate_captions": (repeated, given),
    }
    areas = {}
    truths = zip(*(each[2:] for each in texts), strict=True)
    for kind, truth, weight in zip(
        ("text", "caption"), truths, (weights.image_text, weights.image_caption), strict=True
    ):
        groups = _groups(truth)
        true, wrong = groups["true"], groups["wrong"]
        if not (true.any() and wrong.any()):
            continue
        means[f"true_{kind}s/pair_weight"] = (weight, true)
        means[f"wrong_{kind}s/pair_weight"] = (weight, wrong)
        by = {"pair_weight": weight} | {f"{pair} cosine": found[:, PAIRS.index(pair)] for pair in PAIRS if kind in pair}
        known = true | wrong
        for name, score in by.items():
            areas[f"wrong_{kind}s/{name}_auroc"] = (
                multilabel_statistic(score[known, None], true[known, None].long()),
                known,
            )

    def statistic(drawn: Float[Tensor, "R N"]) -> dict[str, Tensor]:
        averages = {
            name: drawn[:, among] @ values[among].float() / drawn[:, among].sum(1)
            for name, (values, among) in means.items()
        }
        return averages | {name: area(drawn[:, known])["auroc"] for name, (area, known) in areas.items()}

    return statistic


def _groups(truths: Sequence[bool | None]) -> dict[str, Bool[Tensor, " N"]]:
    return {
        name: torch.tensor([each is truth for each in truths])
        for name, truth in (("true", True), ("wrong", False), ("unknown", None))
    }


def _texts(source: Source, place: int, choices: Mapping[str, CaptionChoice]) -> Texts | None:
    """The texts of a sample, drawn alike each time where there are several; None where there is no raw one."""
    with restoring_generators():
        seed_generators(0, place)
        try:
            sample = source.read(place)
            captions = captions_of(sample)
            text, caption = (choices[name](captions) for name in ("text", "caption"))
            truths = _truths(sample)
        except (Undecodable, CorruptSample):
            return None
    if not isinstance(text, str) or isinstance(caption, list):
        raise ValueError("A sample has one text and one caption here: choose with OneCaption.")
    return Texts(text, caption, truths.get(text), None if caption is None else truths.get(caption))


def _truths(sample: Sample) -> dict[str, bool]:
    """Text -> whether it is true, of the captions that say so."""
    entries = value_of(sample, ("captions.json",)) if "captions.json" in sample else []
    return {
        entry["text"]: entry["true"]
        for entry in entries
        if isinstance(entry, dict) and {"text", "true"} <= entry.keys()
    }
