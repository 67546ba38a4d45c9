"""BEATs' attention with its gated relative bias against the plain form, alone and within the model.

    uv run python -m tools.bench.beats_attention               # 2 clips of 10 s, base size
    uv run python -m tools.bench.beats_attention --clips 8

The plain form holds the bias of each clip, head and query, scales and shifts the scores as the released code does, and
keeps what its steps need for backward. "attention" is one layer's, from q, k, v on; "model" the whole backbone of 12
layers. Both are forward and backward passes.

Time: medians of interleaved calls in one process. Memory: growth of the peak of a fresh process over its state with the
inputs in place.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from collimate_audio import BEATs
from collimate_audio.relative_attention import relative_attention
from tools.bench import _harness

OURS, PLAIN = "collimate", "plain form"
HEADS, WIDTH, FRAMES, BANDS, TOKENS = 12, 64, 998, 128, 496
SHRUNK = 32.0  # the released code divides scores by it, and multiplies them back before the softmax


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The steps of the released code."""
    assert gate is not None
    assert bias is not None
    scores = (query * (query.shape[-1] ** -0.5 / SHRUNK)) @ key.mT
    scores = (scores - scores.amax(-1, keepdim=True)) * SHRUNK
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    return (scores + gate * bias.expand(len(query), -1, -1, -1)).softmax(-1) @ value


def attention(whose: str, clips: int, tokens: int = TOKENS) -> Callable[[], Tensor]:
    """One layer's attention, forward and backward, on random inputs."""
    torch.manual_seed(0)
    inputs = [torch.randn(clips, tokens, HEADS, WIDTH).transpose(1, 2).requires_grad_() for _ in range(3)]
    gate = (1 + torch.rand(clips, HEADS, tokens, 1)).requires_grad_()
    bias = torch.randn(HEADS, tokens, tokens).requires_grad_()
    form = relative_attention if whose == OURS else plain

    def run() -> Tensor:
        for leaf in (*inputs, gate, bias):
            leaf.grad = None
        found = form(*inputs, gate, bias)
        found.square().sum().backward()
        return found.detach()

    return run


def model(whose: str, clips: int, frames: int = FRAMES) -> Callable[[], Tensor]:
    """The base model, forward and backward."""
    torch.manual_seed(0)
    beats = BEATs()
    banks = torch.randn(clips, frames, BANDS)

    def run() -> Tensor:
        beats.zero_grad()
        with patch("collimate_audio.beats_layers.relative_attention", relative_attention if whose == OURS else plain):
            pooled = beats(banks).pooled
            pooled.square().sum().backward()
        return pooled.detach()

    return run


WORK = {"attention": attention, "model": model}


def compare(what: str, clips: int, repeats: int) -> dict:
    """Time and memory of both, and our share of the plain form's."""
    runs = {whose: WORK[what](whose, clips) for whose in (OURS, PLAIN)}
    torch.testing.assert_close(runs[OURS](), runs[PLAIN](), rtol=1e-3, atol=1e-4)
    seconds = _harness.interleaved(runs, repeats)
    del runs
    mib = {whose: memory(what, whose, clips) / 2**20 for whose in (OURS, PLAIN)}
    return {
        "what": what,
        "clips": clips,
        **{f"{whose} s": seconds[whose] for whose in seconds},
        "times as fast": seconds[PLAIN] / seconds[OURS],
        **{f"{whose} MiB": mib[whose] for whose in mib},
        "memory ratio": mib[OURS] / mib[PLAIN],
    }


def memory(what: str, whose: str, clips: int) -> int:
    """Bytes by which the peak of a fresh process grows in one pass."""
    return _harness.extra_peak_memory("tools.bench.beats_attention", "--measure", what, whose, str(clips))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--what", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, whose, clips = options.measure
        WORK[what](whose, 1, 32)()  # libraries load and thread pools start before the measurement
        run = WORK[what](whose, int(clips))
        print(_harness.peak_growth(run))
        return
    rows = [compare(what, options.clips, options.repeats) for what in options.what]
    _harness.report("beats_attention", rows, tokens=TOKENS, heads=HEADS, head_width=WIDTH, repeats=options.repeats)


if __name__ == "__main__":
    main()
