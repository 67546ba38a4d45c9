"""How fast inputs come in: what a run with changing shapes is bound by."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from collimate import distributed
from collimate.console import say
from collimate.training.gradient_cache import batch_size


class InputSpeed(Callback):
    """Logs clips and pixels a second and the share of time that is spent waiting for the loader.

    Coarse stages ask for many times as many clips a second as fine ones, so that a loader that was fast enough no
    longer is: a warning says so, once for each time that the share comes to lie above `most_wait`.

    Written every `trainer.log_every_n_steps` steps, over all ranks: `input/clips_per_second`,
    `input/pixels_per_second`, of everything in a batch that has a height and a width, and `input/wait`, a share.

    Args:
        most_wait: the share above which there is a warning.
    """

    def __init__(self, most_wait: float = 0.3) -> None:
        self.most_wait = most_wait
        self._warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._waited += time.perf_counter() - self._last_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._clips += batch_size(batch)
        self._pixels += sum(pixels(value) for value in batch.values() if isinstance(value, Tensor))
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            self._write(trainer)
            self._restart()
        self._last_end = time.perf_counter()

    def _write(self, trainer: Trainer) -> None:
        seconds, ranks = time.perf_counter() - self._since, distributed.world_size()
        wait = self._waited / seconds
        metrics = {
            "input/clips_per_second": ranks * self._clips / seconds,
            "input/pixels_per_second": ranks * self._pixels / seconds,
            "input/wait": wait,
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        if wait > self.most_wait and not self._warned and trainer.is_global_zero:
            say(
                f"{wait:.0%} of the time is spent waiting for data at step {trainer.global_step}: use more "
                "data.num_workers, smaller files, or a schedule with smaller batches of coarse clips."
            )
        self._warned = wait > self.most_wait

    def _restart(self) -> None:
        self._since = self._last_end = time.perf_counter()
        self._waited, self._clips, self._pixels = 0.0, 0, 0


def pixels(value: Tensor) -> int:
    """How many pixels a batch of pictures (B, C, H, W) or clips, of five dimensions with C second or third, has."""
    if value.ndim not in (4, 5):
        return 0
    return value.numel() // next((size for size in value.shape[1 : value.ndim - 2] if size in (1, 3)), 1)
