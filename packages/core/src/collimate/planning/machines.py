"""What machines can do: rates of arithmetic and memory, links between devices; and how to measure the one at hand.

Rates of GPUs are those of their data sheets (dense, without sparsity), times `SHARE`, what large matrix products reach
in practice; ours.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
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
    """

    name: str
    rates: dict[tuple[Kind, torch.dtype], list[tuple[float, float]]]
    bandwidth: list[tuple[float, float]]
    memory: float
    call: float
    link: float = 0.0
    network: float = 0.0

    def rate(self, kind: Kind, dtype: torch.dtype, flops: float) -> float:
        """Operations a second in calls of so many."""
        curve = self.rates.get((kind, dtype)) or self.rates[kind, torch.float32]
        return _on(curve, flops)

    def moved(self, size: float) -> float:
        """Bytes a second in calls that move so many."""
        return _on(self.bandwidth, size)


def _on(curve: list[tuple[float, float]], at: float) -> float:
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


def measure_this_machine(least: float = 0.05) -> Machine:
    """The CPU at hand with the threads that torch uses now, measured in some seconds.

    Args:
        least: processor seconds spent on each point of each curve.
    """
    rates: dict[tuple[Kind, torch.dtype], list[tuple[float, float]]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        rates["matmul", dtype] = [_product(side, dtype, least) for side in (16, 64, 160, 400, 1000)]
        rates["convolution", dtype] = [_convolution(side, dtype, least) for side in (4, 16, 64)]
    bandwidth = [_sum(count, least) for count in (2**8, 2**12, 2**16, 2**20, 2**24)]
    memory = float(_memory())
    return Machine(HERE, rates, bandwidth, memory, _call(least))


def _product(side: int, dtype: torch.dtype, least: float) -> tuple[float, float]:
    a, b = (torch.randn(side, side, dtype=dtype) for _ in range(2))
    return 2.0 * side**3, 2 * side**3 / _seconds(lambda: a @ b, least)


def _convolution(side: int, dtype: torch.dtype, least: float) -> tuple[float, float]:
    pixels = torch.randn(4, 32, side, side, dtype=dtype, requires_grad=True)
    weight = torch.randn(32, 32, 3, 3, dtype=dtype, requires_grad=True)

    def step() -> None:
        out = torch.nn.functional.conv2d(pixels, weight, padding=1)
        torch.autograd.grad(out, (pixels, weight), torch.ones_like(out))

    flops = 3 * 2.0 * 4 * side**2 * 32 * 32 * 9  # forward, and twice as much backward
    return flops / 3, flops / _seconds(step, least)


def _sum(count: int, least: float) -> tuple[float, float]:
    a, b = torch.randn(count), torch.randn(count)
    out = torch.empty(count)
    return 12.0 * count, 12 * count / _seconds(lambda: torch.add(a, b, out=out), least)


def _call(least: float) -> float:
    a = torch.randn(1, requires_grad=True)
    return _seconds(lambda: a + a, least)


def _seconds(run: Callable[[], object], least: float) -> float:
    """Wall-clock of one call: the least of several rounds, which other programs disturb least."""
    run()
    best, spent, times = float("inf"), 0.0, 1
    while spent < least:
        begun = time.perf_counter()
        for _ in range(times):
            run()
        taken = time.perf_counter() - begun
        spent, best = spent + taken, min(best, taken / times)
        times = max(1, min(1000, int(least / 5 / max(taken / times, 1e-7))))
    return best


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 16 * 2**30
