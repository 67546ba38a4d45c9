"""What every source of samples is: a list one can read from anywhere, and an order for each epoch.

The order of an epoch is a pure function of (seed, epoch, position). So the whole state of a training
stream is one integer, the number of samples consumed by all ranks together, and resuming needs no log of
what was read: not on the same number of ranks and workers, not on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from collimate.data.order import Permutation

Sample = dict[str, Any]
"""A sample: extension -> bytes (or the value already decoded), with `__key__` and `__source__` beside."""


class Order(Protocol):
    """A bijection from the positions of an epoch to the indices of a source."""

    def __getitem__(self, position: int, /) -> int: ...


@runtime_checkable
class Source(Protocol):
    """A list of samples with random access. Subclasses of it inherit `order`.

    A source that knows its classes also has `class_names: list[str]`, in the order of its `cls` numbers; and
    `templates: list[str]` with `{}` for a name, where it knows how prompts for them are worded.
    """

    name: str

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """The raw sample at `index`.

        Raises:
            CorruptSample: it cannot be read; says which sample, why, and what was expected.
        """
        ...

    def peek(self, index: int, keys: Sequence[str]) -> Sample:
        """What the sample at `index` has of these keys; sources leave unread what they need not read.

        Raises:
            CorruptSample: as for `read`.
        """
        sample = self.read(index)
        return {key: value for key, value in sample.items() if key in keys or key.startswith("__")}

    def order(self, seed: int, epoch: int) -> Order:
        """The order in which the samples of this epoch are read: any permutation, unless overridden."""
        return Permutation(len(self), seed, epoch)


class CorruptSample(Exception):
    """A sample that cannot be used. Streams count it by `reason` and go on, up to a set rate."""

    def __init__(self, where: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{where}: {reason}" + (f" ({detail})" if detail else ""))
        self.where, self.reason, self.detail = where, reason, detail

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.where, self.reason, self.detail)


def class_names(source: Source) -> list[str] | None:
    """The names of a source's classes in the order of their numbers, where it knows them."""
    return getattr(source, "class_names", None)
