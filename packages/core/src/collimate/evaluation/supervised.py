"""An encoder that is taught labels from the start, on few samples, in a few minutes: the row beside probes.

With h the pooled vector and W, b a linear layer, sigmoid(W h + b) is taught by binary cross entropy where a label is
known. No pre-training, no augmentation, one cycle of the learning rate: what anybody would try first. For long runs,
there is `collimate.training.Classifier`.

Shape legend: N samples, n chosen ones, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from collimate.data import EvalLoader, Source
from collimate.data.source import Sample
from collimate.encoders import Encoder
from collimate.evaluation.features import Precision, encode, extract, place
from collimate.evaluation.probes import randomized

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05  # ours: of AdamW, for small encoders from random weights


class Chosen(Source):
    """Some samples of a source, in a given order."""

    def __init__(self, source: Source, rows: Sequence[int]) -> None:
        self.source, self.rows, self.name = source, list(rows), source.name

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Sample:
        return self.source.read(self.rows[index])


def supervised_scores(
    encoder: Encoder,
    train: Source,
    rows: Int64[Tensor, " n"],
    labels: Float[Tensor, "n C"],
    test: Source,
    modality: str,
    steps: int = 300,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    seed: int = 0,
) -> Float[Tensor, "M C"]:
    """Logits of test samples by an encoder of the same kind, trained from random weights.

    Args:
        encoder: with its processor; it stays as it is.
        train: where the training samples lie.
        rows: the places of the n training samples in it.
        labels: of these samples: 0, 1, between, or NaN where it is not known.
        test: what is scored.
        modality: what the encoder reads.
        steps: of the optimizer.
        batch_size, num_workers, device, precision: of training and scoring.
        limit: at most so many test samples, spread over the data.
        seed: of the weights and of the order of samples.
    """
    fresh = randomized(encoder, seed)
    where = place(fresh, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(fresh.width, labels.shape[1]).to(where)
        _fit(fresh, head, train, rows, labels, modality, steps, min(batch_size, len(rows)), num_workers, where)
    found = extract(fresh, test, [modality], [], False, batch_size, num_workers, device, precision, limit)
    with torch.inference_mode():
        return head.cpu()(found.encodings[modality].pooled)


def _fit(
    encoder: Encoder,
    head: nn.Linear,
    train: Source,
    rows: Tensor,
    labels: Tensor,
    modality: str,
    steps: int,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> None:
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=max(steps, 1) + 1)
    batches = _batches(train, rows, labels, {modality: encoder.processor}, batch_size, num_workers)
    encoder.train()
    for _, (batch, targets) in zip(range(steps), batches, strict=False):
        logits = head(encode(encoder, modality, batch[modality].to(device)).pooled).float()
        known = (~targets.isnan() & batch["valid"][:, None]).to(device)
        each = binary_cross_entropy_with_logits(logits, targets.nan_to_num(0).to(device), reduction="none")
        optimizer.zero_grad()
        ((each * known).sum() / known.sum().clamp_min(1)).backward()
        optimizer.step()
        schedule.step()
    encoder.eval()


def _batches(
    train: Source, rows: Tensor, labels: Tensor, processors: Any, batch_size: int, num_workers: int
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Batches without end with their labels; each epoch in another order. All ranks see the same ones."""
    while True:
        order = torch.randperm(len(rows))
        source = Chosen(train, rows[order].tolist())
        for batch in EvalLoader(source, processors, batch_size, num_workers, rank=0, world_size=1):
            yield batch, labels[order[batch["index"]]].float()
