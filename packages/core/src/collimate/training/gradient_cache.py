"""Gradient cache: the whole batch's loss at the memory of one chunk.

A contrastive loss couples all samples of a batch, so plain gradient accumulation changes it: it has fewer
negatives. The gradient cache (Gao et al. 2021, arXiv 2101.06983) encodes the batch chunk by chunk without
keeping activations, takes the loss on all embeddings, and encodes each chunk once more to send its
embeddings' gradient back.

That is activation checkpointing with a chunk of the batch as its unit, and is written so: torch's
checkpoint restores the RNG (dropout and patch dropout agree between the passes) and the autocast state, a
parameter's gradient arrives once for all chunks (so DDP's hooks fire once), and autograd frees one chunk's
activations before it makes the next one's. The price is one more forward pass of the encoders.

Batch norm sees a chunk's statistics, as it must when activations of only one chunk exist; its running
averages are not updated a second time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

Batch = dict[str, Any]


def embed_in_chunks(
    embed: Callable[[Batch], dict[str, Tensor]], batch: Batch, chunk_size: int, module: nn.Module
) -> dict[str, Tensor]:
    """`embed(batch)`, at the memory of `chunk_size` samples.

    Args:
        embed: per-sample embeddings, {name: (B, ...)}; no sample may look at another.
        batch: tensors and lists of length B; other values are handed to each chunk as they are.
        chunk_size: samples a chunk.
        module: what `embed` runs, whose batch-norm averages are held still in the second pass.

    Raises:
        ValueError: an embedding is not per sample.
    """

    def contexts() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        return contextlib.nullcontext(), RunningAveragesHeld(module)

    parts = []
    for chunk, size in split(batch, chunk_size):
        part = checkpoint(embed, chunk, use_reentrant=False, context_fn=contexts)
        for name, value in part.items():
            if value.ndim == 0 or value.shape[0] != size:
                raise ValueError(
                    f"The gradient cache needs per-sample embeddings, but {name!r} has shape {tuple(value.shape)} "
                    f"for {size} samples."
                )
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def split(batch: Batch, chunk_size: int) -> Iterator[tuple[Batch, int]]:
    """The chunks of a batch, each with its number of samples."""
    size = batch_size(batch)
    for start in range(0, size, chunk_size):
        stop = min(start + chunk_size, size)
        yield (
            {
                key: value[start:stop] if isinstance(value, (Tensor, list)) and len(value) == size else value
                for key, value in batch.items()
            },
            stop - start,
        )


def batch_size(batch: Batch) -> int:
    """The number of samples: the length of the first tensor with at least one dimension."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim > 0)


class RunningAveragesHeld:
    """While open, batch norms keep their running averages. Opened once for each backward pass through a chunk."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [norm for norm in module.modules() if isinstance(norm, _NormBase) and norm.track_running_stats]

    def __enter__(self) -> None:
        self.momenta = [norm.momentum for norm in self.norms]
        self.counts = [
            None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in self.norms
        ]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, momentum, count in zip(self.norms, self.momenta, self.counts, strict=True):
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
