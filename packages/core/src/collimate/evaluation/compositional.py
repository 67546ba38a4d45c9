"""Compositional understanding: does a picture's own caption score above one that is nearly the same, and false?

SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610) and its kin. The field `compositional.json` of a sample, in a table the
column `compositional`, is a list of pairs:

- `{"kind": "swap_att", "caption": "a white dog and a black cat", "negative": "a black dog and a white cat"}`.

A pair is right if the caption has the higher score for the picture; equal scores are wrong. Chance is a half.

Shape legend: T texts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from collimate.data import EvalLoader, Source
from collimate.encoding import Encoding
from collimate.evaluation.bootstrap import confidence_intervals, evaluate
from collimate.evaluation.features import (
    Precision,
    encode_here,
    in_order,
    is_cosine,
    other_modality,
    place,
    processors_of,
    rows_of,
    settings_of,
    stream,
)
from collimate.evaluation.metrics import paired_statistic
from collimate.evaluation.modalities import exhibit_in
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result, one_of_each_sample
from collimate.training import Method

CHANCE = 0.5
TEXTS = ("caption", "negative")


def evaluate_compositional(
    method: Method,
    data: Source,
    text_prefix: str = "",
    modality: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
) -> CompositionalResult:
    """Choose between captions and their hard negatives, by the score of the picture for the text.

    Args:
        method: encodes text and something else.
        data: samples with `compositional.json`; the list may be empty.
        text_prefix: put before each caption, such as "a photo of ".
        modality: what the captions are of; the method's first that is not text unless given.
        batch_size: of each rank.
        num_workers: processes that read and decode.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the encoders; scores are float32 always.
        limit: at most so many samples, spread over the data.
        resamples: of the bootstrap intervals; samples are drawn, with all their pairs.

    Raises:
        ValueError: there is no pair, or a score is NaN.
    """
    modality = modality or other_modality(method)
    tokens = not is_cosine(method)
    where = place(method, device)
    loader = EvalLoader(
        data, processors_of(method, [modality]), batch_size, num_workers, ["compositional.json"], limit=limit
    )
    rows: list[list[Pair]] = []
    index: list[int] = []
    for encodings, batch in stream(method, loader, [modality], tokens, where, precision):
        samples, given = batch["index"].tolist(), batch["compositional.json"]
        texts = list(dict.fromkeys(each[key] for own in given for each in own for key in TEXTS))
        prefixed = [text_prefix + text for text in texts]
        encoded = encode_here(method, "text", prefixed, tokens, where, precision) if texts else None
        for row, (sample, own) in enumerate(zip(samples, given, strict=True)):
            pairs: list[Pair] = []
            if own and encoded is not None:
                both = rows_of(encoded, torch.tensor([texts.index(each[key]) for each in own for key in TEXTS]))
                scores = _scores(method, rows_of(encodings[modality], slice(row, row + 1)), both, where)
                for each, (right, wrong) in zip(own, scores.view(-1, 2).tolist(), strict=True):
                    pairs.append(Pair(sample, each["kind"], each["caption"], each["negative"], right, wrong))
            rows.append(pairs)
        index += samples
    rows = in_order(rows, torch.tensor(index, dtype=torch.int64))
    pairs = [pair for own in rows for pair in own]
    if not pairs:
        raise ValueError(f"{data.name}: no sample has a pair of a caption and a negative.")
    right, wrong = (torch.tensor([getattr(pair, side) for pair in pairs]) for side in ("right", "wrong"))
    statistic = paired_statistic(right, wrong, [pair.kind for pair in pairs])
    groups = torch.tensor([pair.sample for pair in pairs])
    protocol = {
        **settings_of(method, [modality], data, len(rows), limit, precision),
        "pairs": f"{len(pairs)}, of {sum(map(bool, rows))} samples",
        "text prefix": text_prefix or "none",
        "score": "cosine" if is_cosine(method) else f"{type(method).__name__}.similarity, {modality} to text",
        "chance": CHANCE,
        "intervals": f"95 %, {resamples} bootstrap resamples of samples with their pairs",
    }
    return CompositionalResult(
        "Compositional understanding",
        evaluate(statistic, len(pairs)),
        confidence_intervals(statistic, len(pairs), groups, resamples=resamples),
        protocol,
        pairs,
        data,
        modality,
    )


@dataclass(frozen=True)
class Pair:
    """A caption, its negative, and the scores of both.

    Attributes:
        sample: its place in the source.
        kind: what was changed.
        caption, negative: the texts.
        right, wrong: their scores.
    """

    sample: int
    kind: str
    caption: str
    negative: str
    right: float
    wrong: float


@torch.inference_mode()
def _scores(method: Method, one: Encoding, texts: Encoding, device: torch.device) -> Float[Tensor, " T"]:
    scores = method.similarity(one.to(device), texts.to(device))[0].float().cpu()
    if scores.isnan().any():
        raise ValueError("There are scores that are NaN: the model's features are not finite.")
    return scores


@dataclass
class CompositionalResult(Result):
    """Every pair with its scores, beside the numbers."""

    pairs: list[Pair]
    data: Source
    modality: str = "image"

    def __post_init__(self) -> None:
        counts = Counter(pair.kind for pair in self.pairs)
        self.details["pairs"] = dict(sorted(counts.items()))

    def add_to(self, report: Report) -> None:
        from collimate.evaluation import figures

        super().add_to(report)
        names = {f"paired_accuracy/{kind}": f"{kind} ({count})" for kind, count in self.details["pairs"].items()}
        shares = {name: (self.metrics[metric], CHANCE) for metric, name in names.items()}
        intervals = {name: self.intervals[metric] for metric, name in names.items()}
        caption = (
            "Share of pairs in which the caption scores above its negative, with 95 % intervals; the stroke is chance."
        )
        report.add_figure(figures.shares(shares, intervals), caption)
        report.add_examples(*self.examples())

    def examples(self, count: int = 6) -> tuple[list[tuple[Any, str]], list[tuple[Any, str]]]:
        """Samples with both texts: the surest hits and the surest mistakes, one pair of each sample."""
        order = sorted(self.pairs, key=lambda pair: pair.wrong - pair.right)
        hits = one_of_each_sample(pair for pair in order if pair.right > pair.wrong)
        misses = one_of_each_sample(pair for pair in reversed(order) if pair.right <= pair.wrong)
        return tuple(  # type: ignore[return-value]
            [
                (exhibit, f"{pair.kind}: “{pair.caption}” {pair.right:.3f}; “{pair.negative}” {pair.wrong:.3f}")
                for pair in several[:count]
                if (exhibit := exhibit_in(self.data.read(pair.sample), self.modality)) is not None
            ]
            for several in (hits, misses)
        )
