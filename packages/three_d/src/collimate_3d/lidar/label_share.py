"""Any labelled data, of which a share is read: `label-share:world-sweeps:train?share=0.05&share_seed=1`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collimate.data import Sample, Source, open_source
from collimate_3d.lidar.subsets import label_subset


class LabelShare(Source):
    """A random share of a source's samples, for learning from few labels.

    The shares of one seed contain one another: what 5 % hold, 20 % hold too.

    Args:
        what: the source, as `open_source` takes it.
        share: of the samples, above 0 and at most 1; at least one sample is read.
        share_seed: of the draw.
        options: of the source.

    Raises:
        ValueError: the share is none.
    """

    def __init__(self, what: str, share: float = 1.0, share_seed: int = 0, **options: Any) -> None:
        self.whole = open_source(what, **options)
        self.places = label_subset(len(self.whole), share, share_seed)
        self.name = f"{self.whole.name}, {len(self.places)} of {len(self.whole)} samples"

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> Sample:
        return self.whole.read(self._place(index))

    def peek(self, index: int, keys: Sequence[str]) -> Sample:
        return self.whole.peek(self._place(index), keys)

    def _place(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: there is no sample {index}.")
        return self.places[index]
