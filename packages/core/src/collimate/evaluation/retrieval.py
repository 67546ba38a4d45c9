"""Retrieval in both directions, with any number of captions for each sample.

Shape legend: N samples, T texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from collimate.data import Source
from collimate.encoding import Encoding
from collimate.evaluation.bootstrap import confidence_intervals, evaluate
from collimate.evaluation.features import (
    Features,
    Precision,
    encode_all,
    extract,
    is_cosine,
    other_modality,
    picture_of,
    rows_of,
)
from collimate.evaluation.metrics import RECALLS, Scorer, retrieval_ranks, retrieval_statistic
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result
from collimate.training import Method

PAIRS = 2**12  # scores taken at a time, where they need tokens


def evaluate_retrieval(
    method: Method,
    data: Source | Features,
    text_prefix: str = "",
    modality: str | None = None,
    recalls: Sequence[int] = RECALLS,
    max_captions: int | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
) -> RetrievalResult:
    """Find samples by their captions, and captions by their samples.

    Args:
        method: encodes text and something else.
        data: samples with captions, or features extracted with `also=["captions"]`.
        text_prefix: put before each caption, such as "a photo of ".
        modality: what is searched beside texts; the method's first that is not text unless given.
        recalls: the k of the recalls.
        max_captions: at most so many of a sample's captions, the first ones; all unless given.
        batch_size: of each rank.
        num_workers: processes that read and decode.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the encoders; scores are float32 always.
        limit: at most so many samples, spread over the data.
        resamples: of the bootstrap intervals; samples are drawn, with all their captions.
    """
    modality = modality or other_modality(method)
    tokens = not is_cosine(method)
    if not isinstance(data, Features):
        data = extract(
            method, data, [modality], ["captions"], tokens, batch_size, num_workers, device, precision, limit
        )
    captions = [own[:max_captions] for own in data.extras["captions"]]
    owner = torch.arange(len(captions)).repeat_interleave(torch.tensor([len(own) for own in captions]))
    flat = [caption for own in captions for caption in own]
    prefixed = [text_prefix + caption for caption in flat]
    texts = encode_all(method, "text", prefixed, tokens, device=device, precision=precision)
    samples = data.encodings[modality]
    to_sample, to_text = scorer(method, texts, samples), scorer(method, samples, texts)
    sample_ranks, text_ranks = retrieval_ranks(to_sample, to_text, len(captions), owner)
    statistic = retrieval_statistic(sample_ranks, text_ranks, owner, recalls, (modality, "text"))
    metrics = evaluate(statistic, len(captions))
    intervals = confidence_intervals(statistic, len(captions), resamples=resamples)
    protocol = {
        **data.settings,
        "texts": f"{len(flat)}, {'all captions' if max_captions is None else f'at most {max_captions} a sample'}",
        "text prefix": text_prefix or "none",
        "score": "cosine" if is_cosine(method) else f"{type(method).__name__}.similarity",
        "intervals": f"95 %, {resamples} bootstrap resamples of samples with their captions",
    }
    return RetrievalResult(
        "Retrieval", metrics, intervals, protocol, sample_ranks, text_ranks, owner, flat, data, modality
    )


def scorer(method: Method, queries: Encoding, keys: Encoding) -> Scorer:
    """Scores of some queries against some keys, on the CPU; by blocks on the method's device where they need tokens."""
    if is_cosine(method):
        left, right = normalize(queries.pooled, dim=-1), normalize(keys.pooled, dim=-1)
        return lambda rows, columns: left[rows] @ right[columns].T

    @torch.inference_mode()
    def scores(rows: slice, columns: slice) -> Tensor:
        some = rows_of(queries, rows).to(method.device)
        candidates = rows_of(keys, columns)
        step = max(1, PAIRS // len(some.pooled))
        blocks = [
            method.similarity(some, rows_of(candidates, slice(first, first + step)).to(method.device)).float().cpu()
            for first in range(0, len(candidates.pooled), step)
        ]
        return torch.cat(blocks, 1)

    return scores


@dataclass
class RetrievalResult(Result):
    """The rank, from 0, of each text's sample (T,) and of each sample's best text (N,), beside the numbers."""

    sample_ranks: Tensor
    text_ranks: Tensor
    sample_of_text: Tensor
    captions: list[str]
    features: Features
    modality: str = "image"

    def add_to(self, report: Report) -> None:
        from collimate.evaluation import figures

        super().add_to(report)
        curves = {f"find the {self.modality}": self.sample_ranks, "find the text": self.text_ranks}
        sizes = {f"find the {self.modality}": len(self.text_ranks), "find the text": len(self.sample_ranks)}
        caption = "Share of queries whose right answer is among the k best; dashed: chance, with one right answer."
        report.add_figure(figures.recall_curves(curves, sizes), caption)
        report.add_examples(*self.examples())

    def examples(self, count: int = 6) -> tuple[list[tuple[Any, str]], list[tuple[Any, str]]]:
        """Pictures found by captions, rightly; and those whose caption ranked them lowest."""
        order = self.sample_ranks.argsort(stable=True).tolist()
        best = {int(self.sample_of_text[text]): text for text in reversed(order)}  # of each sample, its best caption
        worst = {int(self.sample_of_text[text]): text for text in order}
        hits = [text for text in sorted(best.values()) if self.sample_ranks[text] == 0][:count]
        missed = [text for text in worst.values() if self.sample_ranks[text] > 0]
        misses = sorted(missed, key=lambda text: -int(self.sample_ranks[text]))[:count]
        described = (
            [(text, self.captions[text]) for text in hits],
            [(text, f"{self.captions[text]} (found at rank {int(self.sample_ranks[text]) + 1})") for text in misses],
        )
        return tuple(  # type: ignore[return-value]
            [
                (picture, caption)
                for text, caption in some
                if (picture := picture_of(self.features, int(self.sample_of_text[text]))) is not None
            ]
            for some in described
        )
