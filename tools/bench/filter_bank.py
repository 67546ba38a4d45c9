"""The filter bank of batches against torchaudio's Kaldi filter bank, clip by clip.

    uv run python -m tools.bench.filter_bank
    uv run python -m tools.bench.filter_bank --device cuda

Time: medians of interleaved calls in one process. Memory: growth of the peak of a fresh process over its state with the
waveforms in place. "difference" is the mean one between the logarithms.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torchaudio
from torch import Tensor

from collimate_audio.filter_bank import MEL_BANDS, SAMPLE_RATE, SCALE, filter_bank
from tools.bench import _harness

OURS, KALDI = "collimate", "torchaudio"


def call(whose: str, clips: int, seconds: float, device: str) -> Callable[[], Tensor]:
    """The filter bank of a batch of noise, by us or clip by clip."""
    torch.manual_seed(0)
    waveforms = torch.randn(clips, round(seconds * SAMPLE_RATE), device=device) * 0.1

    def kaldi() -> Tensor:
        banks = [
            torchaudio.compliance.kaldi.fbank(
                waveform[None] * SCALE, num_mel_bins=MEL_BANDS, sample_frequency=SAMPLE_RATE, dither=0.0
            )
            for waveform in waveforms
        ]
        return torch.stack(banks)

    return kaldi if whose == KALDI else lambda: filter_bank(waveforms)


def compare(clips: int, seconds: float, device: str, repeats: int) -> dict:
    """Time and memory of both, and our share of torchaudio's."""
    calls = {whose: call(whose, clips, seconds, device) for whose in (OURS, KALDI)}
    difference = float((calls[OURS]() - calls[KALDI]()).abs().mean())
    taken = _harness.interleaved(calls, repeats)
    mib = {whose: memory(whose, clips, seconds, device) / 2**20 for whose in (OURS, KALDI)}
    return {
        "clips": clips,
        "seconds": seconds,
        **{f"{whose} ms a clip": 1000 * taken[whose] / clips for whose in (OURS, KALDI)},
        "times as fast": taken[KALDI] / taken[OURS],
        **{f"{whose} MiB": mib[whose] for whose in (OURS, KALDI)},
        "difference": difference,
    }


def memory(whose: str, clips: int, seconds: float, device: str) -> int:
    """Bytes by which the peak of a fresh process grows in one call."""
    return _harness.extra_peak_memory("tools.bench.filter_bank", "--measure", whose, str(clips), str(seconds), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        whose, clips, seconds, device = options.measure
        call(whose, 1, 1.0, device)()  # libraries load and thread pools start before the measurement
        run = call(whose, int(clips), float(seconds), device)
        print(_harness.peak_growth(run))
        return
    cuda = options.device != "cpu"
    rows = [
        compare(clips, seconds, options.device, options.repeats)
        for clips, seconds in ((1, 10.0), (8, 10.0), (32, 10.0), (64, 2.0))
    ]
    _harness.report("filter_bank_cuda" if cuda else "filter_bank", rows, bands=MEL_BANDS, repeats=options.repeats)


if __name__ == "__main__":
    main()
