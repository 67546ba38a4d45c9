"""A progress bar over the run's steps, since training counts steps and not epochs."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining


class StepProgress(ProgressBar):
    """One bar over all optimizer steps, a second one while validating. Shown on terminals only."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._validation: TaskID | None = None
        self._training = TaskID(0)

    def disable(self) -> None:
        self._close()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not get_console().is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
        self._progress = Progress(*columns, TimeElapsedColumn(), Remaining(), console=get_console(), transient=True)
        self._progress.start()
        steps = trainer.estimated_stepping_batches
        total = None if steps == float("inf") else int(steps)
        self._training = self._progress.add_task("training", total=total, completed=trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._training, completed=trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._progress is not None:
            self._validation = self._progress.add_task("validation", total=sum(map(int, trainer.num_val_batches)))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._progress is not None and self._validation is not None:
            self._progress.advance(self._validation)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._progress is not None and self._validation is not None:
            self._progress.remove_task(self._validation)
            self._validation = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
