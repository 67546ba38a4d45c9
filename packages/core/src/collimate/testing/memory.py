"""What autograd keeps between forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SavedMemory:
    """Bytes that graphs built so far hold for backward, apart from what was there before."""

    bytes: int = 0


@contextmanager
def saved_memory(existing: Iterable[Tensor] = ()) -> Iterator[SavedMemory]:
    """Count what graphs built inside save for backward, each storage once.

    Sees what goes through autograd's saved tensors, as all built-in functions and `ctx.save_for_backward` do, and not
    what a custom Function keeps as plain attributes.

    Args:
        existing: tensors that would be alive anyway (inputs, parameters) and are not counted.
    """
    total = SavedMemory()
    seen = {tensor.untyped_storage().data_ptr() for tensor in existing}
    held: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            held.append(tensor.detach())
            total.bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def assert_saved_memory_below(limit: int, run: Callable[[], Tensor], existing: Iterable[Tensor] = ()) -> None:
    """Assert that what `run()` keeps for backward stays below a limit in bytes.

    Raises:
        AssertionError: says how much is kept.
    """
    with saved_memory(existing) as memory:
        loss = run()
    del loss
    assert memory.bytes < limit, f"{memory.bytes} bytes are kept for backward, the limit is {limit}"
