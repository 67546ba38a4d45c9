"""What every encoder is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from collimate.configurable import Configurable
from collimate.encoders.depths import depths_by_blocks
from collimate.encoding import Encoding
from collimate.processing import Processor

E = TypeVar("E", bound="Encoder")


class Encoder(nn.Module, Configurable):
    """A tower: inputs of one modality to an `Encoding` of `width`-dimensional vectors.

    `pooled` and `tokens` are the tower's own, unprojected; the projection into a joint space belongs to
    the method that trains the tower, so that the same tower serves as a backbone.
    """

    width: int
    """The last dimension of `pooled` and `tokens`."""

    processor: Processor | None = None
    """How raw samples become inputs; an encoder that was loaded from a folder has it, if one was saved."""

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode a batch.

        Args:
            inputs: what the modality's processor makes, after `finish`.
            mask: (B, L) bool, True where an input position is real, for inputs of unequal length.
        """
        raise NotImplementedError

    def example(self) -> Tensor | None:
        """A small batch of valid inputs, always the same one, or None.

        Exporters trace the encoder with it; where there is no processor, what the encoder makes of it is
        stored with its weights, to see when they are loaded that nothing has changed.
        """
        return None

    def depths(self) -> dict[str, int]:
        """Parameter name -> how many layers it lies below the output, by which learning rates may fall.

        1 for the last layer, one more for each before it, the most for embeddings; 0 would be a head's. Found by the
        encoder's repeated blocks, in the order in which they were made, unless overridden.
        """
        return depths_by_blocks(self)

    def encode(self, inputs: Tensor | Sequence[Any], mask: Tensor | None = None) -> Encoding:
        """Encode a batch as the processor makes it, or a list of raw samples.

        Raises:
            ValueError: these are raw samples, and the encoder has no processor.
        """
        device = next(chain(self.parameters(), self.buffers())).device
        if self.processor is None:
            if not isinstance(inputs, Tensor):
                raise ValueError("This encoder has no processor: pass tensors, or set `encoder.processor`.")
            return self(inputs.to(device), mask)
        batch = inputs if isinstance(inputs, Tensor) else self.processor.batch(inputs)
        batch = batch.to(device)
        mask = self.processor.mask(batch) if mask is None else mask
        return self(self.processor.finish(batch), mask)

    def save_pretrained(self, folder: str | PathLike[str], processor: Processor | None = None) -> None:
        """Write the encoder, and the processor that belongs to it, to a folder; see `collimate.checkpoints.save`."""
        from collimate.checkpoints import save

        self.processor = processor or self.processor
        save(self, folder)

    @classmethod
    def from_pretrained(cls: type[E], source: str | PathLike[str], trust: Sequence[str] = ()) -> E:
        """An encoder from a folder or from the hub; see `collimate.checkpoints.load`.

        Of a method, its one encoder of this class, with the processor of its modality.

        Raises:
            TypeError: what lies there is no such encoder, or a method that has none or several.
        """
        from collimate.checkpoints import load

        loaded = load(source, trust)
        if isinstance(loaded, cls):
            return loaded
        towers: dict[str, Any] = dict(getattr(loaded, "encoders", {}))
        fitting = [modality for modality, tower in towers.items() if isinstance(tower, cls)]
        if len(fitting) != 1:
            hint = f" A method's towers are in its `encoders`: {', '.join(towers)}." if towers else ""
            raise TypeError(f"{source} holds a {type(loaded).__name__}, not a {cls.__name__}.{hint}")
        tower = towers[fitting[0]]
        tower.processor = loaded.processors[fitting[0]]
        return tower


def waves(*shape: int) -> Tensor:
    """Numbers between -1 and 1 that are the same everywhere and for ever, for `Encoder.example`."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * 0.7).float().view(shape)


def strides(*shape: int, below: int) -> Tensor:
    """Whole numbers from 0 to `below` that are the same everywhere and for ever, for `Encoder.example`."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) * 7919 % below).view(shape)
