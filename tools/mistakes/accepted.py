"""What looks like a mistake and is none: taken as it is, without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from .medical import heard as ecg_heard
from .medical import record
from .sounds import film, heard, seen, sound

ACCEPTED: list[tuple[str, Callable[[Path], object]]] = []
"""What was done and what becomes of it; what does it."""


def accepted(done: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def register(run: Callable[[Path], object]) -> Callable[[Path], object]:
        ACCEPTED.append((done, run))
        return run

    return register


@accepted("A sound of silence: it is a sound")
def silence(folder: Path) -> None:
    heard(folder, "a.wav", sound("WAV", loudness=0.0))


@accepted("A video of one frame: it stands still")
def one_frame(folder: Path) -> None:
    seen(folder, film(1))


@accepted("Leads in microvolts: they become millivolts")
def microvolts(folder: Path) -> None:
    ecg_heard(record(folder, unit="uV"))


@accepted("ECGs of another rate than the encoder's: they are resampled")
def other_rate(folder: Path) -> None:
    ecg_heard(record(folder, rate=250))


@accepted("A queue whose size is no multiple of the batch: the oldest entries go first")
def odd_queue(folder: Path) -> None:
    from collimate.losses.queue import FeatureQueue

    queue = FeatureQueue(10, {"image": 4})
    for _ in range(3):
        queue.add(image=torch.ones(4, 4))
    assert float(queue.fill) == 1
