"""One line every few steps that says whether the run is fast and healthy."""

from __future__ import annotations

import time
from itertools import combinations
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from collimate import distributed
from collimate.console import say
from collimate.training.gradient_cache import batch_size
from collimate.training.statistics import effective_rank, similarity_gap


class StepLog(Callback):
    """Logs loss terms, speed, data-wait share and the state of the embedding space.

    Written every `trainer.log_every_n_steps` steps (0 for never), to the loggers and as one line on the console:

    - `loss` and each term;
    - `samples_per_second`, over all ranks;
    - `data_wait`: the share of the time since the last line spent waiting for the loader;
    - `worker_ms`: milliseconds in which a worker of this rank reads, decodes and augments a sample; to loggers alone;
    - `logit_scale`: the multiplier, not its logarithm;
    - `similarity_gap`: mean cosine of pairs minus that of non-pairs, on this rank's batch;
    - `effective_rank`: dimensions in use, per modality;
    - `negatives`: how many each sample is contrasted with, over all ranks;
    - the method's own `statistics`;
    - `lr`, `samples_seen`.

    Args:
        console: also print the line.
    """

    def __init__(self, console: bool = True) -> None:
        self.console = console
        self._waited = self._worked = 0.0
        self._samples = 0
        self._steps = 0
        self._since = self._last_end = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()
        self._worked = _worker_seconds(trainer)
        self._last_end = self._since

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._waited += time.perf_counter() - self._last_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += batch_size(batch)
        self._steps += 1
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0 and self._steps:
            self._write(trainer, pl_module, outputs)
            self._restart()
        self._last_end = time.perf_counter()

    def _restart(self) -> None:
        self._since, self._waited, self._samples, self._steps = time.perf_counter(), 0.0, 0, 0

    def _write(self, trainer: Trainer, module: LightningModule, outputs: dict[str, Any]) -> None:
        elapsed = time.perf_counter() - self._since
        world = distributed.world_size()
        metrics: dict[str, float] = {"loss": float(outputs["loss"])}
        if len(outputs["terms"]) > 1:
            metrics |= {f"loss/{name}": float(value.detach()) for name, value in outputs["terms"].items()}
        metrics["samples_per_second"] = world * self._samples / elapsed
        metrics["data_wait"] = self._waited / elapsed
        worked, self._worked = self._worked, _worker_seconds(trainer)
        metrics["worker_ms"] = 1000 * (self._worked - worked) / self._samples
        metrics |= space_statistics(module, outputs["embeddings"])
        statistics = {name: float(value) for name, value in getattr(module, "statistics", {}).items()}
        metrics |= statistics
        metrics["negatives"] = float(world * self._samples // self._steps - 1)
        metrics["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        if self.console and trainer.is_global_zero:
            say(_line(trainer, metrics, statistics))


def _worker_seconds(trainer: Trainer) -> float:
    """So far, of this rank's loader; 0 where the loader is not ours."""
    return getattr(trainer.train_dataloader, "worker_seconds", 0.0)


@torch.no_grad()
def space_statistics(module: LightningModule, embeddings: dict[str, torch.Tensor]) -> dict[str, float]:
    """`logit_scale`, `similarity_gap` of each pair of modalities, `effective_rank` of each."""
    metrics: dict[str, float] = {}
    if isinstance(scale := getattr(module, "logit_scale", None), torch.Tensor):
        metrics["logit_scale"] = float(scale.float().exp())
    modalities = getattr(module, "modalities", ())
    vectors = {name: embeddings[name] for name in modalities if name in embeddings and embeddings[name].ndim == 2}
    pairs = [pair for pair in combinations(vectors, 2) if vectors[pair[0]].shape == vectors[pair[1]].shape]
    for first, second in pairs:
        name = "similarity_gap" if len(pairs) == 1 else f"similarity_gap/{first}-{second}"
        metrics[name] = float(similarity_gap(vectors[first], vectors[second]))
    return metrics | {f"effective_rank/{name}": float(effective_rank(value)) for name, value in vectors.items()}


def _line(trainer: Trainer, metrics: dict[str, float], statistics: dict[str, float]) -> str:
    ranks = {key.split("/")[1]: value for key, value in metrics.items() if key.startswith("effective_rank/")}
    gaps = {key.partition("/")[2]: value for key, value in metrics.items() if key.startswith("similarity_gap")}
    terms = {key.split("/")[1]: value for key, value in metrics.items() if key.startswith("loss/")}
    parts = [f"step {trainer.global_step}/{trainer.max_steps}" if trainer.max_steps > 0 else f"{trainer.global_step}"]
    parts.append(f"loss {metrics['loss']:.4f}" + (f" ({_named(terms, '.4f')})" if terms else ""))
    parts.append(f"{metrics['samples_per_second']:,.0f} samples/s")
    parts.append(f"data wait {metrics['data_wait']:.0%}")
    if "logit_scale" in metrics:
        parts.append(f"logit_scale {metrics['logit_scale']:.1f}")
    if gaps:
        parts.append(f"gap {_named(gaps, '.3f')}")
    if ranks:
        parts.append(f"effective rank {_named(ranks, '.0f')}")
    for group in dict.fromkeys(name.partition("/")[0] for name in statistics):
        own = {name.partition("/")[2]: value for name, value in statistics.items() if name.partition("/")[0] == group}
        parts.append(f"{group} {_named(own, '.3f')}")
    return " · ".join([*parts, f"lr {metrics['lr']:.2e}"])


def _named(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}".strip() for name, value in values.items())
