"""Ctrl-C and SIGTERM end a run between two steps, with a checkpoint."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from collimate import distributed
from collimate.console import say
from collimate.training.callbacks.checkpointing import checkpoint_path


class GracefulStop(Callback):
    """On SIGINT or SIGTERM: finish the step, save, exit with status 0. A second Ctrl-C stops at once.

    The signal may reach one rank only, so the ranks agree after every step. Lightning's own handler would
    run a collective inside the signal handler, in the middle of a step; this one only sets a flag.
    """

    def __init__(self) -> None:
        self._asked: str | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not distributed.any_rank(self._asked is not None):
            return
        path = checkpoint_path(Path(trainer.default_root_dir), trainer.global_step)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            say(
                f"Stopped after step {trainer.global_step} ({self._asked or 'another rank was asked to stop'}). "
                f"Checkpoint: {path}\nRun the same command again to go on from there."
            )
        self._restore()
        raise SIGTERMException

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _handle(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self._asked:
            raise KeyboardInterrupt
        self._asked = signal.Signals(number).name

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
