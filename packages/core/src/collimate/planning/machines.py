"""What machines can do: rates of arithmetic and memory, links between devices.

Rates of GPUs are those of their data sheets (dense, without sparsity), times `SHARE`, what large matrix products reach
in practice; ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Kind = Literal["matmul", "convolution"]
HERE = "here"
"""The name of the machine at hand."""

SHARE = 0.6
MEMORY_SHARE = 0.8
"""Of a GPU's memory bandwidth, what element-wise kernels reach."""


@dataclass(frozen=True)
class Machine:
    """One kind of device, and what joins several.

    Attributes:
        name: as `--machine` takes it.
        rates: operations a second by (kind, dtype): a curve of (operations in a call, rate), or one number for all.
        bandwidth: bytes a second: a curve of (bytes in a call, rate).
        memory: bytes of a device.
        call: seconds that each call takes at least.
        link: bytes a second between the devices of a node, each way; 0 where there is one device.
        network: bytes a second between nodes, for each device.
        slowdown: by how much real steps exceed the sum of their operations on their own: a curve of (operations in an
            arithmetic call, on average; ratio), or one number for all.
    """

    name: str
    rates: dict[tuple[Kind, torch.dtype], list[tuple[float, float]]]
    bandwidth: list[tuple[float, float]]
    memory: float
    call: float
    link: float = 0.0
    network: float = 0.0
    slowdown: tuple[tuple[float, float], ...] = ((1.0, 1.0),)

    def rate(self, kind: Kind, dtype: torch.dtype, flops: float) -> float:
        """Operations a second in calls of so many."""
        curve = self.rates.get((kind, dtype)) or self.rates[kind, torch.float32]
        return _on(curve, flops)

    def moved(self, size: float) -> float:
        """Bytes a second in calls that move so many."""
        return _on(self.bandwidth, size)

    def slowed(self, flops: float) -> float:
        """What a step's seconds are multiplied by whose arithmetic calls have so many operations."""
        return _on(self.slowdown, flops)


def _on(curve: Sequence[tuple[float, float]], at: float) -> float:
    """A point of a curve, straight between its points where both axes are logarithms."""
    x, y = np.log(np.asarray(curve)).T
    return float(np.exp(np.interp(np.log(max(at, 1.0)), x, y)))


def _gpu(name: str, half: float, single: float, bandwidth: float, memory: float, link: float) -> Machine:
    """A GPU: TFLOP/s in bfloat16 (or float16) and in float32 with TF32, TB/s, GB, GB/s between GPUs."""
    rates: dict[tuple[Kind, torch.dtype], list[tuple[float, float]]] = {}
    kinds: tuple[Kind, ...] = ("matmul", "convolution")
    for kind in kinds:
        for dtype, top in ((torch.float32, single), (torch.bfloat16, half), (torch.float16, half)):
            rates[kind, dtype] = [(1.0, SHARE * top * 1e12)]
    return Machine(
        name, rates, [(1.0, MEMORY_SHARE * bandwidth * 1e12)], memory * 1e9, 5e-6, link=link * 1e9, network=25e9
    )


MACHINES = {
    machine.name: machine
    for machine in (
        _gpu("h200", 989, 495, 4.8, 141, 450),
        _gpu("h100", 989, 495, 3.35, 80, 450),
        _gpu("a100-80", 312, 156, 2.04, 80, 300),
        _gpu("a100-40", 312, 156, 1.56, 40, 300),
        _gpu("l40s", 362, 183, 0.864, 48, 32),
        _gpu("a10g", 70, 35, 0.6, 24, 32),
        _gpu("l4", 121, 60, 0.3, 24, 32),
        _gpu("rtx4090", 165, 83, 1.01, 24, 32),
        _gpu("v100", 125, 15.7, 0.9, 32, 150),
        _gpu("t4", 65, 8.1, 0.32, 16, 16),
    )
}
"""By name; network cards of 200 Gbit/s a GPU. Other machines: write a `Machine`."""
