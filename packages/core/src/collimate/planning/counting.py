"""What one training step does, counted while it really runs: calls, floating-point operations, bytes, memory held."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from collimate.training import Method

PROBES = (2, 4, 6, 8)
"""Batch sizes that are run: three, because counts grow with the square of the batch where samples meet, and one to see
whether they do."""


BY_NAME: dict[str, Any] = {str(packet).removeprefix("aten."): count for packet, count in flop_registry.items()}


@dataclass(frozen=True)
class Count:
    """One kind of operation in one step: its calls, its multiplications and additions, the bytes read and written."""

    calls: float
    flops: float
    bytes: float


@dataclass(frozen=True)
class StepCount:
    """What a step of B samples on one device does and holds.

    Attributes:
        operations: name of the operation -> its count, without the optimizer's.
        parameters: numbers in all parameters and buffers, frozen ones and momentum copies too.
        trained: numbers in those that are trained.
        state: bytes that the optimizer keeps.
        saved: bytes that the forward pass keeps for the backward pass.
        features: numbers of a sample that other ranks must see.
    """

    operations: dict[str, Count]
    parameters: int
    trained: int
    state: int
    saved: float
    features: int


def count_step(
    method: Method, batch: Callable[[int], dict[str, Any]], precision: torch.dtype | None = None
) -> Callable[[int], StepCount]:
    """Run some small steps and return what a step of any batch size does.

    Args:
        method: on the CPU; one optimizer step is made with it, so its weights change.
        batch: a batch of so many samples, as the loader makes them.
        precision: of autocast in the towers, or None.
    """
    found = [_run(method, batch(size), precision) for size in PROBES]
    optimizer = method.optimization.optimizer(method)
    optimizer.step()
    parameters = sum(value.numel() for value in method.state_dict(keep_vars=True).values())
    trained = sum(value.numel() for value in method.parameters() if value.requires_grad)
    state, features = _state_bytes(optimizer), found[-1][2]
    names = sorted({name for operations, _, _ in found for name in operations})
    curves = {
        name: [_curve([ops.get(name, (0, 0, 0))[at] for ops, _, _ in found]) for at in range(3)] for name in names
    }
    saved = _curve([saved for _, saved, _ in found])

    def at(size: int) -> StepCount:
        operations = {name: Count(*(max(0.0, float(curve(size))) for curve in curves[name])) for name in names}
        return StepCount(operations, parameters, trained, state, max(0.0, float(saved(size))), features)

    return at


def _curve(values: Sequence[float]) -> np.polynomial.Polynomial:
    """The parabola that all probes lie on; where masks and the like are drawn, and none is, the nearest line."""
    parabola = np.polynomial.Polynomial.fit(PROBES, values, 2)
    if np.allclose(parabola(np.asarray(PROBES)), values, rtol=1e-6, atol=1e-6):
        return parabola
    line = np.polynomial.Polynomial.fit(PROBES, values, 1)
    # What grows by chance alone must not shrink to nothing in a large batch.
    return line if line(2.0) < line(4.0) else np.polynomial.Polynomial([float(np.mean(values))])


def _run(
    method: Method, batch: dict[str, Any], precision: torch.dtype | None
) -> tuple[dict[str, tuple[int, int, int]], int, int]:
    kept: dict[int, int] = {}
    own = {value.untyped_storage().data_ptr() for value in (*method.parameters(), *method.buffers())}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    method.train()
    method.zero_grad()
    with Counter() as counter, one_thread():
        with saved_tensors_hooks(keep, lambda value: value):
            with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
                embeddings = method.embed(batch)
            with torch.autocast("cpu", enabled=False):
                full = {name: e.float() if e.is_floating_point() else e for name, e in embeddings.items()}
                loss = method.total_loss(method.losses(full, batch))
        loss.backward()
    samples = next(value.shape[0] for value in embeddings.values())
    return dict(counter.found), sum(kept.values()), sum(value.numel() for value in embeddings.values()) // samples


@contextmanager
def one_thread() -> Iterator[None]:
    """What kernels hand to other threads (`collimate.kernels.threads`) would not be counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Counter(TorchDispatchMode):
    """Counts what runs under it: `found` has calls, operations and bytes by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[int, int, int]] = defaultdict(lambda: (0, 0, 0))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not _moves_nothing(func):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            name = str(func._overloadpacket).removeprefix("aten.")
            calls, flops, moved = self.found[name]
            moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.found[name] = (calls + 1, flops + _flops(func, args, kwargs, out), moved)
        return out


def _moves_nothing(func: Any) -> bool:
    """Views, and what only makes room."""
    return func.is_view or func._overloadpacket._qualified_op_name.split("::")[-1] in ("detach", "empty", "empty_like")


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    name = func._overloadpacket._qualified_op_name.split("::")[-1]
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        query, key, value = (each.shape for each in args[:3])
        return sdpa_flop_count(query, key, value)
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        grad, query, key, value = (each.shape for each in args[:4])
        return sdpa_backward_flop_count(grad, query, key, value)
    count = BY_NAME.get(name.rstrip("_"))  # `addmm_` computes what `addmm` does
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))


def _state_bytes(optimizer: Optimizer) -> int:
    leaves = tree_leaves([list(state.values()) for state in optimizer.state.values()])
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))
