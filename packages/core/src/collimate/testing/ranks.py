"""Real process groups in tests: the same loss on 1 and on N ranks.

Workers are gloo processes that are started once, live as long as the session, and take one job after another, so that
a test of many cases pays for starting Python and importing torch only once.
"""

from __future__ import annotations

import atexit
import inspect
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from collimate.testing.gradients import assert_close

Splits = Sequence[Sequence[int]]

ATTEMPTS = 3
"""How often a process group is tried: on a busy machine gloo now and then closes a connection while it makes them."""

NO_GROUP = "the process group could not be made"

GRACE = 2.0
"""Seconds after a rank's failure in which others may tell of an earlier one: when a rank fails, those that talk to it
fail too, and only the first failure says why."""


def run_on_ranks(function: Callable[..., Any], arguments: Sequence[Sequence[Any]], timeout: float = 120.0) -> list[Any]:
    """Run a function on N ranks of a fresh gloo process group, one for each list of arguments.

    Args:
        function: any function or closure; what it refers to travels with it.
        arguments: the arguments of each rank.
        timeout: seconds, for collectives and for the whole.

    Returns:
        what each rank returned.

    Raises:
        RuntimeError: a rank raised, died or hung; holds the rank's traceback. The workers are replaced.
    """
    return _pool.run(function, arguments, timeout)


def assert_same_on_ranks(
    loss: Callable[..., Tensor],
    rows: Mapping[str, Tensor],
    shared: Mapping[str, Tensor] | None = None,
    ranks: Sequence[int] = (1, 2, 3),
    splits: Splits | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Assert that a loss and its gradients on N ranks are those of one process.

    The loss is called as `loss(**rows, **shared)`: in this process on everything, then on each rank on the rank's rows.
    The mean over ranks of value and gradient, as DDP takes it, must be the single-process value and gradient.

    Args:
        rows: tensors whose first dimension is the batch; floating ones get gradients.
        shared: tensors that all ranks hold (scale, bias, weights); floating ones get gradients.
        ranks: the numbers of ranks to try, each with an even split and, from two ranks, uneven ones.
        splits: the splits to try instead, each a list of rows for each rank.
        tolerance: relative, against the largest entry of each gradient.

    Raises:
        AssertionError: names split, value and gradients that differ.
    """
    shared = shared or {}
    expected = _value_and_gradients(loss, dict(rows), dict(shared))
    batch = next(iter(rows.values())).shape[0]
    for split in splits or [split for count in ranks for split in even_and_uneven(batch, count)]:
        parts = zip(*(tensor.split(list(split)) for tensor in rows.values()), strict=True)
        jobs = [(loss, dict(zip(rows, part, strict=True)), dict(shared)) for part in parts]
        found = run_on_ranks(_value_and_gradients, jobs)
        actual = {
            name: torch.cat([result[name] for result in found]) / len(found)
            if name.removeprefix("gradient of ") in rows
            else torch.stack([result[name] for result in found]).mean(0)
            for name in expected
        }
        assert_close(actual, expected, tolerance, f"{len(split)} ranks with {list(split)} rows against one process")


def even_and_uneven(batch: int, ranks: int) -> list[list[int]]:
    """An even split and, where there are several ranks, two uneven ones: a small last rank and a large last rank."""
    even = [batch // ranks + (i < batch % ranks) for i in range(ranks)]
    if ranks == 1 or batch < 2 * ranks:
        return [even]
    small_last = [(batch - 1) // (ranks - 1) + (i < (batch - 1) % (ranks - 1)) for i in range(ranks - 1)] + [1]
    growing = [i + 1 for i in range(ranks - 1)]
    return [even, small_last, [*growing, batch - sum(growing)]]


def _value_and_gradients(loss: Callable[..., Tensor], rows: dict[str, Tensor], shared: dict[str, Tensor]) -> dict:
    inputs = {
        name: tensor.detach().clone().requires_grad_(tensor.is_floating_point())
        for name, tensor in {**rows, **shared}.items()
    }
    value = loss(**inputs)
    value.backward()
    gradients = {
        f"gradient of {name}": torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for name, tensor in inputs.items()
        if tensor.requires_grad
    }
    return {"loss": value.detach(), **gradients}


class _Pool:
    """Workers that wait for jobs. A job that fails ends them all, for the others may wait for it for ever."""

    def __init__(self) -> None:
        self.workers: list[tuple[BaseProcess, Connection]] = []

    def run(self, function: Callable[..., Any], arguments: Sequence[Sequence[Any]], timeout: float) -> list[Any]:
        for attempt in range(ATTEMPTS):
            try:
                return self._run(function, arguments, timeout)
            except _NoGroup:  # nothing of the function has run yet
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def _run(self, function: Callable[..., Any], arguments: Sequence[Sequence[Any]], timeout: float) -> list[Any]:
        self._start(len(arguments))
        pipes = [pipe for _, pipe in self.workers[: len(arguments)]]
        results: dict[int, Any] = {}
        with tempfile.TemporaryDirectory() as folder, _by_value(function, arguments):
            for rank, (pipe, own) in enumerate(zip(pipes, arguments, strict=True)):
                pipe.send_bytes(cloudpickle.dumps((function, own, rank, len(arguments), f"{folder}/store", timeout)))
            deadline = time.monotonic() + timeout
            failures: list[tuple[float, str]] = []
            while len(results) < len(arguments):
                waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
                ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
                for pipe in ready:
                    rank = waiting[pipe]  # type: ignore[index]
                    try:
                        failed_at, results[rank] = cloudpickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
                    except (EOFError, ConnectionError):
                        failed_at, results[rank] = 0.0, "the process died"
                    if failed_at is not None:
                        failures.append((failed_at, f"rank {rank} of {len(arguments)}: {results[rank]}"))
                        deadline = min(deadline, time.monotonic() + GRACE)
                if not ready:
                    failures = failures or [
                        (0.0, f"ranks {sorted(waiting.values())} did not answer within {timeout:g} s")
                    ]
                    break
            if failures:
                self.stop()
                failure = min(failures)[1]
                raise (_NoGroup if NO_GROUP in failure else RuntimeError)(failure)
        return [results[rank] for rank in range(len(arguments))]

    def stop(self) -> None:
        for process, pipe in self.workers:
            pipe.close()
            process.kill()
        self.workers.clear()

    def _start(self, count: int) -> None:
        context = torch.multiprocessing.get_context("forkserver")  # torch is imported once, before any thread runs
        context.set_forkserver_preload(["collimate.losses", "collimate.testing.ranks"])
        while len(self.workers) < count:
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there,), daemon=True)
            process.start()
            there.close()
            self.workers.append((process, here))


def _work(pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    while True:
        try:
            job = pipe.recv_bytes()
        except EOFError:
            return
        try:
            function, arguments, rank, ranks, store, timeout = cloudpickle.loads(job)
            _join(store, timeout, rank, ranks)
            answer = (None, function(*arguments))
        except BaseException:
            answer = (time.monotonic(), traceback.format_exc())
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        pipe.send_bytes(cloudpickle.dumps(answer))


def _join(store: str, timeout: float, rank: int, ranks: int) -> None:
    try:
        dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=timeout), rank=rank, world_size=ranks)
    except Exception as error:
        raise RuntimeError(NO_GROUP) from error


class _NoGroup(RuntimeError):
    """The ranks did not find each other."""


class _by_value:
    """While open, functions of modules that a worker could not import (tests, scripts) are pickled with their code."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Sequence[Any]]) -> None:
        functions = [function, *(value for own in arguments for value in own if callable(value))]
        modules = {inspect.getmodule(value) for value in functions} - {None}
        self.modules = [module for module in modules if not module.__name__.startswith("collimate")]  # type: ignore[union-attr]

    def __enter__(self) -> None:
        for module in self.modules:
            cloudpickle.register_pickle_by_value(module)

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            cloudpickle.unregister_pickle_by_value(module)


_pool = _Pool()
atexit.register(_pool.stop)
