"""Raw input to tensor: the step that must travel with a checkpoint.

A wrong resize or a wrong tokenizer fails silently, so a `Processor` is a constructor argument of every
method and encoder folder, is saved with it, and evaluation can use no other.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from collimate.configurable import Configurable


class Processor(Configurable):
    """One modality's raw-to-tensor step.

    `__call__` turns one raw sample into the tensor that workers stack; `finish` runs on the stacked
    batch on its device (for images: bytes to normalised floats, so that bytes cross the bus).
    """

    modality: str | None = None
    """What it processes, where it can do nothing else: what a lone encoder's inputs are called in evaluation."""

    def __call__(self, raw: Any) -> Tensor:
        raise NotImplementedError

    def finish(self, batch: Tensor) -> Tensor:
        """From the stacked tensors to the encoder's input; the identity unless overridden."""
        return batch

    def mask(self, batch: Tensor) -> Tensor | None:
        """(B, L) bool, True where a stacked input is real; None where every position is."""
        return None

    def trimmed(self, batch: Tensor) -> Tensor:
        """Stacked inputs without what is padding, at the end, in all of them; where `mask` tells of each position."""
        mask = self.mask(batch)
        if mask is None or mask.ndim != 2 or mask.shape != batch.shape:
            return batch
        return batch[:, : max(1, int((mask.any(0) * torch.arange(1, mask.shape[1] + 1)).max()))]

    def batch(self, raws: Iterable[Any]) -> Tensor:
        """Process and stack several raw samples."""
        return torch.stack([self(raw) for raw in raws])

    def shaped(self, shape: Any) -> Processor:
        """The same step for inputs of another shape, which a `BatchSchedule` asks for: a side, a length, ...

        Raises:
            TypeError: this processor makes inputs of one shape only.
        """
        raise TypeError(
            f"{type(self).__name__} makes inputs of one shape only: leave its modality out of the schedule."
        )

    def check_source(self, source: Any) -> None:
        """Look at a source of samples before they are read; nothing unless overridden.

        Raises:
            ValueError: its samples would be misunderstood.
        """

    def example(self) -> Any:
        """A raw sample, always the same one, or None.

        What a model makes of it is stored with its weights, so that a changed processor is noticed when they
        are loaded.
        """
        return None

    def save_files(self, folder: Path) -> None:
        """Write what the configuration alone cannot say (vocabularies) into `folder`, which exists.

        A processor that writes files takes their folder as the constructor argument `path`.
        """
