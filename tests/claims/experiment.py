"""Paired experiments at small scale: the same seeds for every arm, differences seed by seed, with their intervals.

An arm is a function of a seed that trains and measures, and returns numbers by name. Arms and seeds run side by side,
one process a core, each with one thread. What comes out is printed as a table and kept in `tests/claims/results`, with
the machine that it was measured on.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import joblib
import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from scipy import stats

from collimate.data import CaptionChoice, DataModule, Sample, Source
from collimate.data.plan import BatchSchedule
from collimate.encoders import OpenClipTextEncoder, TimmImageEncoder
from collimate.processing import ClipTokenizer, HuggingFaceTokenizer, ImageProcessor
from collimate.training import Method, Optimization
from collimate.training.optimization import Schedule

RESULTS = Path(__file__).parent / "results"
SEEDS = range(5)

Arm = Callable[[int], Mapping[str, float]]


@dataclass(frozen=True)
class Comparison:
    """A paired difference over seeds: its mean, and the ends of its 95 % t-interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True)
class Outcome:
    """arm -> metric -> the numbers of all seeds."""

    values: dict[str, dict[str, list[float]]]

    def mean(self, arm: str, metric: str) -> float:
        return float(np.mean(self.values[arm][metric]))

    def difference(self, better: str, worse: str, metric: str) -> Comparison:
        """How much the one arm exceeds the other, seed by seed."""
        gains = np.subtract(self.values[better][metric], self.values[worse][metric])
        return Comparison(float(gains.mean()), *_interval(gains))

    def table(self) -> str:
        """Mean and 95 % t-interval of every metric of every arm, as Markdown."""
        metrics = list(dict.fromkeys(name for found in self.values.values() for name in found))
        lines = [f"| arm | {' | '.join(metrics)} |", f"|---|{'---|' * len(metrics)}"]
        for arm, found in self.values.items():
            cells = [_cell(found[name]) if name in found else "–" for name in metrics]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
        return "\n".join(lines)


def compare(name: str, arms: Mapping[str, Arm], seeds: Sequence[int] = SEEDS) -> Outcome:
    """Run every arm with every seed; print the table and keep it as `results/<name>.json`."""
    jobs = [(arm, seed) for seed in seeds for arm in arms]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = joblib.Parallel(n_jobs=cores)(joblib.delayed(_run)(arms[arm], seed) for arm, seed in jobs)
    values: dict[str, dict[str, list[float]]] = {arm: {} for arm in arms}
    for (arm, _), numbers in zip(jobs, found, strict=True):  # type: ignore[arg-type]
        for metric, value in numbers.items():
            values[arm].setdefault(metric, []).append(float(value))
    outcome = Outcome(values)
    print(f"\n{name}, {len(seeds)} seeds\n{outcome.table()}")
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": cores,
        "torch": version("torch"),
        "date": datetime.now(UTC).date().isoformat(),
    }
    record = {"seeds": list(seeds), "machine": machine, "values": values}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return outcome


class Listed(Source):
    """Samples in a list."""

    name = "listed"

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Sample:
        return dict(self.samples[index])


def train(
    build: Callable[[], Method],
    source: Source,
    seed: int,
    steps: int | None,
    batch_size: int = 128,
    lr: float = 5e-3,
    captions: dict[str, CaptionChoice] | None = None,
    augmentations: dict[str, Any] | None = None,
    schedule: BatchSchedule | None = None,
    rate: Schedule = "cosine",
    clip: float | None = None,
    **optimization: Any,
) -> Method:
    """A method trained from random weights on a source, by the project's own loop; in evaluation mode.

    Args:
        build: makes the method; called after seeding, so that arms of equal towers start from equal weights.
        steps: None for the length of the schedule.
        captions, augmentations, schedule: as `DataModule`'s.
        rate: the schedule of the learning rate.
        clip: the largest norm of the gradients.
        optimization: further arguments of `Optimization`.
    """
    seed_everything(seed, verbose=False)
    method = build()
    method.optimization = Optimization(
        **{"lr": lr, "weight_decay": 0.05, "warmup": 0.05, "options": {"fused": True}, **optimization}, schedule=rate
    )
    data = DataModule(
        source,
        batch_size=batch_size,
        seed=seed,
        augmentations=augmentations or {},
        captions=captions,
        schedule=schedule,
    )
    trainer = Trainer(
        max_steps=steps or -1,
        max_epochs=None if steps else 1,
        accelerator="cpu",
        gradient_clip_val=clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(method, data)
    return method.eval()


def whole_words(texts: Sequence[str], context_length: int) -> HuggingFaceTokenizer:
    """A tokenizer in the manner of BERT's that knows the words of the texts, and commas."""
    from transformers import BertTokenizer

    words = set(re.findall(r"\w+|,", " ".join(texts)))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    folder = mkdtemp()
    BertTokenizer(vocab={word: place for place, word in enumerate(vocabulary)}).save_pretrained(folder)
    return HuggingFaceTokenizer(folder, context_length)


def small_towers(context_length: int, size: int = 64, output_stride: int = 8) -> dict[str, Any]:
    """Constructor arguments of an image-text method: towers that learn the world in a minute on one core.

    Args:
        context_length: of the texts, in tokens.
        size: side of the pictures in pixels.
        output_stride: pixels a token of the image tower; 8 or 16 or 32.
    """
    model_args = {"channels": [24, 32, 64, 128], "stem_width": 8, "output_stride": output_stride}
    return {
        "image_encoder": TimmImageEncoder("resnet10t", model_args=model_args),
        "text_encoder": OpenClipTextEncoder(context_length=context_length, width=64, heads=4, layers=1, mlp_ratio=0.25),
        "image_processor": ImageProcessor(size),
        "tokenizer": ClipTokenizer(context_length),
    }


def small_image_tower(width: int, output_stride: int = 8) -> TimmImageEncoder:
    """A narrower tower than that of `small_towers`, with a token for each 8 x 8 pixels or more."""
    model_args = {"channels": [16, 24, 48, width], "stem_width": 8, "output_stride": output_stride}
    return TimmImageEncoder("resnet10t", model_args=model_args)


def _run(arm: Arm, seed: int) -> Mapping[str, float]:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    return arm(seed)


def _interval(values: np.ndarray) -> tuple[float, float]:
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return float(low), float(high)


def _cell(values: Sequence[float]) -> str:
    low, high = _interval(np.asarray(values))
    return f"{np.mean(values):.3f} ({low:.3f} to {high:.3f})"
