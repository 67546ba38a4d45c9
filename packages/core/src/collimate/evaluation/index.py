"""Search in embeddings that lie in files, by any method's own score: tokens are read and scored some at a time.

Late interaction compares every token of a query with every token of a key. Neither the tokens nor their similarities
are ever in memory as a whole: what is held is a block of queries, a block of keys, and `TOKEN_SCORES` numbers between
their tokens.

Shape legend: Q queries, K keys, N samples of an index, L tokens, D width.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable
from math import isqrt
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import normalize

from collimate.encoding import Encoding
from collimate.evaluation.embedding import PLAN
from collimate.evaluation.features import is_cosine, progress, rows_of
from collimate.evaluation.metrics import Scorer
from collimate.training import Method

TOKEN_SCORES = 2**24  # similarities between tokens held at a time, 64 MiB
SCORES = 2**22  # scores held at a time, 16 MiB; ranking them takes a few times as much


class EmbeddingIndex:
    """What `write_embeddings` wrote of one modality, read where it lies.

    Opened, it holds the samples' places and where their tokens begin; vectors and tokens stay in the files.

    Args:
        folder: what `write_embeddings` wrote.
        modality: one of those that it holds; needed where it holds several.

    Attributes:
        modality: its name.
        places: int64 (N,), each sample's place in the source.
        grid: of the tokens, where they lie on one.
        longest: the largest number of tokens of a sample; 0 without tokens.

    Raises:
        FileNotFoundError: there are no embeddings in the folder.
        ValueError: they are not of this modality.
    """

    def __init__(self, folder: str | PathLike[str], modality: str | None = None) -> None:
        self.folder = Path(folder)
        paths = sorted(self.folder.glob("*.safetensors"))
        if not paths or not (self.folder / PLAN).is_file():
            raise FileNotFoundError(f"There are no embeddings in {folder}.")
        self.plan: dict[str, Any] = json.loads((self.folder / PLAN).read_text())
        held = self.plan["modalities"]
        if modality not in held and not (modality is None and len(held) == 1):
            raise ValueError(f"{folder} holds embeddings of {', '.join(held)}: say of which.")
        self.modality: str = modality or held[0]
        self._files = [_File(path, self.modality) for path in paths]
        self._firsts = [0]
        for file in self._files:
            self._firsts.append(self._firsts[-1] + len(file))
        self.places: Int64[Tensor, " N"] = torch.cat([file.places for file in self._files])
        self.grid = self._files[0].grid
        self.longest = max(file.longest for file in self._files)

    def __len__(self) -> int:
        return self._firsts[-1]

    def rows(self, rows: slice) -> Encoding:
        """Some samples, in float32, their tokens padded to the longest of them."""
        start, stop, _ = rows.indices(len(self))
        parts = []
        number = max(0, bisect_right(self._firsts, start) - 1)
        while number < len(self._files) and self._firsts[number] < stop:
            first, file = self._firsts[number], self._files[number]
            parts.append(file.rows(max(start - first, 0), min(stop - first, len(file))))
            number += 1
        return Encoding.cat(parts) if parts else self._files[0].rows(0, 0)

    def take(self, places: Int64[Tensor, " n"]) -> Encoding:
        """Any samples, by their places in the index, in any order; otherwise as `rows`."""
        numbers = torch.searchsorted(torch.tensor(self._firsts[1:]), places, right=True)
        parts, order = [], []
        for number in numbers.unique().tolist():
            here = (numbers == number).nonzero().flatten()
            parts.append(self._files[number].take(places[here] - self._firsts[number]))
            order.append(here)
        return rows_of(Encoding.cat(parts), torch.cat(order).argsort()) if parts else self._files[0].rows(0, 0)

    def vectors(self) -> Float[Tensor, "N D"]:
        """All samples' vectors, without their tokens."""
        return torch.cat([file.vectors() for file in self._files])

    def keys(self) -> list[str]:
        """The samples' names."""
        return self.beside("keys")

    def beside(self, name: str) -> list[Any]:
        """What was written beside the embeddings, such as `captions`: one value a sample."""
        return [
            value for file in self._files for value in json.loads(file.path.with_suffix(f".{name}.json").read_text())
        ]

    def search(self, method: Method, queries: Encoding, k: int = 10) -> Nearest:
        """The k best samples for each query by the method's own score.

        Args:
            method: whose embeddings these are.
            queries: as `method.encode` gives them, of another modality or of the same.
            k: how many.
        """
        count = len(queries.pooled)
        found = Nearest(torch.empty(count, 0), torch.empty(count, 0, dtype=torch.int64))
        score, everyone = scorer(method, queries, self), slice(0, count)
        step = max(1, SCORES // max(count, 1))
        for first in progress(range(0, len(self), step), f"Searching {len(self)} x {self.modality}"):
            columns = slice(first, min(first + step, len(self)))
            scores = torch.cat([found.scores, score(everyone, columns)], 1)
            places = torch.arange(columns.start, columns.stop).expand(len(scores), -1)
            best = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]  # of equal ones, the first
            found = Nearest(scores.gather(1, best), torch.cat([found.places, places], 1).gather(1, best))
        return found


class Nearest(NamedTuple):
    """The best keys of each query, the best one first.

    Attributes:
        scores: (Q, k).
        places: their places in the index, (Q, k).
    """

    scores: Float[Tensor, "Q k"]
    places: Int64[Tensor, "Q k"]


Rows = Encoding | EmbeddingIndex
"""Encoded samples, in memory or in files."""


def scorer(method: Method, queries: Rows, keys: Rows, done: Callable[[int], object] = lambda pairs: None) -> Scorer:
    """Scores of some queries against some keys, on the CPU.

    Those that need tokens are taken on the method's device, at most `TOKEN_SCORES` token similarities at a time.

    Args:
        method: whose score.
        queries, keys: what is compared.
        done: called with the number of pairs that were scored, as they are.
    """
    if is_cosine(method):
        left, right = (normalize(_vectors(side), dim=-1) for side in (queries, keys))

        def cosine(rows: slice, columns: slice) -> Tensor:
            found = left[rows] @ right[columns].T
            done(found.numel())
            return found

        return cosine

    pairs = max(1, TOKEN_SCORES // (longest(queries) * longest(keys)))

    @torch.inference_mode()
    def scores(rows: slice, columns: slice) -> Tensor:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        across = max(1, min(height, isqrt(pairs)))
        found = torch.empty(height, width)
        for top in _steps(height, across):
            some = _rows(queries, _within(rows, top)).to(method.device)
            for left in _steps(width, max(1, pairs // len(some.pooled))):
                others = _rows(keys, _within(columns, left)).to(method.device)
                found[top, left] = method.similarity(some, others).float().cpu()
                done(len(some.pooled) * len(others.pooled))
        return found

    return scores


def take(side: Rows, places: Int64[Tensor, " n"]) -> Encoding:
    """Any samples, by their places, in any order."""
    return side.take(places) if isinstance(side, EmbeddingIndex) else rows_of(side, places)


def longest(side: Rows) -> int:
    """The largest number of tokens of a sample; 1 without tokens."""
    if isinstance(side, EmbeddingIndex):
        return max(1, side.longest)
    return 1 if side.tokens is None else max(1, side.tokens.shape[1])


def has_tokens(side: Rows) -> bool:
    return side.longest > 0 if isinstance(side, EmbeddingIndex) else side.tokens is not None


class _File:
    """One file of an index."""

    def __init__(self, path: Path, modality: str) -> None:
        self.path, self.modality = path, modality
        self._file: Any = safe_open(path, "pt")
        self._has_tokens = f"{modality}.tokens" in self._file.keys()  # noqa: SIM118 - it is no dict
        self.places: Int64[Tensor, " N"] = self._file.get_tensor("index")
        self._offsets = self._file.get_tensor(f"{modality}.offsets") if self._has_tokens else None
        self.longest = 0 if self._offsets is None or not len(self) else int(self._offsets.diff().max())
        grid = (self._file.metadata() or {}).get(f"{modality}.grid")
        self.grid: tuple[int, ...] | None = tuple(json.loads(grid)) if grid else None

    def __len__(self) -> int:
        return len(self.places)

    def rows(self, start: int, stop: int) -> Encoding:
        pooled = self._file.get_slice(self.modality)[start:stop].float()
        if self._offsets is None:
            return Encoding(pooled)
        offsets = self._offsets[start : stop + 1]
        flat = self._file.get_slice(f"{self.modality}.tokens")[int(offsets[0]) : int(offsets[-1])].float()
        lengths = offsets.diff()
        longest = int(lengths.max()) if len(lengths) else 0
        real: Bool[Tensor, "n L"] = torch.arange(longest) < lengths[:, None]
        if real.all():
            grid = self.grid if longest else None
            return Encoding(pooled, flat.view(len(pooled), longest, flat.shape[1]), None, grid)
        tokens = flat.new_zeros(*real.shape, flat.shape[1])
        tokens[real] = flat
        return Encoding(pooled, tokens, real)

    def take(self, rows: Int64[Tensor, " n"]) -> Encoding:
        """Any rows. The file is mapped into memory, and only what is asked for is read."""
        pooled = self._file.get_tensor(self.modality)[rows].float()
        if self._offsets is None:
            return Encoding(pooled)
        first, lengths = self._offsets[rows], self._offsets[rows + 1] - self._offsets[rows]
        steps = torch.arange(int(lengths.max()))
        real: Bool[Tensor, "n L"] = steps < lengths[:, None]
        flat = self._file.get_tensor(f"{self.modality}.tokens")
        tokens = flat[(first[:, None] + steps).where(real, first[:, None].clamp_max(len(flat) - 1))].float()
        if real.all():
            return Encoding(pooled, tokens, None, self.grid if len(steps) else None)
        return Encoding(pooled, tokens.masked_fill(~real[..., None], 0), real)

    def vectors(self) -> Float[Tensor, "n D"]:
        return self._file.get_tensor(self.modality).float()


def _rows(side: Rows, rows: slice) -> Encoding:
    return side.rows(rows) if isinstance(side, EmbeddingIndex) else rows_of(side, rows)


def _vectors(side: Rows) -> Float[Tensor, "N D"]:
    return side.vectors() if isinstance(side, EmbeddingIndex) else side.pooled


def _steps(size: int, most: int) -> list[slice]:
    """A range in equal steps of at most so many: a short last one would cost as much as a whole one."""
    step = -(-size // -(-size // most)) if size else 1
    return [slice(first, min(first + step, size)) for first in range(0, size, step)]


def _within(outer: slice, inner: slice) -> slice:
    return slice(outer.start + inner.start, outer.start + inner.stop)
