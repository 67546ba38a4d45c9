"""What all sources of the world share: samples that are made when they are read."""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

from collimate.configurable import at_least
from collimate.data import Sample, Source
from collimate_world.scene import Split


class Generated(Source):
    """Samples by their numbers: the same split, seed and number give the same sample anywhere.

    Args:
        name: of the source, as its samples are told apart from others.
        split: train, val or test.
        length: how many there are.
        seed: another seed, another world of the same kind.

    Raises:
        ValueError: there are less than none.
    """

    def __init__(self, name: str, split: str, length: int, seed: int) -> None:
        at_least(0, length=length)
        self.name, self.length, self.seed = name, length, seed
        self.split: Split = cast(Split, split)

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples; there is no sample {index}.")
        return self.made(index)

    @abstractmethod
    def made(self, index: int) -> Sample:
        """The sample of a number that there is."""
        ...
