"""Where a run keeps its checkpoints, and which one to go on from."""

from __future__ import annotations

import zipfile
from datetime import timedelta
from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint

from collimate.configurable import at_least
from collimate.console import say

FOLDER = "checkpoints"


def checkpoint_path(output: Path, step: int) -> Path:
    """The file of one step's checkpoint."""
    return Path(output) / FOLDER / f"step={step:08d}.ckpt"


class RunCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoints of a run, `<output>/checkpoints/step=<step>.ckpt`.

    A file is written under another name first and then renamed, and older ones are removed only after that,
    so a full disk or a kill loses none.

    Args:
        output: the run's folder.
        every_steps: optimizer steps between two checkpoints.
        every_minutes: minutes between two checkpoints; give this or `every_steps`.
        keep: how many of the newest stay; -1 for all.

    Raises:
        ValueError: a number is too small.
    """

    def __init__(
        self, output: str, every_steps: int | None = None, every_minutes: float | None = None, keep: int = 3
    ) -> None:
        at_least(1, every_steps=every_steps)
        at_least(-1, keep=keep)
        super().__init__(
            dirpath=Path(output) / FOLDER,
            filename="{step:08d}",
            monitor="step" if keep >= 0 else None,
            mode="max",
            save_top_k=keep,
            every_n_train_steps=every_steps,
            train_time_interval=None if every_minutes is None else timedelta(minutes=every_minutes),
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )


def newest_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None. Damaged ones are named and passed over."""
    for path in sorted((Path(output) / FOLDER).glob("step=*.ckpt"), reverse=True):
        if (fault := checkpoint_fault(path)) is None:
            return path
        say(f"The checkpoint {path} is damaged ({fault}); using the one before it.")
    return None


def checkpoint_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None. Reads it once and checks every checksum; runs nothing."""
    if path.is_dir():  # a sharded checkpoint is whole once its metadata, written last, is there
        return None if (path / ".metadata").is_file() else "its .metadata is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return str(error)
    return None if broken is None else f"checksum of {broken}"
