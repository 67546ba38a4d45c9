"""Training throughput beside open_clip's own training loop: equal model, data, batch, optimizer and precision.

    uv run python -m tools.bench.training

Both sides train the same ViT-S/32 CLIP on the same shards of web-sized JPEGs in float32, each with
its own loader (equal workers), loss, optimizer step and logging. They take turns in one process; the figure is the
median time of a step, the first of each turn left out.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from lightning.pytorch import Callback, Trainer
from open_clip.loss import ClipLoss
from open_clip_train.data import get_wds_dataset
from open_clip_train.train import train_one_epoch

from collimate.data import DataModule
from collimate.training import Optimization
from collimate.training.callbacks import GracefulStop, NonFiniteGuard, StepLog
from collimate_vision_language import CLIP
from tools.bench._harness import report
from tools.bench.data import make_shards

LEFT_OUT = 2  # steps of each turn in which workers start and caches fill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-S-32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="steps a turn")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), samples=options.batch_size * (options.steps + 2))
        theirs, ours = Theirs(options, shards), Ours(options, shards, Path(folder))
        times: dict[str, list[float]] = {"open_clip": [], "collimate": []}
        for _ in range(options.turns):
            times["open_clip"] += theirs.turn()
            times["collimate"] += ours.turn()
    steps = {name: median(values) for name, values in times.items()}
    rows = [
        {
            "system": name,
            "seconds_per_step": round(seconds, 4),
            "samples_per_second": round(options.batch_size / seconds, 2),
            "throughput_ratio": round(steps["open_clip"] / seconds, 3),
            "steps_measured": len(times[name]),
        }
        for name, seconds in steps.items()
    ]
    path = report("training", rows, **vars(options))
    print(f"Goal: a ratio of 1.1. Written to {path}.")


class Theirs:
    """open_clip's model, loader, loss and `train_one_epoch`."""

    def __init__(self, options: argparse.Namespace, shards: str) -> None:
        self.model, preprocess, _ = open_clip.create_model_and_transforms(options.model, output_dict=True)
        self.arguments = SimpleNamespace(
            train_data=shards, train_num_samples=options.batch_size * options.steps, train_data_upsampling_factors=None,
            dataset_resampled=False, seed=0, batch_size=options.batch_size, workers=options.workers, world_size=1,
            rank=0, local_rank=0, device="cpu", precision="fp32", distill=False, accum_freq=1, skip_scheduler=False,
            horovod=False, grad_clip_norm=None, log_every_n_steps=options.steps, wandb=False, tensorboard=False,
            distributed=False, log_local=False,
        )  # fmt: skip
        tokenizer = open_clip.get_tokenizer(options.model)
        self.data = {"train": get_wds_dataset(self.arguments, preprocess, is_train=True, tokenizer=tokenizer)}
        decayed, plain = [], []
        for parameter in self.model.parameters():
            (decayed if parameter.ndim >= 2 else plain).append(parameter)
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.98), eps=1e-6)  # as open_clip_train.main
        self.epoch = 0

    def turn(self) -> list[float]:
        starts: list[float] = []
        train_one_epoch(
            self.model, self.data, ClipLoss(), self.epoch, self.optimizer, None,
            lambda step: starts.append(time.perf_counter()), None, self.arguments,
        )  # fmt: skip
        self.epoch += 1
        return _durations(starts)


class Ours:
    """The same through Trainer, DataModule and the callbacks of every run."""

    def __init__(self, options: argparse.Namespace, shards: str, folder: Path) -> None:
        self.method = CLIP.from_open_clip(options.model)
        self.method.optimization = Optimization(lr=1e-5, schedule="constant", warmup=0)
        self.options, self.shards, self.folder = options, shards, folder

    def turn(self) -> list[float]:
        clock = Clock()
        data = DataModule(train=self.shards, batch_size=self.options.batch_size, num_workers=self.options.workers)
        Trainer(
            accelerator="cpu",
            max_steps=self.options.steps,
            callbacks=[clock, NonFiniteGuard(), StepLog(console=False), GracefulStop()],
            log_every_n_steps=self.options.steps,
            default_root_dir=self.folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(self.method, data)
        return _durations(clock.starts)


class Clock(Callback):
    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.starts.append(time.perf_counter())


def _durations(starts: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(starts)][LEFT_OUT:]


if __name__ == "__main__":
    main()
