"""Training TimeSformer: attention that keeps no score matrix, against the plain softmax form.

    uv run python -m tools.bench.divided_attention                    # clips of 224 and of 448 pixels; ten minutes
    uv run python -m tools.bench.divided_attention --device cuda --batch 8

"plain" is the same encoder as formulas write it: attention by the scores of each sequence, their softmax, and the
product with the values, and all that is computed kept for the backward pass. Forward and backward of the whole encoder
in float32; gradients of both are held against each other first.

Time: medians of interleaved calls in one process. Memory: the peak of a step in a fresh process, above parameters,
their gradients and the input.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

from collimate_video import TimeSformer
from collimate_video.divided_attention import DividedBlock, SequenceAttention
from tools.bench import _harness

FUSED, PLAIN = "fused", "plain"


class PlainBlock(DividedBlock):
    """The plain softmax form, which keeps whatever it computes."""

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        first, patches = tokens[:, :1], tokens[:, 1:].unflatten(1, (-1, frames))
        patches = patches + self.temporal_fc(_attended(self.temporal_attn, self.temporal_norm1(patches)))
        whole = torch.cat([first[:, None].expand(-1, frames, -1, -1), patches.transpose(1, 2)], 2)
        seen = _attended(self.attn, self.norm1(whole))
        first = first + seen[:, :, 0].mean(1, keepdim=True)
        patches = patches + seen[:, :, 1:].transpose(1, 2)
        tokens = torch.cat([first, patches.flatten(1, 2)], 1)
        return tokens + self.mlp(self.norm2(tokens))


def _attended(attention: SequenceAttention, tokens: Tensor) -> Tensor:
    projected = attention.qkv(tokens).unflatten(-1, (3, attention.heads, -1))
    query, key, value = projected.permute(3, 0, 1, 4, 2, 5)
    weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
    return attention.proj((weights @ value).transpose(2, 3).flatten(3))


def contenders(layers: int, frames: int, side: int, device: str) -> dict[str, TimeSformer]:
    torch.manual_seed(0)
    fused = TimeSformer(layers=layers, frames=frames, image_size=side, drop_path=0.0).to(device)
    for block in fused.blocks:
        torch.nn.init.trunc_normal_(block.temporal_fc.weight, std=0.02)  # zero at the start: nothing would flow in time
    plain = TimeSformer(layers=layers, frames=frames, image_size=side, drop_path=0.0).to(device)
    plain.load_state_dict(fused.state_dict())
    for block in plain.blocks:
        block.__class__ = PlainBlock
    return {FUSED: fused, PLAIN: plain}


def step(encoder: TimeSformer, clips: Tensor) -> Callable[[], None]:
    def run() -> None:
        encoder.zero_grad(set_to_none=False)
        encoder(clips).pooled[:, ::2].sum().backward()  # not all of it: the last norm makes that a constant

    return run


def measure(whose: str, layers: int, frames: int, side: int, batch: int, device: str) -> int:
    """Bytes by which the first step of an encoder lets memory grow beside parameters, their gradients and the input."""
    encoder, clips = contenders(layers, frames, side, device)[whose], made_up(batch, frames, side, device)
    for parameter in encoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return _harness.peak_growth(step(encoder, clips))


def made_up(batch: int, frames: int, side: int, device: str) -> Tensor:
    return torch.randn(batch, frames, 3, side, side, generator=torch.Generator().manual_seed(1)).to(device)


def compare(layers: int, frames: int, side: int, batch: int, device: str, repeats: int) -> dict:
    encoders = contenders(layers, frames, side, device)
    clips = made_up(batch, frames, side, device)
    runs = {name: step(encoder, clips) for name, encoder in encoders.items()}
    for run in runs.values():
        run()
    for (name, one), two in zip(encoders[FUSED].named_parameters(), encoders[PLAIN].parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-3 * float(two.grad.abs().max()), msg=name)
    seconds = _harness.interleaved(runs, repeats)
    sizes = [str(size) for size in (layers, frames, side, batch)]
    memory = {
        name: _harness.extra_peak_memory("tools.bench.divided_attention", "--measure", name, *sizes, device)
        for name in encoders
    }
    return {
        "side": side,
        "frames": frames,
        "batch": batch,
        **{f"{name} s": value for name, value in seconds.items()},
        "speedup": seconds[PLAIN] / seconds[FUSED],
        **{f"{name} MiB": value / 2**20 for name, value in memory.items()},
        "memory": memory[FUSED] / memory[PLAIN],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 448])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        whose, *sizes, device = options.measure
        print(measure(whose, *map(int, sizes), device=device))
        return
    rows = [
        compare(options.layers, options.frames, side, options.batch, options.device, options.repeats)
        for side in options.sides
    ]
    name = "divided_attention_cuda" if options.device != "cpu" else "divided_attention"
    _harness.report(name, rows, layers=options.layers, width=768)


if __name__ == "__main__":
    main()
