"""What gradient harmonization adds to a training step: by feature and by micro-batch, against the plain step.

    uv run python -m tools.bench.harmonization                  # small towers
    uv run python -m tools.bench.harmonization --device cuda

"step" is forward, losses and backward of one batch; the optimizer, which is the same, is left out. The bars: by feature
at most 5 % more; by micro-batch at most one further backward pass of the towers, whose time is measured beside.

Time: medians of interleaved calls in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from collimate.encoders import TimmImageEncoder
from collimate.encoding import Encoding
from collimate.losses import clip_loss
from collimate.training import Method
from collimate.training.harmonization import Curriculum, Harmonization
from tools.bench import _harness

GROUPS = {"va": ["va"], "vt": ["vt"]}
PLAIN, TOWERS = "plain", "backward of the towers"
VARIANTS: dict[str, Harmonization | None] = {
    PLAIN: None,
    "by feature": Harmonization(GROUPS, "feature"),
    "by feature, curriculum": Harmonization(GROUPS, "feature", curriculum=Curriculum()),
    "by micro-batch": Harmonization(GROUPS, "microbatch"),
}


class Trio(Method):
    """Three modalities, here all pictures, through one trunk; the first is contrasted with both others."""

    modalities = ("video", "audio", "text")

    def __init__(self, width: int, depth: int, side: int) -> None:
        super().__init__()
        sizes = {"patch_size": 8, "embed_dim": width, "depth": depth, "num_heads": width // 32}
        self.trunk = TimmImageEncoder("vit_base_patch16_224", image_size=side, model_args=sizes)
        self.heads = nn.ModuleDict({name: nn.Linear(width, 128) for name in self.modalities})

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return Encoding(self.heads[modality](self.trunk(inputs).pooled))

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        video = embeddings["video"]
        return {"va": clip_loss(video, embeddings["audio"], 14.0), "vt": clip_loss(video, embeddings["text"], 14.0)}


def steps(samples: int, width: int, depth: int, side: int, device: str) -> dict[str, Callable[[], Any]]:
    """A step of each variant, and the towers' backward pass alone, which keeps its graph."""
    torch.manual_seed(0)
    method = Trio(width, depth, side).to(device)
    batch = {name: torch.randn(samples, 3, side, side, device=device) for name in method.modalities}
    encoded = list(method.embed(batch).values())

    def step(harmonization: Harmonization | None) -> None:
        method.harmonization = harmonization
        method.zero_grad()
        method.training_step(batch, 0)["loss"].backward()

    def towers() -> None:
        torch.autograd.grad(encoded, list(method.parameters()), encoded, retain_graph=True)

    return {**{name: lambda each=each: step(each) for name, each in VARIANTS.items()}, TOWERS: towers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, nargs="+", help="samples of a batch")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    cuda = options.device != "cpu"
    width, depth, side = (768, 12, 112) if cuda else (128, 4, 48)
    rows = []
    for samples in options.samples or ([64, 256] if cuda else [32, 128]):
        seconds = _harness.interleaved(steps(samples, width, depth, side, options.device), options.repeats)
        plain, towers = seconds[PLAIN], seconds.pop(TOWERS)
        for name, own in seconds.items():
            backwards = (own - plain) / towers
            rows.append({"N": samples, "step": name, "s": own, "more": own / plain - 1, "towers' backwards": backwards})
    settings = {"width": width, "depth": depth, "side": side}
    _harness.report("harmonization_cuda" if cuda else "harmonization", rows, **settings)


if __name__ == "__main__":
    main()
