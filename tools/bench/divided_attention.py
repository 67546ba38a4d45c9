"""Training TimeSformer: attention that keeps no score matrix, against the plain softmax form.

    uv run python -m tools.bench.divided_attention                    # a block of ViT-B's width, 224 and 448 pixels
    uv run python -m tools.bench.divided_attention --device cuda --layers 12 --batch 8

"plain" is the same encoder with attention as formulas write it: the scores of each sequence, their softmax, and the
product with the values, each of which the backward pass keeps. Forward and backward of the whole encoder in float32;
gradients of both are held against each other first.

Time: medians of interleaved calls in one process. Memory: bytes of activations that the forward pass keeps for the
backward pass, each storage counted once, without parameters.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

from collimate_video import TimeSformer
from collimate_video.divided_attention import SequenceAttention
from tools.bench import _harness

FUSED, PLAIN = "fused", "plain"


class PlainAttention(SequenceAttention):
    """The plain softmax form."""

    def forward(self, tokens: Tensor) -> Tensor:
        projected = self.qkv(tokens).flatten(0, 1).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2)).unflatten(0, tokens.shape[:2])


def contenders(layers: int, frames: int, side: int, device: str) -> dict[str, TimeSformer]:
    torch.manual_seed(0)
    fused = TimeSformer(layers=layers, frames=frames, image_size=side, drop_path=0.0).to(device)
    for block in fused.blocks:
        torch.nn.init.trunc_normal_(block.temporal_fc.weight, std=0.02)  # zero at the start: nothing would flow in time
    plain = TimeSformer(layers=layers, frames=frames, image_size=side, drop_path=0.0).to(device)
    plain.load_state_dict(fused.state_dict())
    for block in plain.blocks:
        block.attn.__class__ = block.temporal_attn.__class__ = PlainAttention
    return {FUSED: fused, PLAIN: plain}


def step(encoder: TimeSformer, clips: Tensor) -> Callable[[], None]:
    def run() -> None:
        encoder.zero_grad(set_to_none=True)
        encoder(clips).pooled[:, ::2].sum().backward()  # not all of it: the last norm makes that a constant

    return run


def kept_bytes(encoder: TimeSformer, clips: Tensor) -> int:
    """What the forward pass keeps for the backward pass, beside parameters and input."""
    ours = {parameter.untyped_storage().data_ptr() for parameter in (*encoder.parameters(), clips)}
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # so that no storage is freed and its address used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoder(clips)
    return sum(sizes.values())


def compare(layers: int, frames: int, side: int, batch: int, device: str, repeats: int) -> dict:
    encoders = contenders(layers, frames, side, device)
    clips = torch.randn(batch, frames, 3, side, side, generator=torch.Generator().manual_seed(1)).to(device)
    runs = {name: step(encoder, clips) for name, encoder in encoders.items()}
    for run in runs.values():
        run()
    for (name, one), two in zip(encoders[FUSED].named_parameters(), encoders[PLAIN].parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-3 * float(two.grad.abs().max()), msg=name)
    seconds = _harness.interleaved(runs, repeats)
    memory = {name: kept_bytes(encoder, clips) for name, encoder in encoders.items()}
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
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 448])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = [
        compare(options.layers, options.frames, side, options.batch, options.device, options.repeats)
        for side in options.sides
    ]
    name = "divided_attention_cuda" if options.device != "cpu" else "divided_attention"
    _harness.report(name, rows, layers=options.layers, width=768)


if __name__ == "__main__":
    main()
