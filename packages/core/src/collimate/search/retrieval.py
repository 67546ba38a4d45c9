"""How well a space joins: one modality is searched by another, by models that never met in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from collimate.data import Sample, Source
from collimate.evaluation.features import Features, Precision, extract
from collimate.evaluation.retrieval import RetrievalResult, evaluate_retrieval_between
from collimate.search.space import Space


def evaluate_between_models(
    space: Space,
    one: tuple[str, Source],
    other: tuple[str, Source],
    batch_size: int = 64,
    num_workers: int = 0,
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
) -> RetrievalResult:
    """Find samples of one modality by those of another, and the reverse; the right answer is the one of its place.

    Args:
        space: whose models encode.
        one, other: modality and data. Sample i of both is of one scene, one patient, ...; they may be one source.
        batch_size, num_workers, precision, limit, resamples: as for `evaluate_retrieval`.

    Returns:
        recalls and ranks, with the chance of each recall in the protocol.

    Raises:
        ValueError: the data sets are of unequal length, or nothing could be read.
    """
    (modality, data), (against, counterparts) = one, other
    if len(data) != len(counterparts):
        raise ValueError(
            f"{data.name} has {len(data)} samples and {counterparts.name} {len(counterparts)}: they are no pairs."
        )
    pairs = data if data is counterparts else _Pairs(data, counterparts)
    found = [
        extract(
            space.method(name),
            pairs,
            [name],
            batch_size=batch_size,
            num_workers=num_workers,
            device=str(space.device),
            precision=precision,
            limit=limit,
        )
        for name in (modality, against)
    ]
    both = _paired(found, (modality, against))
    result = evaluate_retrieval_between(space.method(modality), both, modality, against, resamples=resamples)
    recalls = (name for name in result.metrics if f"{modality}_retrieval_recall@" in name)
    result.protocol["chance"] = {
        f"recall@{k}": min(1.0, int(k) / len(both)) for k in (name.rpartition("@")[2] for name in recalls)
    }
    result.protocol["models"] = [space.names[modality], space.names[against]]
    return result


class _Pairs(Source):
    """Two sources side by side; under a key that both have, a sample has the first one's value."""

    def __init__(self, first: Source, second: Source) -> None:
        self.first, self.second = first, second
        self.name = f"{first.name} beside {second.name}"

    def __len__(self) -> int:
        return len(self.first)

    def read(self, index: int) -> Sample:
        return {**self.second.read(index), **self.first.read(index)}


def _paired(found: Sequence[Features], modalities: Sequence[str]) -> Features:
    """The samples that both could read."""
    everywhere = sorted(set(found[0].index.tolist()).intersection(found[1].index.tolist()))
    if not everywhere:
        raise ValueError(f"{found[0].settings['data']}: no pair can be read.")
    index = torch.tensor(everywhere)
    rows = [torch.searchsorted(each.index, index) for each in found]
    encodings = {
        name: each.encodings[name].replace(pooled=each.encodings[name].pooled[own])
        for name, each, own in zip(modalities, found, rows, strict=True)
    }
    settings: dict[str, Any] = {**found[0].settings, "samples": len(index)}
    settings["preprocessing"] = {**found[0].settings["preprocessing"], **found[1].settings["preprocessing"]}
    keys = [found[0].keys[row] for row in rows[0].tolist()]
    return Features(encodings, index, keys, source=found[0].source, settings=settings)
