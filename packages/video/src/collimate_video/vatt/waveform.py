"""Sound to raw waveforms of one length, of files, videos and arrays; videos may lack it.

Shape legend: B clips, N samples.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from collimate.data import Augmentation
from collimate.data.decoding import SOUNDS, register_modality
from collimate.processing import Processor
from collimate_video.reading import VIDEOS, DecodedVideo, Video, has_pictures, read_sound

register_modality("audio", *SOUNDS, "opus", "m4a", *VIDEOS)

RawWave = Any
"""A `Video`; the bytes of a file of sound or of a video, or its path; or a waveform (N) at the processor's rate.
Decoded videos and pictures have no sound."""


class Waveform(Processor):
    """The middle of each sound, mono; the beginning of a video's picture and sound is one.

    What is shorter is filled up with silence. A clip without sound is NaN throughout, and `given` tells.

    Args:
        seconds: of the waveform.
        rate: samples a second.

    Raises:
        ValueError: there would be no sample.
    """

    modality = "audio"

    def __init__(self, seconds: float = 3.2, rate: int = 48_000) -> None:
        self.seconds, self.rate, self.samples = seconds, rate, round(seconds * rate)
        if self.samples < 1:
            raise ValueError(f"A waveform has samples: {seconds} s at {rate} a second are none.")

    def __call__(self, raw: RawWave) -> Float[Tensor, " N"]:
        """One sound to a waveform in [-1, 1].

        Raises:
            Undecodable: a file is damaged, or holds neither sound nor pictures.
            ValueError: an array is no waveform.
            TypeError: it is none of these.
        """
        if isinstance(raw, Video):
            return self._of_video(raw)
        if isinstance(raw, bytes | str | PathLike):
            return self._of_video(Video(raw)) if has_pictures(raw) else self._middle(read_sound(raw, self.rate))
        if isinstance(raw, DecodedVideo | Image.Image) or (isinstance(raw, np.ndarray) and raw.ndim > 2):
            return self._missing()
        if isinstance(raw, np.ndarray | Tensor):
            return self._middle(_checked(torch.as_tensor(raw)))
        raise TypeError(f"Expected sound: a video, bytes, a path or a waveform; got a {type(raw).__name__}.")

    def finish(self, batch: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """Silence in the place of what is missing."""
        return batch.nan_to_num(0.0)

    def given(self, batch: Float[Tensor, "B N"]) -> Bool[Tensor, " B"]:
        """Which of stacked waveforms have sound."""
        return ~batch.isnan().any(1)

    def example(self) -> Float[np.ndarray, " N"]:
        return np.sin(np.arange(self.samples, dtype=np.float32) * 0.05)

    def _of_video(self, video: Video) -> Float[Tensor, " N"]:
        if not video.has_sound:
            return self._missing()
        start = max(0.0, video.duration - self.seconds) / 2  # as `Window(centred=True)` places its frames
        return self._fitted(video.sound(start, start + self.seconds, self.rate))

    def _middle(self, sound: Float[Tensor, " M"]) -> Float[Tensor, " N"]:
        return self._fitted(sound[max(0, len(sound) - self.samples) // 2 :])

    def _fitted(self, sound: Float[Tensor, " M"]) -> Float[Tensor, " N"]:
        found = torch.zeros(self.samples)
        part = sound[: self.samples]
        found[: len(part)] = part
        return found

    def _missing(self) -> Float[Tensor, " N"]:
        return torch.full((self.samples,), torch.nan)


class WaveformNoise(Augmentation):
    """Gaussian noise on each waveform, of a standard deviation relative to its peak (google-research/vatt, data).

    Args:
        std: the share of max |x|.
    """

    def __init__(self, std: float = 0.01) -> None:
        self.std = std

    def __call__(self, raw: RawWave, processor: Waveform) -> Float[Tensor, " N"]:
        wave = processor(raw)
        return wave + self.std * wave.abs().max() * torch.randn_like(wave)


def _checked(wave: Tensor) -> Float[Tensor, " M"]:
    if wave.ndim != 1 or not wave.is_floating_point() or not len(wave) or not bool(wave.isfinite().all()):
        raise ValueError(f"A waveform is (samples), finite numbers in [-1, 1]; got {tuple(wave.shape)} {wave.dtype}.")
    return wave.float()
