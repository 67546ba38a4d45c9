"""Retrieval in both directions, with any number of captions for each sample.

Where a method's score needs tokens, or re-ranking does, these go through files (`collimate.evaluation.index`), so that
a set of any size is ranked in bounded memory; the ranks share the work.

Shape legend: N samples, T texts, Q queries, K keys, k candidates for re-ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from collimate import distributed
from collimate.data import Sample, Source
from collimate.evaluation.bootstrap import Statistic, confidence_intervals, evaluate
from collimate.evaluation.embedding import Part, write_embeddings
from collimate.evaluation.features import (
    Features,
    Precision,
    encode_all,
    exhibit_of,
    extract,
    is_cosine,
    other_modality,
    progress_of,
    settings_of,
)
from collimate.evaluation.index import SCORES, EmbeddingIndex, Rows, scorer
from collimate.evaluation.metrics import RECALLS, check_owners, ranks, retrieval_statistic
from collimate.evaluation.report import Report
from collimate.evaluation.reranking import check_reranker, pair_scores, reranked
from collimate.evaluation.result import Result
from collimate.training import Method


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
    index: str | Path | None = None,
    identity: Mapping[str, Any] | None = None,
    rerank: int | None = None,
    windows: int = 1,
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
        index: a folder in which the tokens are kept, for methods whose score needs them; the same evaluation goes on
            from what is there. A temporary folder unless given. All ranks must see it.
        identity: what else must be the same for a kept index to be used; see `write_embeddings`.
        rerank: rank so many of each query's best anew by `method.rerank`, all if there are fewer, and report both; see
            `collimate.evaluation.reranking`.
        windows: of samples that are longer than the encoder's input, the mean over so many windows; not where scores
            need tokens.

    Raises:
        ValueError: the method cannot re-rank, or its scores need tokens and there are windows.
    """
    if rerank is not None:
        check_reranker(method, rerank)
    modality = modality or other_modality(method)
    tokens = rerank is not None or not is_cosine(method)
    with _encoded(
        method, data, modality, text_prefix, max_captions, batch_size, num_workers, device, precision, limit, index,
        identity, tokens, windows,
    ) as (features, samples, texts):  # fmt: skip
        captions = [own[:max_captions] for own in features.extras["captions"]]
        owner = torch.arange(len(captions)).repeat_interleave(torch.tensor([len(own) for own in captions]))
        check_owners(len(captions), owner)
        everyone = torch.arange(len(captions))
        to_samples = _ranks(method, texts, samples, owner, everyone, f"Ranking {modality}s", rerank or 0)
        to_texts = _ranks(method, samples, texts, everyone, owner, "Ranking texts", rerank or 0)
        found = [Found(to_samples.ranks, to_texts.ranks)]
        if rerank is not None:
            scores = pair_scores(method, samples, texts, to_texts.leading, to_samples.leading, precision)
            found.append(
                Found(
                    reranked(to_samples.ranks, to_samples.leading, scores[1], owner, everyone),
                    reranked(to_texts.ranks, to_texts.leading, scores[0], everyone, owner),
                )
            )
    flat = [caption for own in captions for caption in own]
    statistic = _statistic(found, owner, recalls, (modality, "text"))
    metrics = evaluate(statistic, len(captions))
    intervals = confidence_intervals(statistic, len(captions), resamples=resamples)
    protocol = {
        **features.settings,
        "texts": f"{len(flat)}, {'all captions' if max_captions is None else f'at most {max_captions} a sample'}",
        "text prefix": text_prefix or "none",
        "score": "cosine" if is_cosine(method) else f"{type(method).__name__}.similarity",
        **({} if rerank is None else {"re-ranking": f"the {rerank} best, by {type(method).__name__}.rerank"}),
        "intervals": f"95 %, {resamples} bootstrap resamples of samples with their captions",
    }
    return RetrievalResult(
        "Retrieval", metrics, intervals, protocol, *found[-1], owner, flat, features, modality, found[:-1]
    )


def evaluate_retrieval_between(
    method: Method,
    data: Source | Features,
    modality: str,
    against: str,
    recalls: Sequence[int] = RECALLS,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
) -> RetrievalResult:
    """Find samples of one modality by those of another, neither of them text, and the reverse.

    Args:
        method: encodes both, and ranks by the cosine.
        data: samples that have both, or features of both. Samples that lack one are left out.
        modality, against: the two.
        recalls, batch_size, num_workers, device, precision, limit, resamples: as for `evaluate_retrieval`.

    Raises:
        ValueError: the method's scores need tokens, or it has no such modality.
    """
    if not is_cosine(method):
        raise ValueError(f"{type(method).__name__} does not rank by the cosine: it ranks texts and one modality alone.")
    if not isinstance(data, Features):
        options = (batch_size, num_workers, device, precision, limit)
        data = extract(method, data, [modality, against], (), False, *options)
    everyone = torch.arange(len(data))
    samples, others = data.encodings[modality], data.encodings[against]
    to_samples = _ranks(method, others, samples, everyone, everyone, f"Ranking {modality}s")
    to_others = _ranks(method, samples, others, everyone, everyone, f"Ranking {against}s")
    found = Found(to_samples.ranks, to_others.ranks)
    statistic = _statistic([found], everyone, recalls, (modality, against))
    metrics = evaluate(statistic, len(data))
    intervals = confidence_intervals(statistic, len(data), resamples=resamples)
    intervals_of = f"95 %, {resamples} bootstrap resamples of samples"
    protocol = {**data.settings, "score": "cosine", "intervals": intervals_of}
    return RetrievalResult(
        "Retrieval", metrics, intervals, protocol, *found, everyone, data.keys, data, modality, against=against
    )


class Found(NamedTuple):
    """The rank, from 0, of each text's sample (T,) and of each sample's best text (N,)."""

    sample_ranks: Int64[Tensor, " T"]
    text_ranks: Int64[Tensor, " N"]


@contextmanager
def _encoded(
    method: Method,
    data: Source | Features,
    modality: str,
    text_prefix: str,
    max_captions: int | None,
    batch_size: int,
    num_workers: int,
    device: str,
    precision: Precision,
    limit: int | None,
    index: str | Path | None,
    identity: Mapping[str, Any] | None,
    tokens: bool,
    windows: int,
) -> Iterator[tuple[Features, Rows, Rows]]:
    """What the samples are, their encodings, and those of their captions one after the other."""

    def texts_of(features: Features) -> list[str]:
        return [text_prefix + caption for own in features.extras["captions"] for caption in own[:max_captions]]

    if not tokens or isinstance(data, Features):
        if not isinstance(data, Features):
            data = extract(
                method,
                data,
                [modality],
                ["captions"],
                False,
                batch_size,
                num_workers,
                device,
                precision,
                limit,
                windows,
            )
        texts = encode_all(method, "text", texts_of(data), tokens, device=device, precision=precision)
        yield data, data.encodings[modality], texts
        return
    if windows > 1:
        raise ValueError("Scores of tokens hear one window of each sample: leave `windows` at 1.")
    size = len(data) if limit is None else min(limit, len(data))
    some = Part(data, [place * len(data) // size for place in range(size)])
    options = {
        "batch_size": batch_size, "num_workers": num_workers, "device": device, "precision": precision,
        "identity": {**(identity or {}), "data": data.name}, "tokens": True,
    }  # fmt: skip
    with _shared_folder(index) as folder:
        write_embeddings(method, some, folder / modality, [modality], also=["captions"], **options)
        samples = EmbeddingIndex(folder / modality)
        features = Features(
            {},
            torch.tensor(some.places)[samples.places],
            samples.keys(),
            {"captions": samples.beside("captions")},
            data,
            settings_of(method, [modality], data, len(samples), limit, precision),
        )
        options["identity"] |= {"prefix": text_prefix, "captions": max_captions}
        write_embeddings(method, _Texts(texts_of(features)), folder / "text", ["text"], **options)
        yield features, samples, EmbeddingIndex(folder / "text")


class _Ranks(NamedTuple):
    """The rank, from 0, of each query's best right key, and its k best keys of all, the best one first."""

    ranks: Int64[Tensor, " Q"]
    leading: Int64[Tensor, "Q k"]


def _ranks(
    method: Method, queries: Rows, keys: Rows, query_groups: Tensor, key_groups: Tensor, text: str, leading: int = 0
) -> _Ranks:
    """`metrics.ranks`, the blocks of queries shared out over the ranks; and as many leading keys of each query."""
    block = max(1, SCORES // max(len(key_groups), 1))
    firsts = range(0, len(query_groups), block)[distributed.rank() :: distributed.world_size()]
    found, places = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    best = [torch.empty(0, min(leading, len(key_groups)), dtype=torch.int64)]
    pairs = sum(min(block, len(query_groups) - first) for first in firsts) * len(key_groups)
    with progress_of(pairs, text) as done:
        score = scorer(method, queries, keys, done)
        for first in firsts:
            own = query_groups[first : first + block]
            scores = score(slice(first, first + len(own)), slice(0, len(key_groups)))
            found.append(ranks(lambda rows, columns, scores=scores: scores[rows, columns], own, key_groups))
            places.append(torch.arange(first, first + len(own)))
            if leading:  # of equal ones the first, as for the ranks
                best.append(scores.sort(dim=1, descending=True, stable=True).indices[:, :leading])
    mine, positions = torch.cat(found).to(method.device), torch.cat(places).to(method.device)
    gathered = distributed.gather_ordered(mine, positions).cpu()
    if not leading:
        return _Ranks(gathered, torch.empty(len(gathered), 0, dtype=torch.int64))
    return _Ranks(gathered, distributed.gather_ordered(torch.cat(best).to(method.device), positions).cpu())


def _statistic(found: Sequence[Found], owner: Tensor, recalls: Sequence[int], names: tuple[str, str]) -> Statistic:
    """The metrics of the first ranks and, with `reranked_` in front, those of further ones."""
    statistics = [retrieval_statistic(*each, owner, recalls, names) for each in found]

    def statistic(weights: Tensor) -> dict[str, Tensor]:
        first, *further = (each(weights) for each in statistics)
        return {**first, **{f"reranked_{name}": value for each in further for name, value in each.items()}}

    return statistic


@contextmanager
def _shared_folder(folder: str | Path | None) -> Iterator[Path]:
    """The folder, or a temporary one of the first rank, that all ranks use.

    Raises:
        FileNotFoundError: a rank does not see it.
    """
    with TemporaryDirectory(prefix="collimate-") as temporary:
        shared = Path(folder or distributed.gather_objects(temporary)[0])
        if folder is None and not shared.is_dir():
            raise FileNotFoundError(f"This rank does not see {shared}: set `index` to a folder that all ranks see.")
        yield shared
        distributed.barrier("ranking")


class _Texts(Source):
    """Captions as samples, one after the other."""

    name = "captions"

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, index: int) -> Sample:
        return {"__key__": str(index), "__source__": self.name, "txt": self.texts[index]}


@dataclass
class RetrievalResult(Result):
    """The rank, from 0, of each text's sample (T,) and of each sample's best text (N,), beside the numbers.

    Where nothing is text, `against` takes the place of the texts, and `captions` are the samples' keys.
    Where there was re-ranking these are the ranks after it, and `before` holds those of the fast score.
    """

    sample_ranks: Tensor
    text_ranks: Tensor
    sample_of_text: Tensor
    captions: list[str]
    features: Features
    modality: str = "image"
    before: Sequence[Found] = ()
    against: str = "text"

    def add_to(self, report: Report) -> None:
        from collimate.evaluation import figures

        super().add_to(report)
        curves, sizes = {}, {}
        for how, found in (*((", fast score", each) for each in self.before), ("", self)):
            curves |= {
                f"find the {self.modality}{how}": found.sample_ranks,
                f"find the {self.against}{how}": found.text_ranks,
            }
            sizes |= {
                f"find the {self.modality}{how}": len(found.text_ranks),
                f"find the {self.against}{how}": len(found.sample_ranks),
            }
        caption = "Share of queries whose right answer is among the k best; dashed: chance, with one right answer."
        report.add_figure(figures.recall_curves(curves, sizes), caption)
        report.add_examples(*self.examples())

    def examples(self, count: int = 6) -> tuple[list[tuple[Any, str]], list[tuple[Any, str]]]:
        """Samples found by captions, rightly; and those whose caption ranked them lowest."""
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
                (exhibit, caption)
                for text, caption in some
                if (exhibit := exhibit_of(self.features, int(self.sample_of_text[text]), self.modality)) is not None
            ]
            for some in described
        )
