"""From counts to seconds and bytes: each kind of operation on the roofline of the machine, and what ranks exchange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from collimate.planning.counting import StepCount
from collimate.planning.machines import HERE, Kind, Machine

Bound = Literal["arithmetic", "memory bandwidth", "calls", "communication"]

OPTIMIZER_TOUCHES = 7
"""Times that a fused AdamW reads or writes a parameter's four bytes: gradient, weight and two moments, three of them
twice."""

OVERLAP = 0.7
"""The share of the gradients' exchange that the backward pass hides; ours."""

WORKSPACE = 1.2e9
"""Bytes that a GPU's context and libraries hold."""


@dataclass(frozen=True)
class Prediction:
    """What a step costs on each device.

    Attributes:
        seconds: of a step.
        parts: what they are spent on: seconds by `Bound`.
        memory: bytes at the peak.
        weights: those of them that are parameters, gradients and the optimizer's state.
        flops: of a step, on one device.
    """

    seconds: float
    parts: dict[Bound, float]
    memory: float
    weights: float
    flops: float

    @property
    def bound(self) -> Bound:
        """What most of the time is spent on."""
        return max(self.parts, key=lambda part: self.parts[part])


def predict(
    count: Callable[[int], StepCount],
    machine: Machine,
    batch_size: int,
    ranks: int = 1,
    nodes: int = 1,
    precision: torch.dtype | None = None,
    chunk: int | None = None,
    sharded: bool = False,
) -> Prediction:
    """The cost of one optimizer step.

    Args:
        count: of `count_step`.
        batch_size: samples of each rank.
        ranks: devices in all.
        precision: of the towers, or None for float32.
        chunk: samples that the gradient cache encodes at a time, or None.
        sharded: FSDP2, which keeps weights, gradients and state in parts.
    """
    step = count(batch_size)
    parts: dict[Bound, float] = {"arithmetic": 0.0, "memory bandwidth": 0.0, "calls": 0.0, "communication": 0.0}
    for name, found in step.operations.items():
        if found.calls:
            _spend(parts, machine, name, found.calls, found.flops, found.bytes, precision)
    slowed = machine.slowed(flops_a_call(step))
    if chunk is not None:  # the towers run forward once more, a third of what they did
        for bound in ("arithmetic", "memory bandwidth", "calls"):
            parts[bound] *= 4 / 3
    share = 1 / ranks if sharded else 1.0
    parts["memory bandwidth"] += OPTIMIZER_TOUCHES * 4 * step.trained * share / machine.moved(4e6)
    parts = {bound: slowed * seconds for bound, seconds in parts.items()}
    if ranks > 1:
        parts["communication"] = _exchanged(step, machine, batch_size, ranks, nodes, sharded)
    weights = (4 * step.parameters + 4 * step.trained + step.state) * share
    saved = count(min(chunk, batch_size)).saved if chunk else step.saved
    workspace = 0.0 if machine.name == HERE else WORKSPACE
    flops = sum(found.flops for found in step.operations.values())
    return Prediction(sum(parts.values()), parts, weights + saved + workspace, weights, flops)


def largest_batch(count: Callable[[int], StepCount], machine: Machine, **how: object) -> int:
    """The largest power of two that fits into nine tenths of a device's memory; 0 where none does."""
    fits = 0
    for power in range(21):
        if predict(count, machine, 2**power, **how).memory > 0.9 * machine.memory:  # type: ignore[arg-type]
            break
        fits = 2**power
    return fits


def flops_a_call(step: StepCount) -> float:
    """Operations in each call that has any, on average."""
    found = [each for each in step.operations.values() if each.flops]
    return sum(each.flops for each in found) / max(1.0, sum(each.calls for each in found))


def _spend(
    parts: dict[Bound, float],
    machine: Machine,
    name: str,
    calls: float,
    flops: float,
    moved: float,
    precision: torch.dtype | None,
) -> None:
    kind: Kind = "convolution" if "conv" in name else "matmul"
    arithmetic = flops / machine.rate(kind, precision or torch.float32, flops / calls) if flops else 0.0
    memory = moved / machine.moved(moved / calls)
    parts["calls"] += calls * machine.call
    parts["arithmetic" if arithmetic > memory else "memory bandwidth"] += max(arithmetic, memory)


def _exchanged(step: StepCount, machine: Machine, batch_size: int, ranks: int, nodes: int, sharded: bool) -> float:
    """Gradients, reduced in a ring (FSDP2 also gathers weights, twice), and features, gathered in a ring."""
    speed = (machine.network if nodes > 1 else machine.link) or 1e9
    travelled = (ranks - 1) / ranks
    weights = 4 * step.trained * travelled * (3 if sharded else 2) / speed
    features = 2 * 4 * batch_size * step.features * (ranks - 1) / speed
    return (1 - OVERLAP) * weights + features
