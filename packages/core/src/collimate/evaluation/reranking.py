"""Re-ranking: what a fast score ranks highest is ranked again by a network that reads both sides together.

Li et al. 2021, ALBEF, arXiv 2107.07651 (image-text retrieval); also in TCL and ALPRO. Of each query, the k best keys by
the method's `similarity` are sorted anew by `rerank`; all others keep their places below them. Each pair of a sample
and a text is read once, whether the sample found the text, the text the sample, or both.

Departure: of keys of equal score the earlier one by the fast score stays before the other.

Shape legend: N samples, T texts, Q queries, K keys, k candidates of each query, P pairs.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from collimate import distributed
from collimate.encoding import Encoding
from collimate.evaluation.features import Precision, autocast, evaluating, progress_of, rows_of
from collimate.evaluation.index import Rows, has_tokens, longest, take
from collimate.training import Method

PAIR_TOKENS = 2**17  # tokens of pairs that are read at a time: some 200 pictures of 24 x 24 patches with their texts


@runtime_checkable
class Reranker(Protocol):
    """A method that scores a sample and a text by reading both together."""

    def rerank(self, sample: Encoding, text: Encoding, /) -> Float[Tensor, " P"]:
        """How well sample i fits text i; larger is better, on any scale.

        Args:
            sample: P pictures (videos, sounds...) as the method's `encode` gives them, with their tokens.
            text: P texts likewise.
        """
        ...


def check_reranker(method: Method, k: int) -> None:
    """Refuse what cannot be re-ranked.

    Raises:
        ValueError: the method has no such score, or there is nothing to rank.
    """
    if not isinstance(method, Reranker):
        raise ValueError(f"{type(method).__name__} has no `rerank`, so it cannot re-rank: leave the option out.")
    if k < 1:
        raise ValueError(f"Re-ranking takes the best 1 or more of each query, not {k}.")


def pair_scores(
    method: Method,
    samples: Rows,
    texts: Rows,
    texts_of_samples: Int64[Tensor, "N k"],
    samples_of_texts: Int64[Tensor, "T k"],
    precision: Precision = "float32",
) -> tuple[Float[Tensor, "N k"], Float[Tensor, "T k"]]:
    """`method.rerank` of each query with its candidates, both ways. The ranks share the work, and all get all of it.

    Held are the candidates, their scores, and the tokens of some pairs.

    Args:
        method: on its device, a `Reranker`.
        samples, texts: with tokens.
        texts_of_samples, samples_of_texts: the candidates of each.
        precision: of the network.

    Raises:
        ValueError: the encodings have no tokens, or a score is NaN.
    """
    for side, rows in (("samples", samples), ("texts", texts)):
        if not has_tokens(rows):
            raise ValueError(f"Re-ranking needs the tokens of the {side}: extract features with `tokens=True`.")
    count = len(samples_of_texts)  # T; a pair is numbered by its sample, then its text
    by_sample = torch.arange(len(texts_of_samples))[:, None] * count + texts_of_samples
    by_text = samples_of_texts * count + torch.arange(count)[:, None]
    pairs = torch.cat([by_sample.flatten(), by_text.flatten()]).unique()  # sorted: a sample's tokens are read once
    scores = _scores(method, samples, texts, pairs // count, pairs % count, precision)
    if scores.isnan().any():
        raise ValueError(f"{type(method).__name__}.rerank gives scores that are NaN.")
    return scores[torch.searchsorted(pairs, by_sample)], scores[torch.searchsorted(pairs, by_text)]


def reranked(
    first: Int64[Tensor, " Q"],
    candidates: Int64[Tensor, "Q k"],
    scores: Float[Tensor, "Q k"],
    query_groups: Int64[Tensor, " Q"],
    key_groups: Int64[Tensor, " K"],
) -> Int64[Tensor, " Q"]:
    """The rank, from 0, of the best key of each query's own group, once its candidates are sorted anew.

    Args:
        first: that rank by the fast score; it stays where no candidate is of the group.
        candidates: the k best keys of each query, the best one first.
        scores: theirs.
        query_groups, key_groups: a key answers a query if they are of the same group.
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    right = key_groups[candidates.gather(1, order)] == query_groups[:, None]
    return torch.where(right.any(1), right.int().argmax(1), first)


def _scores(
    method: Method,
    samples: Rows,
    texts: Rows,
    left: Int64[Tensor, " P"],
    right: Int64[Tensor, " P"],
    precision: Precision,
) -> Float[Tensor, " P"]:
    """The score of each pair, by its places on both sides."""
    step = max(1, PAIR_TOKENS // (longest(samples) + longest(texts)))
    firsts = range(0, len(left), step)[distributed.rank() :: distributed.world_size()]
    found, places = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
    mine = sum(min(step, len(left) - first) for first in firsts)
    with progress_of(mine, "Re-ranking pairs") as done, evaluating(method), torch.inference_mode():
        for first in firsts:
            some = slice(first, first + step)
            sides = _gathered(samples, left[some], method), _gathered(texts, right[some], method)
            with autocast(method.device, precision):
                scores = method.rerank(*sides)  # type: ignore[operator]
            found.append(scores.float().cpu())
            places.append(torch.arange(first, first + len(scores)))
            done(len(scores))
    gathered = torch.cat(found).to(method.device), torch.cat(places).to(method.device)
    return distributed.gather_ordered(*gathered).cpu()


def _gathered(side: Rows, places: Int64[Tensor, " P"], method: Method) -> Encoding:
    """One row a pair, on the method's device; each is read and carried there once."""
    unique, where = places.unique(return_inverse=True)
    return rows_of(take(side, unique).to(method.device), where.to(method.device))
