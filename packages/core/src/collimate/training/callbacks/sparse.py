"""Sparse pre-training for dense fine-tuning (Thangarasa et al. 2023, SPDF, arXiv 2303.10464)."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from collimate.encoders import Encoder


class SparseWeights(Callback):
    """Keeps a random share of the encoders' weights at zero, the same ones for the whole of a run.

    As published: the matrices of linear layers, all at one sparsity, under static masks drawn at random; embeddings,
    norms and biases are dense. Whoever trains on from the model without this callback trains it dense: what was zero
    grows from there. Zeros save arithmetic only on hardware for them; here they show what it would cost in quality.

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
        self._masks = [(weight, self._mask(name, weight)) for name, weight in sparse_weights(pl_module).items()]
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


def sparse_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> the matrix of each layer of an encoder that multiplies vectors and learns; embeddings' own are none."""
    tied = {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
    found: dict[str, nn.Parameter] = {}
    for outer, encoder in module.named_modules():
        if not isinstance(encoder, Encoder):
            continue
        for inner, child in encoder.named_modules():
            attention = isinstance(child, nn.MultiheadAttention)
            weight = child.in_proj_weight if attention else getattr(child, "weight", None)
            if not (attention or isinstance(child, nn.Linear)) or weight is None or id(weight) in tied:
                continue
            if weight.requires_grad:
                found[".".join(part for part in (outer, inner, "weight") if part)] = weight
    return found
