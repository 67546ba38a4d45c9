"""Videos written anew, small and fast to seek in; and arrays written as videos.

Decoding a frame means decoding all of them from the last key frame on, and films have one every ten seconds. With one
every dozen frames, and no more pixels than training sees, a random clip is read many times as fast.

Shape legend: T frames, H W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from collimate.data import Sample, Source
from collimate.data.decoding import Undecodable, naming, value_of
from collimate_video.reading import (
    ARRAY_RATE,
    VIDEOS,
    DecodedVideo,
    Video,
    open_video,
    opened,
    shown_size,
    upright,
    video_stream,
)

PRESET = "fast"  # of x264
SOUND_FRAME = 1024  # samples that AAC takes at a time


class Transcoded(Source):
    """A source whose videos are written anew when they are read, under the key `mp4`.

    Args:
        source: what has the videos, as files or as arrays.
        side: of the shorter side of larger frames, in pixels.
        key_every: frames from one key frame to the next.
        quality: x264's constant rate factor: smaller is better and larger.
    """

    def __init__(self, source: Source, side: int = 256, key_every: int = 12, quality: int = 23) -> None:
        self.source, self.name = source, source.name
        self.options = {"side": side, "key_every": key_every, "quality": quality}
        self.class_names = getattr(source, "class_names", None)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        sample = self.source.read(index)
        video = value_of(sample, VIDEOS)
        with naming(sample, "video"):
            written = transcode(video, **self.options)
        return {**{key: value for key, value in sample.items() if key not in VIDEOS}, "mp4": written}


def transcode(raw: Any, side: int = 256, key_every: int = 12, quality: int = 23) -> bytes:
    """A video as an mp4 file: H.264, upright, with its frames' own times, and its sound as AAC.

    Args:
        raw: what `open_video` takes.
        side: of the shorter side in pixels, if it is longer; both become even.
        key_every: frames from one key frame to the next.
        quality: x264's constant rate factor: smaller is better and larger.

    Raises:
        Undecodable: it is damaged, or no video.
    """
    video = open_video(raw)
    if isinstance(video, DecodedVideo):
        return encode(video.pixels, 1 / float(video.edges[1]), side, key_every, quality)
    assert isinstance(video, Video)
    with opened(video.raw) as container:
        pictures = video_stream(container)
        sounds = container.streams.audio[:1]
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as output:
            writer = _Writer(output, pictures.time_base, pictures.average_rate, side, key_every, quality)
            sound = _SoundWriter(output, sounds[0], video.origin) if sounds else None
            first = round(video.origin / float(pictures.time_base))
            for packet in container.demux([pictures, *sounds]):
                for frame in packet.decode():
                    if packet.stream is pictures and frame.pts is not None:
                        writer.write(frame, frame.pts - first)
                    elif packet.stream is not pictures and sound is not None:
                        sound.write(frame)
            writer.finish()
            if sound is not None:
                sound.finish()
        return file.getvalue()


def encode(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    rate: float = ARRAY_RATE,
    side: int = 256,
    key_every: int = 12,
    quality: int = 23,
) -> bytes:
    """Frames as an mp4 file.

    Args:
        frames: RGB, all of one size; an array (T, H, W, 3), or one after the other.
        rate: frames a second.
        side, key_every, quality: as for `transcode`.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        fraction = Fraction(rate).limit_denominator(1001)  # of television's rates, too
        writer = _Writer(output, 1 / fraction, fraction, side, key_every, quality)
        for number, pixels in enumerate(frames):
            writer.write(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"), number)
        writer.finish()
    return file.getvalue()


class _Writer:
    """The pictures of a file that is being written."""

    def __init__(
        self, output: Any, time_base: Fraction, rate: Fraction | None, side: int, key_every: int, quality: int
    ) -> None:
        self.output, self.side, self.time_base = output, side, time_base
        options = {"crf": str(quality), "g": str(key_every), "sc_threshold": "0", "preset": PRESET}
        self.stream = output.add_stream("libx264", rate=rate or ARRAY_RATE, options=options)
        self.stream.codec_context.time_base = time_base
        self.stream.pix_fmt = "yuv420p"
        self.size: tuple[int, int] | None = None
        self.scaler = VideoReformatter()

    def write(self, frame: Any, stamp: int) -> None:
        """One more picture, shown at a time in units of the time base."""
        if self.size is None:
            self.size = _even(shown_size(frame), self.side)
            self.stream.width, self.stream.height = self.size
        scaled = av.VideoFrame.from_ndarray(upright(frame, *self.size, self.scaler), format="rgb24")
        scaled.pts, scaled.time_base = stamp, self.time_base
        self.output.mux(self.stream.encode(scaled))

    def finish(self) -> None:
        if self.size is None:
            raise Undecodable("no frames")
        self.output.mux(self.stream.encode())


class _SoundWriter:
    """The sound of a file that is being written, cut where the pictures begin."""

    def __init__(self, output: Any, source: Any, origin: float) -> None:
        rate, layout = source.codec_context.sample_rate, source.codec_context.layout
        self.output, self.origin = output, origin
        self.stream = output.add_stream("aac", rate=rate, layout=layout)
        self.resampler: Any = av.AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=SOUND_FRAME)

    def write(self, frame: Any) -> None:
        """One more piece of the track, or None after the last one."""
        for piece in self.resampler.resample(frame):
            stamp = round((float(piece.pts * piece.time_base) - self.origin) / piece.time_base)
            if stamp >= 0:
                piece.pts = stamp
                self.output.mux(self.stream.encode(piece))

    def finish(self) -> None:
        self.write(None)
        self.output.mux(self.stream.encode())


def _even(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height with a shorter side of at most `side`; even, as the colours of H.264 need."""
    scale = min(1.0, side / min(size))
    return tuple(max(2, 2 * round(length * scale / 2)) for length in size)  # type: ignore[return-value]
