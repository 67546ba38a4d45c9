"""Long samples, such as sounds beyond an encoder's input, as the mean over several windows of them.

Which windows these are is fixed (`Manner.window`), so that an evaluation gives the same numbers every time.

Shape legend: N samples, W windows of each, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from collimate.data import Sample, Source
from collimate.data.decoding import extensions_of, naming
from collimate.evaluation.modalities import manner_of


class Windows(Source):
    """Each of some samples W times, with another window of it each time.

    Args:
        source: the whole samples.
        modality: of what there are windows.
        processor: the modality's.
        count: W.
        places: which of the samples.

    Raises:
        ValueError: samples of the modality have no windows.
    """

    def __init__(self, source: Source, modality: str, processor: Any, count: int, places: Sequence[int]) -> None:
        cut = manner_of(modality).window
        if cut is None:
            raise ValueError(f"There are no windows of {modality!r}: leave `windows` at 1.")
        self.source, self.modality, self.processor, self.count = source, modality, processor, count
        self.places, self.name, self._cut = places, source.name, cut

    def __len__(self) -> int:
        return self.count * len(self.places)

    def read(self, index: int) -> Sample:
        sample = dict(self.source.read(self.places[index // self.count]))
        for key in extensions_of(self.modality):
            if key in sample:
                with naming(sample, self.modality):
                    sample[key] = self._cut(sample[key], self.processor, index % self.count, self.count)
                break
        return sample


def mean_of_windows(pooled: Float[Tensor, "N*W D"], count: int) -> Float[Tensor, "N D"]:
    """The mean direction of each sample's windows, of unit length."""
    return normalize(normalize(pooled, dim=1).unflatten(0, (-1, count)).mean(1), dim=1)
