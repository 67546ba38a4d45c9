"""The samples of a source that have a modality: what an encoder of that modality alone can be probed on."""

from __future__ import annotations

from collections.abc import Sequence

from collimate.data import Source
from collimate.data.decoding import extensions_of
from collimate.data.source import CorruptSample, Sample, class_names


class Having(Source):
    """The samples that have a modality, in their order. Damaged ones stay in: whoever reads them counts them.

    Args:
        source: of which some may lack it.
        modality: such as `xray`.

    Raises:
        ValueError: none has it.
    """

    def __init__(self, source: Source, modality: str) -> None:
        keys = extensions_of(modality)
        self.source, self.name = source, source.name
        self.rows = [place for place in range(len(source)) if _has(source, place, keys)]
        self.class_names = class_names(source)
        self.lacking = len(source) - len(self.rows)
        if not self.rows:
            raise ValueError(f"{source.name}: no sample has {modality} ({', '.join(keys)}).")

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Sample:
        return self.source.read(self.rows[index])

    def peek(self, index: int, keys: Sequence[str]) -> Sample:
        return self.source.peek(self.rows[index], keys)


def _has(source: Source, place: int, keys: Sequence[str]) -> bool:
    try:
        sample = source.peek(place, keys)
    except CorruptSample:
        return True
    return any(key in sample for key in keys)
