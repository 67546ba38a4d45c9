"""Balanced sampling: rare classes are read as often as frequent ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from collimate.data.classes import labels_of
from collimate.data.decoding import LABELS, naming, value_of
from collimate.data.order import WeightedOrder
from collimate.data.source import CorruptSample, Sample, Source, class_names

SCALE, OFFSET = 1000, 0.01  # of the audio spectrogram transformer's recipes, which all since follow


class BalancedSource(Source):
    """A labelled source whose samples are drawn with replacement, as is usual for AudioSet.

    Gong et al. 2021, AST, arXiv 2104.01778, section 3.1: a sample weighs w = sum over its labels l of
    1000 / (n_l + 0.01), n_l the number of samples with l. An epoch of N draws holds some samples several times, others
    never. What stands at a position is a pure function of (seed, epoch, position), as in every order, so that runs
    resume exactly and ranks share the draws out.

    All labels are read when it is opened, but no sound or picture. Samples are read from anywhere: shards should be
    local.

    Args:
        source: samples with `labels.json` or `cls`. Those without labels, or with damaged ones, are never drawn.

    Attributes:
        weights: w of each sample, (N,) float64.

    Raises:
        ValueError: no sample has a label.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, source.name
        self.class_names = class_names(source)
        labels = list(_labels(source))
        counts = Counter(label for each in labels for label in each)
        if not counts:
            raise ValueError(f"{source.name}: no sample has a label, so nothing can be balanced.")
        weight = {label: SCALE / (count + OFFSET) for label, count in counts.items()}
        self.weights = np.array([sum(weight[label] for label in each) for each in labels])
        self._ends = np.cumsum(self.weights)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        return self.source.read(index)

    def peek(self, index: int, keys: Sequence[str]) -> Sample:
        return self.source.peek(index, keys)

    def order(self, seed: int, epoch: int) -> WeightedOrder:
        return WeightedOrder(self._ends, seed, epoch)


def _labels(source: Source) -> Iterator[set[str | int]]:
    for index in range(len(source)):
        try:
            sample = source.peek(index, LABELS)
            with naming(sample, "labels"):
                yield set(labels_of(value_of(sample, LABELS)))
        except CorruptSample:
            yield set()
