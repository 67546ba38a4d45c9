"""Sparse pre-training for dense fine-tuning (Thangarasa et al. 2023, SPDF, arXiv 2303.10464)."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from collimate.encoders.linear_weights import linear_weights


class SparseWeights(Callback):
    """Keeps a random share of the encoders' weights at zero, the same ones for the whole of a run.

    As published: static masks drawn at random, up to 75 % in a GPT-3 XL of 1.3 billion parameters; here in the matrices
    of the encoders' linear layers, all at one sparsity, while embeddings, norms and biases are dense. Whoever trains on
    from the model without this callback trains it dense: what was zero grows from there. Zeros save arithmetic only on
    hardware for them; here they show what it would cost in quality.

    Masks are drawn from the seed and each weight's name, so that a run that goes on has the same ones.

    Args:
        sparsity: the share of zeros; 0.5 and 0.75 in the paper.
        seed: of the masks.
        dense_from: the optimizer step from which the run goes on dense; never if None.

    Raises:
        ValueError: the sparsity is not between 0 and 1.
    """

    def __init__(self, sparsity: float = 0.5, seed: int = 0, dense_from: int | None = None) -> None:
        if not 0 < sparsity < 1:
            raise ValueError(f"A share of zeros lies between 0 and 1, not {sparsity:g}.")
        self.sparsity, self.seed, self.dense_from = sparsity, seed, dense_from
        self._masks: list[tuple[nn.Parameter, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._masks = [(weight, self._mask(name, weight)) for name, weight in linear_weights(pl_module).items()]
        if not self._masks:
            raise ValueError(f"{type(pl_module).__name__} has no encoder with linear layers that learn.")
        self._apply(trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._is_sparse(trainer.global_step):
            for weight, mask in self._masks:
                if weight.grad is not None:
                    weight.grad.mul_(mask)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._apply(trainer.global_step)

    def _is_sparse(self, step: int) -> bool:
        return self.dense_from is None or step < self.dense_from

    @torch.no_grad()
    def _apply(self, step: int) -> None:
        if self._is_sparse(step):
            for weight, mask in self._masks:
                weight.mul_(mask)

    def _mask(self, name: str, weight: Tensor) -> Tensor:
        """True for what stays, exactly the wanted number of each matrix."""
        key = int.from_bytes(blake2b(f"{self.seed},{name}".encode(), digest_size=7).digest(), "little")
        order = torch.rand(weight.numel(), generator=torch.Generator().manual_seed(key)).argsort()
        mask = torch.ones(weight.numel(), dtype=torch.bool)
        mask[order[: round(self.sparsity * weight.numel())]] = False
        return mask.view(weight.shape).to(weight.device)
