"""The filter bank of Kaldi for whole batches, and sound as the input of audio encoders.

microsoft/unilm, beats/BEATs.py, preprocess, which is `torchaudio.compliance.kaldi.fbank` on 2^15 x: frames of 25 ms
every 10 ms, each without its mean, pre-emphasised (0.97), under a Povey window, |FFT_512|^2, triangular bands evenly
spaced in mel(f) = 1127 ln(1 + f / 700) from 20 Hz to half the sampling rate, natural logarithm. N samples give
F = 1 + (N - 400) // 160 frames: whole ones only. Then (x - mean) / (2 std), of the data that a model was trained on.

Shape legend: B clips, N samples, F frames, T samples of a transform, M mel bands.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collimate.processing import Processor
from collimate_audio.padding import PaddingRule, checked_rule, real_pieces, real_windows
from collimate_audio.reading import read_sound, resampled

SAMPLE_RATE = 16_000  # of all published models
MEL_BANDS = 128  # of all published models
MEAN, STD = 15.41663, 6.55582  # of AudioSet: microsoft/unilm, beats/BEATs.py
FRAME_MS, SHIFT_MS = 25, 10  # beats/BEATs.py
SCALE = 2**15  # beats/BEATs.py: Kaldi counts in 16-bit integers
PREEMPHASIS = 0.97  # Kaldi's default, as all that follow
WINDOW_POWER = 0.85  # Povey's window is Hann's to this power
LOWEST_HZ = 20.0
FLOOR = torch.finfo(torch.float32).eps  # under the logarithm
MIN_FRAMES = 16  # one patch of BEATs
TOGETHER = 16  # ours: bands of one matrix product
CPU_ROWS, DEVICE_ROWS = 2**10, 2**16  # ours: frames at a time; on a CPU as many as its cache holds
LOUD = 8.0  # ours: 18 dB above full scale; nothing that was meant to lie in [-1, 1] gets there

RawSound = str | PathLike[str] | bytes | np.ndarray | Tensor | tuple[np.ndarray | Tensor, int]


class FilterBank(Processor):
    """Any sound to a waveform of one length, and waveforms to a normalised filter bank on the device.

    Sounds become mono and are resampled. What is longer is cut at its end. What is shorter than one patch of 16 frames
    is repeated until it has one; the rest is padding, for which a stacked waveform holds NaN, and which `mask` tells.
    Silence is no padding: its logarithm lies at the floor, far from 0.

    Args:
        seconds: of each waveform.
        sample_rate: in Hz, of each waveform.
        mel_bands: M.
        mean, std: of the logarithms; AudioSet's unless given. A pre-trained model wants those it was trained with.
        padding: how padded samples make padded frames; see `collimate_audio.padding`.

    Raises:
        ValueError: a waveform of so many seconds has no patch.
    """

    modality = "audio"

    def __init__(
        self,
        seconds: float = 10.0,
        sample_rate: int = SAMPLE_RATE,
        mel_bands: int = MEL_BANDS,
        mean: float = MEAN,
        std: float = STD,
        padding: PaddingRule = "exact",
    ) -> None:
        self.sample_rate, self.mel_bands, self.mean, self.std = sample_rate, mel_bands, mean, std
        self.padding = checked_rule(padding)
        self.window, self.shift = frame_samples(sample_rate)
        self.samples = round(seconds * sample_rate)
        self.fewest = self.window + (MIN_FRAMES - 1) * self.shift
        if self.samples < self.fewest:
            raise ValueError(
                f"A patch needs {self.fewest / sample_rate:g} s of sound; seconds is {seconds:g}: take longer clips."
            )

    def __call__(self, raw: RawSound) -> Float[Tensor, " N"]:
        """One sound to a waveform in [-1, 1], NaN where it is padding.

        Args:
            raw: a file's path or its bytes; a waveform (N) or (channels, N) at `sample_rate`; or a waveform and its
                rate. Integers count from their type's range.

        Raises:
            ValueError: the sound is empty, holds NaN or infinity, or cannot be read; says which.
            TypeError: it is none of these.
        """
        sound, rate = read_sound(raw, self.sample_rate)
        loudest = float(sound.abs().max())
        if loudest > LOUD:
            warnings.warn(
                f"A waveform reaches {loudest:g}, where 1 is full scale. If it counts in 16-bit integers, pass "
                "integers, or divide it by 32768.",
                stacklevel=2,
            )
        sound = resampled(sound, rate, self.sample_rate)
        if len(sound) < self.fewest:
            sound = sound.repeat(math.ceil(self.fewest / len(sound)))[: self.fewest]
        waveform = torch.full((self.samples,), torch.nan)
        waveform[: len(sound)] = sound[: self.samples]
        return waveform

    def finish(self, batch: Float[Tensor, "B N"]) -> Float[Tensor, "B F M"]:
        """The normalised filter bank, float32, of stacked waveforms; padding counts as digital silence."""
        found = filter_bank(batch.nan_to_num(0.0), self.sample_rate, self.mel_bands)
        return found.sub_(self.mean).div_(2 * self.std)

    def mask(self, batch: Float[Tensor, "B N"]) -> Bool[Tensor, "B F"] | None:
        """True where a frame is real."""
        real = ~batch.isnan()
        if self.padding == "official":
            return real_pieces(real, 1 + (batch.shape[1] - self.window) // self.shift)
        return real_windows(real, self.window, self.shift)

    def trimmed(self, batch: Float[Tensor, "B N"]) -> Float[Tensor, "B n"]:
        """Waveforms that end where the longest does, or up to a patch later: few lengths, and no patch is lost."""
        longest = max(self.fewest, int((~batch.isnan()).any(0).sum()))
        step = MIN_FRAMES * self.shift
        return batch[:, : self.fewest + math.ceil((longest - self.fewest) / step) * step]

    def example(self) -> np.ndarray:
        time = np.arange(self.samples) / self.sample_rate
        return (0.5 * np.sin(2000 * time * (1 + time)) * np.cos(9 * time)).astype(np.float32)


def filter_bank(
    waveforms: Float[Tensor, "B N"], sample_rate: int = SAMPLE_RATE, mel_bands: int = MEL_BANDS
) -> Float[Tensor, "B F M"]:
    """The logarithms of the bands' energies, not normalised; float32, also under autocast.

    Args:
        waveforms: mono, in [-1, 1].
        sample_rate: in Hz.

    Raises:
        ValueError: the waveforms are shorter than one frame.
    """
    window, shift = frame_samples(sample_rate)
    if waveforms.shape[-1] < window:
        raise ValueError(f"Waveforms of {waveforms.shape[-1]} samples are shorter than one frame of {window}.")
    frames = 1 + (waveforms.shape[1] - window) // shift
    rows = CPU_ROWS if waveforms.device.type == "cpu" else DEVICE_ROWS
    clips = max(1, rows // frames)
    found = waveforms.new_empty(len(waveforms), frames, mel_bands, dtype=torch.float32)
    with torch.autocast(waveforms.device.type, enabled=False):
        for first in range(0, len(waveforms), clips):
            some = _weighted_frames(waveforms[first : first + clips].float(), window, shift)
            found[first : first + clips] = _log_energies(some, sample_rate, mel_bands)
    return found


def frame_samples(sample_rate: int) -> tuple[int, int]:
    """The length and the shift of frames, in samples."""
    return sample_rate * FRAME_MS // 1000, sample_rate * SHIFT_MS // 1000


def _weighted_frames(waveforms: Float[Tensor, "B N"], window: int, shift: int) -> Float[Tensor, "B F T"]:
    """Frames of x_n - 0.97 x_(n-1), without their means, under the window; 0 up to the T samples of the transform.

    Emphasis and mean are linear, so that overlapping frames share them: frames are a view of the whole waveform. The
    first sample of a frame, which Kaldi emphasises by itself, has no weight in the window.
    """
    size, count = 2 ** math.ceil(math.log2(window)), 1 + (waveforms.shape[1] - window) // shift
    # Frames lose their means in any case; without the first one's, the rest of a large offset costs no digits.
    waveforms = waveforms - waveforms[:, :window].mean(1, keepdim=True)
    emphasised = torch.sub(waveforms[:, 1:], waveforms[:, :-1], alpha=PREEMPHASIS)
    frames = torch.nn.functional.pad(emphasised, (1, size - window)).unfold(1, size, shift)[:, :count]
    block = math.gcd(window, shift)
    blocks = waveforms[:, : waveforms.shape[1] // block * block].unflatten(1, (-1, block)).mean(2)
    means = blocks.unfold(1, window // block, shift // block).mean(2)[:, :count, None]
    return (frames - (1 - PREEMPHASIS) * means).mul_(_povey_window(window, size, waveforms.device))


def _log_energies(frames: Float[Tensor, "B F T"], sample_rate: int, mel_bands: int) -> Float[Tensor, "B F M"]:
    spectrum = torch.fft.rfft(frames)
    power = torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag)
    bands = _mel_bands(mel_bands, frames.shape[-1], sample_rate, frames.device)
    energies = [power[..., some.first : some.first + len(some.weights)] @ some.weights for some in bands]
    return torch.cat(energies, -1).clamp_min_(FLOOR).log_()


class _Bands(NamedTuple):
    """Neighbouring bands, and the bins that they cover: most of a matrix of all would be 0."""

    first: int
    weights: Float[Tensor, "bins bands"]


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # who is first may evaluate, who comes later train
def _povey_window(length: int, size: int, device: torch.device) -> Float[Tensor, " T"]:
    window = SCALE * torch.hann_window(length, periodic=False).pow(WINDOW_POWER)
    return torch.nn.functional.pad(window, (0, size - length)).to(device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # who is first may evaluate, who comes later train
def _mel_bands(count: int, size: int, sample_rate: int, device: torch.device) -> list[_Bands]:
    """Triangles in mel, few at a time; Kaldi leaves out the bin of half the sampling rate."""
    lowest, highest = _mel(torch.tensor([LOWEST_HZ, sample_rate / 2], dtype=torch.float64)).tolist()
    edges = torch.linspace(lowest, highest, count + 2, dtype=torch.float64)
    bins = _mel(torch.arange(size // 2, dtype=torch.float64) * sample_rate / size)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp_min(0).float()
    found = []
    for some in triangles.split(TOGETHER, 1):
        covered = some.any(1).nonzero().flatten().tolist() or [0]  # narrow bands may fall between two bins
        found.append(_Bands(covered[0], some[covered[0] : covered[-1] + 1].contiguous().to(device)))
    return found


def _mel(hertz: Tensor) -> Tensor:
    return 1127.0 * (1.0 + hertz / 700.0).log()
