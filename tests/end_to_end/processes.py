"""Runs of the command line in processes of their own, forked from one that has imported everything."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from collimate.cli import main

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["collimate.training.run", "collimate_vision_language", "collimate.checkpoints"])


def start(recipe: Path, *overrides: str, before: Callable[[], None] | None = None) -> multiprocessing.Process:
    """`collimate vision-language train` in a process of its own (forked from one that has imported everything)."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    process = PROCESSES.Process(target=train, args=([f"--config={recipe}", *overrides], before))
    process.start()
    return process


def train(arguments: list[str], before: Callable[[], None] | None) -> None:
    torch.set_num_threads(1)
    if before is not None:
        before()
    main(["vision-language", "train", *arguments])


def finish(process: multiprocessing.Process, seconds: float = 120) -> int:
    process.join(seconds)
    assert process.exitcode is not None, "the run did not end"
    return process.exitcode


def wait_for(condition: Callable[[], bool], process: multiprocessing.Process, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        if process.exitcode is not None:
            return
        time.sleep(0.05)


def start_ranks(recipe: Path, ranks: int, port: int, *overrides: str) -> list[multiprocessing.Process]:
    """One process a rank, told of each other as torchrun tells them."""
    return [
        start(recipe, *overrides, f"--trainer.devices={ranks}", before=_Rank(rank, ranks, port))
        for rank in range(ranks)
    ]


class _Rank:
    def __init__(self, rank: int, ranks: int, port: int) -> None:
        self.variables = {
            "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip

    def __call__(self) -> None:
        os.environ.update({name: str(value) for name, value in self.variables.items()})
