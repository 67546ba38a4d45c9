"""A sample's labels as the target of a classifier.

Shape legend: K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from collimate.data.classes import labels_of, read_class_list
from collimate.data.decoding import LABELS, Undecodable
from collimate.data.source import Source, class_names
from collimate.processing.base import Processor


class ClassLabels(Processor):
    """Labels, by name or by number, to a vector with 1 for each class that the sample has, else 0.

    The names are part of the configuration, so that a checkpoint knows what its outputs stand for, and the files from
    which they were read are not needed again.

    Args:
        names: of the K classes, in the order of a classifier's outputs; or a file that lists them, as
            `collimate.data.classes.read_class_list` reads it; or a data set that knows them, as `open_source` takes it.
        other_names: a second name of each class by which samples may call it too, such as AudioSet's MIDs; those of the
            file if None.
        exclusive: each sample has exactly one class; others are refused.

    Raises:
        ValueError: no names, a name twice, or not as many second names.
    """

    def __init__(
        self, names: Sequence[str] | str, other_names: Sequence[str] | None = None, exclusive: bool = False
    ) -> None:
        listed, others = _listed(names) if isinstance(names, str) else ([str(name) for name in names], [])
        self.names, self.exclusive = listed, exclusive
        self.other_names = [str(name) for name in (others if other_names is None else other_names)]
        if not self.names:
            raise ValueError("A classifier needs the names of its classes.")
        if self.other_names and len(self.other_names) != len(self.names):
            raise ValueError(f"{len(self.other_names)} second names for {len(self.names)} classes.")
        self._numbers: dict[str, int] = {}
        for each in (self.other_names, self.names):
            if twice := {name for name in each if each.count(name) > 1}:
                raise ValueError(f"Two classes are called {min(twice)!r}.")
            self._numbers |= {name: number for number, name in enumerate(each)}

    def __len__(self) -> int:
        return len(self.names)

    def __call__(self, raw: Any) -> Float[Tensor, " K"]:
        """The labels of one sample, as `collimate.data.classes.labels_of` takes them.

        Raises:
            Undecodable: a label is no class, or classes are exclusive and there is not exactly one. A sample without
                labels is none of the others.
        """
        numbers = {self.number(label) for label in labels_of(raw)}
        if self.exclusive and len(numbers) != 1:
            raise Undecodable("not exactly one label", repr(raw)[:60])
        target = torch.zeros(len(self))
        target[list(numbers)] = 1
        return target

    def number(self, label: str | int) -> int:
        """The number of a class.

        Raises:
            Undecodable: there is no such class.
        """
        if isinstance(label, str) and label in self._numbers:
            return self._numbers[label]
        if isinstance(label, int) or label.isdecimal():
            if int(label) < len(self):
                return int(label)
            raise Undecodable("label beyond the classes", f"{label} of {len(self)}, counted from 0")
        raise Undecodable("unknown label", repr(label))

    def check_source(self, source: Source) -> None:
        if (theirs := class_names(source)) is None or not len(source):
            return
        if unknown := [name for name in theirs if name not in self._numbers]:
            raise ValueError(
                f"{source.name} has the class {unknown[0]!r}, which the classifier does not know. It knows "
                f"{', '.join(self.names[:8])}{', ...' if len(self) > 8 else ''}: give it the names of this data set."
            )
        if theirs not in (self.names, self.other_names) and "labels.json" not in source.peek(0, LABELS):
            raise ValueError(
                f"{source.name} numbers its classes otherwise than the classifier: {theirs[0]!r} is its first, "
                f"{self.names[0]!r} the classifier's. Name labels in a column `labels`, or put the classifier's "
                "classes.json beside the data."
            )

    def config(self) -> dict[str, Any]:
        """As for every Configurable, with the names themselves in the place of their file."""
        config = super().config()
        config["init_args"] |= {"names": self.names, "other_names": self.other_names or None}
        return config


def _listed(source: str) -> tuple[list[str], list[str]]:
    from collimate.data.opening import open_source

    path = Path(source)
    if path.suffix in (".json", ".txt") or path.name == "class_labels_indices.csv":
        return read_class_list(path)
    names = class_names(open_source(source))
    if names is None:
        raise ValueError(
            f"{source} does not know the names of its classes. Put a classes.json beside it, choose its column of "
            "names (`?columns={cls: label}`), or list the names."
        )
    return names, []
