"""The smallest method: two linear towers. Stands in for real ones where only the machinery is tested."""

from typing import Any

import torch
from torch import Tensor, nn

from collimate.encoding import Encoding
from collimate.losses import clip_loss
from collimate.training import Method


class Toy(Method):
    modalities = ("image", "text")

    def __init__(self, width: int = 8, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(6, width),
                    nn.BatchNorm1d(width) if batch_norm else nn.Identity(),
                    nn.GELU(),
                    nn.Dropout(dropout),
                    nn.Linear(width, width, bias=False),
                )
                for name in self.modalities
            }
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return Encoding(self.towers[modality](inputs))

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"clip": clip_loss(embeddings["image"], embeddings["text"], self.logit_scale.exp())}


def toy_batch(size: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(size, 6, generator=generator),
        "text": torch.randn(size, 6, generator=generator),
        "position": torch.arange(size),
    }


class ToyLoader:
    """A sized list of batches, each of which takes a worker a second."""

    worker_seconds = 0.0

    def __init__(self, steps: int, size: int = 8) -> None:
        self.batches = [toy_batch(size, seed) for seed in range(steps)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.worker_seconds += 1
            yield batch
