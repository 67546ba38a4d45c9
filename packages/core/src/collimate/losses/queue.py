"""A queue of past features as further negatives (He et al. 2020, MoCo, arXiv 1911.05722).

Shape legend: n samples of this rank, N those of all ranks in rank order, Q entries of the queue, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate import distributed
from collimate.distributed import Group

NO_ID = -100
"""The id of an entry that has never been filled; it equals no sample's (uta-smile/TCL, models/model_retrieval.py)."""


class FeatureQueue(nn.Module):
    """The features of the last Q samples of all ranks, of one kind or of several that belong together.

    Entry i of each kind comes from one sample. A queue begins with random unit vectors, the same on every rank and in
    every run. It is part of the state dict, and equal on all ranks, because each of them adds the samples of all.

    Entries are overwritten in place: put them into a loss through a copy (`torch.cat` makes one), or add new ones
    after the backward pass.

    Args:
        size: Q. It need not be a multiple of the batch.
        widths: name -> D of each kind.

    Attributes:
        ids: the id of each entry's sample, (Q,) int64; NO_ID where none was given.
        added: how many samples have been added so far, () int64; modulo Q, where the next one goes.

    Raises:
        ValueError: the queue has no entry.
    """

    ids: Tensor
    added: Tensor

    def __init__(self, size: int, widths: Mapping[str, int]) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"A queue has at least one entry, not {size}.")
        self.size, self.names = size, tuple(widths)
        draw = torch.Generator().manual_seed(0)
        for name, width in widths.items():
            features = normalize(torch.randn(size, width, generator=draw), dim=1)
            self.register_buffer(f"{name}_features", features)
        self.register_buffer("ids", torch.full((size,), NO_ID))
        self.register_buffer("added", torch.tensor(0))

    def __getitem__(self, name: str) -> Float[Tensor, "Q D"]:
        """The entries of one kind; the buffer itself, not a copy."""
        return self.get_buffer(f"{name}_features")

    @property
    def fill(self) -> Float[Tensor, ""]:
        """The share of entries that hold a sample, from 0 to 1."""
        return self.added.clamp_max(self.size) / self.size

    @torch.no_grad()
    def add(self, ids: Int[Tensor, " n"] | None = None, group: Group = None, **features: Float[Tensor, "n D"]) -> None:
        """Overwrite the oldest entries with the samples of all ranks, in rank order; no gradient runs through it.

        Args:
            ids: the samples' ids; NO_ID if None.
            features: of each kind of the queue.

        Raises:
            ValueError: features of other kinds or shapes than the queue's.
        """
        self._check(ids, features)
        first = next(iter(features.values()))
        counts = distributed.row_counts(first, group)
        ids = torch.full_like(self.ids[:1], NO_ID).expand(len(first)) if ids is None else ids
        total = sum(counts)
        kept = min(total, self.size)  # a batch larger than the queue: only its end stays
        places = (self.added + total - kept + torch.arange(kept, device=self.added.device)) % self.size
        for buffer, rows in ((self.ids, ids), *((self[name], features[name]) for name in self.names)):
            every = distributed.gather(rows.detach().to(buffer.dtype).contiguous(), group, counts)
            buffer[places] = every[total - kept :]
        self.added += total

    def _check(self, ids: Tensor | None, features: Mapping[str, Tensor]) -> None:
        if features.keys() != set(self.names):
            raise ValueError(f"The queue keeps {', '.join(self.names)}; got {', '.join(features) or 'nothing'}.")
        samples = len(features[self.names[0]])
        for name in self.names:
            got, wanted = tuple(features[name].shape), (samples, self[name].shape[1])
            if got != wanted:
                raise ValueError(f"The {name} features are {got}, the queue takes {wanted}.")
        if ids is not None and tuple(ids.shape) != (samples,):
            raise ValueError(f"{tuple(ids.shape)} ids for {samples} samples; there is one a sample.")
