"""Mistakes in sounds and videos."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import numpy as np

from .data import shard, table, train_on
from .table import mistake

SUBJECT = "Sounds and videos"


def sound(form: str, samples: int = 16_000, loudness: float = 0.5) -> bytes:
    """A file of a tone at 16 kHz."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, loudness * np.sin(np.arange(samples) / 6), 16_000, format=form)
    return file.getvalue()


def film(frames: int, form: str = "mp4") -> bytes:
    """A file of so many frames; of a tone alone where there are none."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=form) as output:
        if not frames:
            stream = output.add_stream("aac", 16_000)
            tone = av.AudioFrame.from_ndarray(np.sin(np.arange(1024) / 6)[None].astype(np.float32), "fltp", "mono")
            tone.sample_rate, tone.pts, tone.time_base = 16_000, 0, Fraction(1, 16_000)
            output.mux(stream.encode(tone))
        else:
            stream = output.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(frames):
                pixels = np.full((48, 64, 3), 8 * number % 256, np.uint8)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


def heard(folder: Path, name: str, data: bytes) -> None:
    from collimate_audio import FilterBank

    train_on(shard(folder, {name: data}), audio=FilterBank(1.0))


def seen(folder: Path, data: bytes, name: str = "a.mp4") -> None:
    from collimate.processing import ImageProcessor
    from collimate_video import VideoProcessor

    train_on(shard(folder, {name: data}), video=VideoProcessor(2, ImageProcessor(32)))


@mistake(SUBJECT, "A FLAC file that was cut short", "set.tar: a.audio", "truncated", "expected a whole file", "anew")
def truncated_sound(folder: Path) -> None:
    data = sound("FLAC")
    heard(folder, "a.flac", data[: len(data) // 2])


@mistake(SUBJECT, "A text file called .wav", "set.tar: a.audio", "no sound", "expected flac, wav", "anew")
def no_sound(folder: Path) -> None:
    heard(folder, "a.wav", b"<html>not found</html>")


@mistake(SUBJECT, "A sound without a sample", "set.tar: a.audio", "no sample", "expected", "leave them out")
def empty_sound(folder: Path) -> None:
    heard(folder, "a.wav", sound("WAV", 0))


@mistake(
    SUBJECT, "A waveform whose channels come last", "waveform", "(16000, 2, 1)", "(channels, samples)", "Transpose"
)
def channels_last(folder: Path) -> None:
    import torch

    from collimate_audio import FilterBank

    FilterBank(1.0)((torch.zeros(16_000, 2, 1), 16_000))


@mistake(
    SUBJECT,
    "Clips shorter than one patch of BEATs: `FilterBank(seconds=0.01)`",
    "seconds",
    "0.01",
    "A patch needs",
    "take longer clips",
)
def short_clips(folder: Path) -> None:
    from collimate_audio import FilterBank

    FilterBank(0.01)


@mistake(
    SUBJECT,
    "Cross-validation over a column that is not there",
    "table.jsonl",
    "'fold'",
    "it has image",
    "name one by --column",
)
def no_folds(folder: Path) -> None:
    from collimate_audio.cross_validation import folds_of

    folds_of(str(table(folder, {"image": "a.jpg"})), "fold")


@mistake(SUBJECT, "A text file called .mp4", "set.tar: a.mp4", "not a video", "expected", "leave them out")
def no_video(folder: Path) -> None:
    seen(folder, b"<html>not found</html>")


@mistake(SUBJECT, "A video that was cut short", "set.tar: a.mkv", "truncated video", "are there", "anew")
def truncated_video(folder: Path) -> None:
    data = film(40, "matroska")
    seen(folder, data[: len(data) // 2], "a.mkv")


@mistake(SUBJECT, "A video that is sound alone", "set.tar: a.mp4", "only sound", "expected", "leave them out")
def sound_alone(folder: Path) -> None:
    seen(folder, film(0))
