"""Video files that tests write: each frame's number stands in its pixels."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8  # of a frame's number, as columns of black and white, which no codec blurs into each other


def numbered(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A frame (H, W, 3) that shows its number: the lowest bit leftmost; the upper half is brighter than the lower."""
    columns = np.arange(width) * BITS // width
    row = np.where((number >> columns) & 1, 210, 40)
    frame = np.repeat(np.broadcast_to(row, (height, width))[..., None], 3, axis=2)
    frame = frame.copy()
    frame[: height // 2] += 30
    return frame.astype(np.uint8)


def number_of(frame: np.ndarray) -> int:
    """The number that a frame (3, H, W) shows."""
    lower = np.asarray(frame)[:, -frame.shape[1] // 4 :].mean((0, 1))
    bits = [part.mean() > 125 for part in np.array_split(lower, BITS)]
    return sum(bit << place for place, bit in enumerate(bits))


def film(
    frames: int = 30,
    kind: str = "mp4",
    codec: str = "libx264",
    rate: int = 10,
    key_every: int = 8,
    size: tuple[int, int] = (48, 64),
    times: list[float] | None = None,
    pixels: str = "yuv420p",
    rotation: int = 0,
    sound: tuple[float, float] | None = None,
    path: Path | None = None,
    **options: str,
) -> bytes:
    """A film of numbered frames.

    Args:
        times: when each frame is shown, in seconds; at the rate if None.
        sound: from when to when there is a tone of 440 Hz.
        path: write there, with the index in front, instead of into memory.
    """
    buffer = io.BytesIO()
    settings = {"movflags": "faststart"} if path and kind in ("mp4", "mov") else {}
    with av.open(path or buffer, "w", format=_FORMATS.get(kind, kind), options=settings) as output:
        stream = output.add_stream(codec, rate=rate, options={"g": str(key_every), **options})
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        clock = Fraction(1, 1000 if kind in ("mp4", "mkv", "mov", "webm") else rate)  # the others have a fixed rate
        stream.codec_context.time_base = clock
        if rotation:
            stream.set_display_rotation(rotation)
        voice = output.add_stream(*(("libopus", 48000) if kind == "webm" else ("aac", 16000))) if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number, *size), format="rgb24")
            frame.pts = round((times[number] if times else number / rate) / clock)
            frame.time_base = clock
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if voice is not None:
            write_tone(output, voice, *sound)
    return path.read_bytes() if path else buffer.getvalue()


def write_tone(output, stream, start: float, end: float) -> None:
    rate = stream.codec_context.sample_rate
    moments = np.arange(round(start * rate), round(end * rate)) / rate
    tone = (0.5 * np.sin(2 * np.pi * 440 * moments)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(tone[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, round(start * rate), Fraction(1, rate)
    resampler = av.AudioResampler(
        stream.codec_context.format.name, "mono", rate, frame_size=960 if stream.name == "libopus" else 1024
    )
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        output.mux(stream.encode(piece))
    output.mux(stream.encode())


def only_sound() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        write_tone(output, output.add_stream("aac", 16000), 0, 1)
    return buffer.getvalue()


_FORMATS = {"mkv": "matroska", "mpg": "mpeg"}
