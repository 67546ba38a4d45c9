"""Time and memory of retrieval by late interaction: every patch of every image against every token of every text.

    uv run python -m tools.bench.late_retrieval                  # 1000 images, then 5000, five texts each

Synthetic tokens, so that what is measured is `evaluate_retrieval` from the tokens on: writing them into files, reading
them block by block, scoring in both directions, ranking. Memory: growth of the peak of a fresh process, pages of the
files that it has mapped included. What stays in memory must not grow with the tokens; `tokens` is what they would take,
and `products` what all products of tokens would.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch
from torch import Tensor

from collimate.data import Sample, Source
from collimate.encoding import Encoding
from collimate.evaluation import evaluate_retrieval
from collimate.losses import late_interaction
from collimate.processing import Processor
from collimate.training import Method
from tools.bench import _harness

PATCHES, LENGTH, WIDTH, TEXTS = 49, 16, 64, 5


class Numbers(Processor):
    """A sample is its number."""

    def __call__(self, raw: str | bytes) -> Tensor:
        return torch.tensor(int(raw))


class Synthetic(Method):
    """Tokens of a sample's number: an image's patches are random, its texts' tokens are some of them and noise."""

    modalities = ("image", "text")

    def __init__(self) -> None:
        super().__init__()
        self.processors = {"image": Numbers(), "text": Numbers()}

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        rows = []
        for number in inputs.tolist():
            own = number if modality == "image" else number // TEXTS
            patches = torch.randn(PATCHES, WIDTH, generator=torch.Generator().manual_seed(own))
            if modality == "text":
                noise = torch.randn(LENGTH, WIDTH, generator=torch.Generator().manual_seed(10**9 + number))
                patches = patches[torch.arange(LENGTH) * 3] + 2 * noise
            rows.append(patches)
        tokens = torch.stack(rows)
        return Encoding(tokens.mean(1), tokens)

    def similarity(self, query: Encoding, key: Encoding) -> Tensor:
        assert query.tokens is not None
        assert key.tokens is not None
        return late_interaction(query.tokens, key.tokens)


class Pairs(Source):
    name = "synthetic"

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def read(self, index: int) -> Sample:
        captions = [str(TEXTS * index + number) for number in range(TEXTS)]
        return {"__key__": str(index), "__source__": self.name, "png": str(index), "captions.json": captions}


def one(images: int) -> None:
    """In a fresh process: prints seconds, bytes of growth and a recall."""
    found = {}

    def run() -> None:
        start = time.perf_counter()
        result = evaluate_retrieval(Synthetic(), Pairs(images), resamples=10, batch_size=256, device="cpu")
        found["seconds"] = time.perf_counter() - start
        found["recall"] = result.metrics["text_retrieval_recall@1"]

    evaluate_retrieval(Synthetic(), Pairs(20), resamples=10, device="cpu")  # what is imported late
    print(json.dumps({"bytes": _harness.peak_growth(run), **found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one)
        return
    rows = []
    for images in options.images:
        command = [sys.executable, "-m", "tools.bench.late_retrieval", "--one", str(images)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        numbers = images * (PATCHES + TEXTS * LENGTH) * WIDTH
        rows.append(
            {
                "images": images,
                "texts": images * TEXTS,
                "seconds": round(found["seconds"], 1),
                "extra peak MiB": round(found["bytes"] / 2**20),
                "tokens MiB": round(4 * numbers / 2**20),
                "products GiB": round(4 * images**2 * TEXTS * PATCHES * LENGTH / 2**30),
                "images to texts R@1": found["recall"],
            }
        )
    _harness.report("late_retrieval", rows, patches=PATCHES, length=LENGTH, width=WIDTH)


if __name__ == "__main__":
    main()
