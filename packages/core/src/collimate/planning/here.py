"""The CPU at hand, measured: its rates, and how much longer real steps take than their operations on their own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from collimate.planning.counting import Count, Counter, StepCount
from collimate.planning.machines import HERE, Kind, Machine
from collimate.planning.prediction import flops_a_call, predict

REFERENCES = (64, 256, 768)
"""Widths of the transformers whose steps are timed."""

SAMPLES, TOKENS = 16, 50


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
    apart = Machine(HERE, rates, bandwidth, float(_memory()), _call(least))
    return replace(apart, slowdown=tuple(_slowdown(apart, width, least) for width in REFERENCES))


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


def _slowdown(apart: Machine, width: int, least: float) -> tuple[float, float]:
    """How much longer a step of two transformer layers takes than predicted: caches that others empty, fresh pages,
    functions that compute more than they move."""
    with torch.random.fork_rng():
        layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
                for _ in range(2)
            )
        )
        inputs = torch.randn(SAMPLES, TOKENS, width)
    optimizer = torch.optim.AdamW(layers.parameters(), fused=True)

    def backward() -> None:
        layers(inputs).square().mean().backward()

    def step() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    with Counter() as counter:
        backward()
    operations = {name: Count(*counts) for name, counts in counter.found.items()}
    trained = sum(parameter.numel() for parameter in layers.parameters())
    count = StepCount(operations, trained, trained, 8 * trained, 0.0, 0)
    return flops_a_call(count), _seconds(step, least) / predict(lambda _: count, apart, SAMPLES).seconds


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
