"""Techniques that any method can be trained with, each switched on by naming its callback in a recipe."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from collimate.encoders import Encoder
from collimate.training.harmonization import Harmonization
from collimate.training.method import Method


class GradientCache(Callback):
    """Trains on the whole batch at the memory of one chunk (see `collimate.training.gradient_cache`).

    Args:
        chunk_size: samples encoded at a time on each rank.
    """

    def __init__(self, chunk_size: int) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, not {chunk_size}.")
        self.chunk_size = chunk_size

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Method):
            raise TypeError(f"The gradient cache needs a Method, not {type(pl_module).__name__}.")
        if type(pl_module).loss_terms is not Method.loss_terms:
            raise TypeError(
                f"{type(pl_module).__name__} does not split its step into embed (per sample) and losses, so the "
                "gradient cache cannot cut its batches into chunks: leave it out, or write the step as these two."
            )
        pl_module.gradient_cache = self.chunk_size


class Harmonize(Callback):
    """Realigns the gradients of losses that are at odds (see `collimate.training.harmonization`).

    Cosines and shares of conflicts stand in the step log and in the run's report, as `conflict/...`.

    Args:
        harmonization: which losses, between which gradients, by which rule.
    """

    def __init__(self, harmonization: Harmonization) -> None:
        self.harmonization = harmonization

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Method):
            raise TypeError(f"Harmonization needs a Method, not {type(pl_module).__name__}.")
        if type(pl_module).loss_terms is not Method.loss_terms:
            raise TypeError(
                f"{type(pl_module).__name__} does not split its step into embed (per sample) and losses, between which "
                "gradients are harmonized."
            )
        if isinstance(trainer.strategy, ModelParallelStrategy) and self.harmonization.granularity != "feature":
            raise ValueError("With sharded parameters, gradients are harmonized by feature: granularity: feature.")
        pl_module.harmonization = self.harmonization

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.harmonization = None  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        return {"targets": self.harmonization.vac.targets}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.harmonization.vac.targets = state_dict["targets"]


class CompileEncoders(Callback):
    """Compiles every encoder in place with torch.compile; the method around them stays eager.

    Args:
        mode: torch.compile's mode.
        dynamic: compile for any shape; None lets torch decide after it has seen two.
    """

    def __init__(self, mode: str = "default", dynamic: bool | None = None) -> None:
        self.mode, self.dynamic = mode, dynamic

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for module in pl_module.modules():
            if isinstance(module, Encoder):
                module.compile(mode=self.mode, dynamic=self.dynamic)
