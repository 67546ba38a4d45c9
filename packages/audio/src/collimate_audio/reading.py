"""Sound from files, bytes and arrays: mono float32 in [-1, 1], with its sampling rate.

soundfile reads WAV, FLAC, OGG and MP3; what it refuses, such as the sound of a video, goes to PyAV where that is
installed. Neither needs system packages. What counts is a file's content, not its name.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

import io
from fractions import Fraction
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from collimate.data.decoding import SOUNDS, Undecodable, register_check, register_modality

CONTAINERS = ("opus", "m4a", "mp4", "webm", "mkv")
"""Where sound may lie beside pictures, or in a file that soundfile may refuse; in `SOUNDS` it lies alone."""

RATES = range(100, 400_001)
"""In Hz, of sounds: the slowest sensors of vibration, and ultrasound. Damaged headers claim others."""

FINEST = 1280
"""Largest denominator of the ratio at which sounds are resampled, which is exact for all usual rates. Others, as 47,999
to 16,000 Hz, take the nearest: the filter, which would be of gigabytes, grows with it."""

register_modality("audio", *SOUNDS, *CONTAINERS)
register_check(lambda data: read_sound(data, 0), *SOUNDS, *CONTAINERS[:2])  # the others may hold pictures alone


def read_sound(raw: Any, rate: int) -> tuple[Float[Tensor, " N"], int]:
    """A mono waveform and its sampling rate.

    Args:
        raw: a path, a file's bytes, a waveform (N) or (C, N), a waveform and its rate, or an opened video.
        rate: of a waveform that comes without.

    Raises:
        ValueError: it is empty, cut short, damaged, at a rate of no sound, or holds NaN or infinity.
        TypeError: it is none of these.
    """
    raw = getattr(raw, "raw", raw)  # the file of a video, which the decoder of videos has opened
    if isinstance(raw, bytes | str | PathLike):
        name = f"{len(raw)} bytes" if isinstance(raw, bytes) else fspath(raw)
        waveform, rate = _read_file(raw, name)
    elif isinstance(raw, tuple) and len(raw) == 2:
        name, (waveform, rate) = "a waveform", raw
    else:
        name, waveform = "a waveform", raw
    if not isinstance(waveform, np.ndarray | Tensor):
        raise TypeError(f"Expected a path, bytes, a waveform, or a waveform and its rate; got a {type(raw).__name__}.")
    if int(rate) not in RATES:
        raise ValueError(f"{name}: damaged, or no sound: {rate} samples a second; expected {RATES[0]} to {RATES[-1]}.")
    return _checked(mono(torch.as_tensor(waveform)), name), int(rate)


def mono(waveform: Shaped[Tensor, "*C N"]) -> Float[Tensor, " N"]:
    """The mean of the channels, float32; integers are divided by their type's range.

    Raises:
        ValueError: the shape is no waveform's.
        TypeError: the numbers are none of a waveform.
    """
    if waveform.ndim not in (1, 2) or (waveform.ndim == 2 and waveform.shape[0] > max(waveform.shape[1], 1)):
        raise ValueError(
            f"A waveform is (samples) or (channels, samples); got {tuple(waveform.shape)}. Transpose what has its "
            "channels last."
        )
    if waveform.dtype == torch.bool or waveform.is_complex():
        raise TypeError(f"A waveform holds integers or real numbers, not {waveform.dtype}.")
    if not waveform.is_floating_point():
        full = torch.iinfo(waveform.dtype)
        middle = 0 if full.min < 0 else (full.max + 1) // 2  # unsigned bytes count from 128
        waveform = (waveform.double() - middle) / (full.max + 1 - middle)
    return waveform.float() if waveform.ndim == 1 else waveform.float().mean(0)


def resampled(sound: Float[Tensor, " N"], rate: int, wanted: int) -> Float[Tensor, " M"]:
    """The sound at another rate, band-limited; as it is, where the rates are equal.

    Args:
        sound: at `rate`, in Hz.
        rate: what it was read at.
        wanted: in Hz.
    """
    if rate == wanted:
        return sound
    from torchaudio.functional import resample

    ratio = Fraction(rate, wanted).limit_denominator(FINEST)
    return resample(sound, ratio.numerator, ratio.denominator)


def _read_file(raw: bytes | str | PathLike[str], name: str) -> tuple[Tensor, int]:
    if raw == b"":
        raise Undecodable("empty file", name)
    try:
        file = soundfile.SoundFile(io.BytesIO(raw) if isinstance(raw, bytes) else fspath(raw))
    except soundfile.LibsndfileError as error:
        if not isinstance(raw, bytes) and not Path(raw).exists():
            raise FileNotFoundError(f"There is no sound file {name}.") from None
        return _read_container(raw, name, error)
    with file:
        try:
            found = file.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{name}: truncated or damaged ({error}). Copy or download it again.") from error
        except MemoryError as error:  # damaged headers claim any length
            raise ValueError(f"{name}: damaged, or too long: its header claims {file.frames} samples.") from error
        if len(found) < file.frames:
            raise ValueError(f"{name}: truncated: {len(found)} of {file.frames} samples. Copy or download it again.")
        return torch.from_numpy(found.T), file.samplerate


def _read_container(
    raw: bytes | str | PathLike[str], name: str, refusal: soundfile.LibsndfileError
) -> tuple[Tensor, int]:
    """The first track of sound in what soundfile refuses, by PyAV, where that is installed."""
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise ValueError(
            f"{name}: soundfile cannot read it ({refusal.error_string}). It is damaged, or of a kind that needs "
            "PyAV: install `av`, or convert it to WAV or FLAC."
        ) from refusal
    try:
        with av.open(io.BytesIO(raw) if isinstance(raw, bytes) else fspath(raw), "r") as container:
            if not container.streams.audio:
                raise Undecodable("no sound in the file", f"{name} has {len(container.streams)} tracks of other things")
            track = container.streams.audio[0]
            if track.codec_context is None:
                raise Undecodable("unknown codec", f"{name} has a track of sound that nothing here decodes")
            planes = av.AudioResampler(format="fltp", layout=track.layout, rate=track.rate)
            frames = [each for frame in container.decode(track) for each in planes.resample(frame)]
            frames += planes.resample(None)
    except FFmpegError as error:
        raise ValueError(
            f"{name}: damaged, or no sound (soundfile: {refusal.error_string} PyAV: {error.strerror}); expected "
            f"{', '.join(SOUNDS)}, or a container with a track of sound"
        ) from error
    if any(frame.sample_rate != track.rate for frame in frames):
        raise ValueError(f"{name}: damaged: its rate changes within. Copy or download it again, or convert it.")
    # Each for itself: the number of channels may change, in damaged files and in spliced ones.
    parts = [torch.from_numpy(frame.to_ndarray()).mean(0) for frame in frames if frame.samples]
    return torch.cat(parts) if parts else torch.zeros(0), track.rate


def _checked(sound: Float[Tensor, " N"], name: str) -> Float[Tensor, " N"]:
    if not len(sound):
        raise ValueError(f"{name}: holds no sample. Leave it out.")
    if not bool(sound.isfinite().all()):
        raise ValueError(f"{name}: holds NaN or infinity. It is damaged: leave it out, or make it anew.")
    return sound
