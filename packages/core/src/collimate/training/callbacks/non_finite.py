"""A run that turns to NaN stops at once, says where, and leaves a checkpoint that is still good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn


class NonFiniteError(RuntimeError):
    """A loss or a parameter is NaN or infinite."""


class NonFiniteGuard(Callback):
    """Stops before the backward pass of a non-finite loss.

    The error names the step and the first module whose output was not finite (found by running the batch
    again under hooks), and the batch is kept beside the checkpoints for inspection. A checkpoint with
    non-finite parameters is never written, so the last one on disk is good.

    Reading the loss waits for the device once a step; a contrastive step is long beside that.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if bool(torch.isfinite(loss)):
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"non_finite_step{trainer.global_step}_rank{trainer.global_rank}.pt"
        torch.save({key: value for key, value in self._batch.items() if isinstance(value, Tensor)}, path)
        culprit = first_non_finite(pl_module, self._batch)
        raise NonFiniteError(
            f"The loss is {loss.item()} at step {trainer.global_step} on rank {trainer.global_rank}. First at fault: "
            f"{culprit}. The batch is saved as {path}; the last checkpoint was written before this step and is good. "
            "Common causes: a learning rate too high, fp16 without loss scaling, samples that are not finite."
        )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for name, parameter in pl_module.named_parameters():
            if not bool(torch.isfinite(parameter.detach()).all()):
                raise NonFiniteError(
                    f"The parameter {name} is not finite after step {trainer.global_step}: no checkpoint is written, "
                    "the one before is good. Common causes: a learning rate too high, non-finite gradients."
                )


def first_non_finite(module: LightningModule, batch: dict[str, Any]) -> str:
    """The name of the input, parameter or submodule where non-finite values first appear in a training step."""
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return f"the input {key!r}"
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"the parameter {name!r}"
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            if not found and not _finite(output):
                found.append(name)

        return look

    handles = [child.register_forward_hook(hook(name)) for name, child in module.named_modules() if name]
    try:
        with torch.no_grad():
            module.loss_terms(batch)  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the output of {found[0]!r}"
    return "the loss itself (every module's output was finite)"


def _finite(output: Any) -> bool:
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(torch.isfinite(output).all())
    if isinstance(output, dict):
        return all(_finite(value) for value in output.values())
    if isinstance(output, (list, tuple)):
        return all(_finite(value) for value in output)
    pooled = getattr(output, "pooled", None)
    return pooled is None or (_finite(pooled) and _finite(getattr(output, "tokens", None)))
