"""Training VATT's towers of clips and sounds with half of the tokens, against all of them.

    uv run python -m tools.bench.drop_token                    # two layers of the Base size, clips of 32 x 224 x 224
    uv run python -m tools.bench.drop_token --device cuda --layers 12 --batch 8

Forward and backward of both towers in float32; texts are never dropped and cost the same. Time: medians of interleaved
calls in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from collimate_video import TokenEncoder, TokenTransformer, VideoPatches, WavePatches
from tools.bench import _harness

DROP = 0.5


def step(layers: int, batch: int, drop: float, device: str) -> Callable[[], None]:
    towers = [
        TokenEncoder(tokens, TokenTransformer(layers=layers, dropout=0.0), drop, dropout=0.0).to(device).train()
        for tokens in (VideoPatches(), WavePatches())
    ]
    inputs = [torch.randn(batch, *shape, device=device) for shape in ((32, 3, 224, 224), (153_600,))]

    def run() -> None:
        for tower, given in zip(towers, inputs, strict=True):
            tower.zero_grad(set_to_none=True)
            tower(given).pooled.sum().backward()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    shares = {"all tokens": 0.0, "half of them": DROP}
    runs = {name: step(options.layers, options.batch, drop, options.device) for name, drop in shares.items()}
    seconds = _harness.interleaved(runs, options.repeats)
    whole, half = seconds.values()
    rows = [{**{f"{name} s": value for name, value in seconds.items()}, "step time": half / whole}]
    name = "drop_token_cuda" if options.device != "cpu" else "drop_token"
    _harness.report(name, rows, layers=options.layers, batch=options.batch, width=768)


if __name__ == "__main__":
    main()
