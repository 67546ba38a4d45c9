"""Videos from files, bytes and arrays: the frames shown at given times, and the sound between two of them.

A video is opened by looking through its packets, which decodes nothing: that tells when each frame is shown, for
videos of variable rate too, and from which key frame on it can be decoded. Frames are then decoded from the last key
frame before each one that is wanted, one at a time, and scaled by the decoder's own scaler, so that memory is bounded
by one frame of the file and the clip that is made. `transcode` writes videos whose key frames lie closer together.

PyAV decodes. torchcodec gives the same frames where it is asked for, by `Video(..., decoder="torchcodec")` or by the
environment variable `COLLIMATE_VIDEO_DECODER`, and where it can be trusted; see `by_torchcodec` for what it is worth.

Times are seconds from the first frame on. Rotation that a file asks for is applied; an alpha channel is dropped; more
than 8 bits a channel become 8, and wide dynamic range is not mapped.

Shape legend: T times, N frames of a video, H W pixels, S samples of sound.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from os import PathLike, fspath
from typing import Any, NamedTuple, Protocol, cast

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.error import FileNotFoundError as NoSuchFile
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Float32, Float64, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from collimate.data.decoding import IMAGES, MAX_PIXELS, Undecodable, register_decoder, register_modality
from collimate_video import by_torchcodec

VIDEOS = ("mp4", "webm", "mkv", "mov", "avi", "mpg")
"""Under which keys of a sample a video may lie; where there is none, a picture stands in for one frame."""

DECODERS = ("pyav", "torchcodec")
DECODER_VARIABLE = "COLLIMATE_VIDEO_DECODER"  # of the environment, which loading processes inherit

ARRAY_RATE = 10.0  # ours, as in the world: frames a second of an array that comes without a rate
MISSING_SECONDS, MISSING_SHARE = 0.25, 0.05  # ours: an end so much before the promised one is no rounding
TIMELESS = "avi"  # the format that does not say when frames are shown which are not in the order of decoding
UNSEEKABLE = (TIMELESS, "mpeg")  # the latter packs several frames under one stamp, and a seek lands between them
SKIPPABLE = ("h264", "hevc")  # the decoders that can leave out a frame without harm to what follows
PREROLL = 0.2  # seconds of sound decoded before the wanted ones, because codecs need some to start

_SCALERS = {"bicubic": Interpolation.BICUBIC, "bilinear": Interpolation.BILINEAR, "nearest": Interpolation.POINT}

RawVideo = Any
"""A `Frames`, bytes of a file, its path, an array (T, H, W, 3) of bytes, an array and its frames a second, or a picture
of Pillow, which is a video of one frame."""


class Framing(NamedTuple):
    """How frames are seen: scaled to `width` x `height`, and laid at (left, top) on a canvas of `size`, in pixels.

    What reaches beyond the canvas is cut off; what it does not cover is black.
    """

    width: int
    height: int
    left: int
    top: int
    size: tuple[int, int]
    """height, width"""
    interpolation: str = "bicubic"


class Frames(Protocol):
    """What can be asked of any video."""

    @property
    def edges(self) -> Float64[np.ndarray, " N+1"]:
        """When each frame begins to be shown, and when the last one ends; the first is 0."""
        ...

    def frames(
        self, times: Sequence[float], framing: Callable[[int, int], Framing] | None = None
    ) -> UInt8[Tensor, "T 3 H W"]:
        """The frames shown at these times, RGB.

        Args:
            times: each gives the last frame that begins no later; the first before the video, the last after it.
            framing: from the width and height of the frames, as they are shown, to how they are seen; as they are if
                None.

        Raises:
            Undecodable: a frame is damaged.
        """
        ...


def open_video(raw: RawVideo) -> Frames:
    """Whatever holds a video, as `Frames`.

    Raises:
        Undecodable: there is no video in it, or it is damaged.
        TypeError: it holds none.
    """
    if isinstance(raw, bytes | str | PathLike):
        return Video(raw)
    if isinstance(raw, np.ndarray):  # one picture, or several
        return DecodedVideo(raw if raw.ndim != 3 else raw[None])
    if isinstance(raw, tuple) and len(raw) == 2:
        return DecodedVideo(*raw)
    if isinstance(raw, Image.Image):
        return DecodedVideo(np.asarray(raw.convert("RGB"))[None])
    if hasattr(raw, "edges") and hasattr(raw, "frames"):
        return cast(Frames, raw)
    raise TypeError(f"Expected a video: bytes, a path, or an array (T, H, W, 3) of bytes; got a {type(raw).__name__}.")


class Video:
    """A video file, looked through but not decoded. It holds no open file, so that it can be sent to other processes.

    Args:
        raw: the bytes of a file, or its path.
        decoder: one of `DECODERS`; what the environment variable `COLLIMATE_VIDEO_DECODER` names, else PyAV, if None.

    Attributes:
        edges: see `Frames`.
        origin: when the first frame is shown, in seconds of the file.
        has_sound: whether there is a sound track.

    Raises:
        Undecodable: it holds no video, no frame, larger ones than `MAX_PIXELS`, or ends before its header says so.
        FileNotFoundError: there is no such file.
        ValueError: there is no such decoder.
    """

    def __init__(self, raw: bytes | str | PathLike[str], decoder: str | None = None) -> None:
        self.raw = raw
        self.decoder = decoder or os.environ.get(DECODER_VARIABLE) or "pyav"
        if self.decoder not in DECODERS:
            raise ValueError(f"Videos are decoded by {' or '.join(DECODERS)}, not by {self.decoder!r}.")
        with opened(raw) as container:
            stream = video_stream(container)
            if stream.width * stream.height > MAX_PIXELS:
                raise Undecodable(
                    "decompression bomb", f"{stream.width} x {stream.height}, at most {MAX_PIXELS} pixels are taken"
                )
            self.has_sound = bool(container.streams.audio)
            self._index = _look_through(container, stream, raw)
        self.edges, self.origin = self._index.edges, self._index.origin

    def __len__(self) -> int:
        """N."""
        return len(self.edges) - 1

    @property
    def duration(self) -> float:
        """In seconds."""
        return float(self.edges[-1])

    def frames(
        self, times: Sequence[float], framing: Callable[[int, int], Framing] | None = None
    ) -> UInt8[Tensor, "T 3 H W"]:
        """See `Frames`."""
        places = shown_at(self.edges, times)
        wanted = sorted(set(places))
        pictures: list[Tensor] | None = None
        if self.decoder == "torchcodec" and self._index.codec in by_torchcodec.TOLD and self._index.timed:
            try:
                pictures = list(_seen_by_torchcodec(self.raw, self._index, wanted, framing))
            except by_torchcodec.Refused:
                self.decoder = "pyav"  # what it refuses once, it refuses again
        if pictures is None:
            with opened(self.raw) as container:
                pictures = list(_seen(container, video_stream(container), self._index, wanted, framing))
        found = dict(zip(wanted, pictures, strict=True))
        return torch.stack([found[place] for place in places])

    def sound(self, start: float, end: float, rate: int) -> Float32[Tensor, " S"]:
        """The sound between two times, mono; 0 where the track has none.

        Args:
            start, end: in seconds from the first frame on.
            rate: samples a second.

        Raises:
            Undecodable: there is no sound track, or it is damaged.
        """
        with opened(self.raw) as container:
            if not container.streams.audio:
                raise Undecodable("no sound")
            return _sound(container, container.streams.audio[0], self._index.origin + start, end - start, rate)


class DecodedVideo:
    """A video that is there as an array.

    Args:
        pixels: (T, H, W, 3), bytes.
        rate: frames a second.

    Raises:
        Undecodable: the array is none of a video, or has no frame.
    """

    def __init__(self, pixels: UInt8[np.ndarray, "T H W 3"], rate: float = ARRAY_RATE) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not pixels.size:
            raise Undecodable("no video", f"an array {pixels.shape} of {pixels.dtype}, not (T, H, W, 3) of bytes")
        self.pixels = pixels
        self.edges: Float64[np.ndarray, " N+1"] = np.arange(len(pixels) + 1) / rate

    def frames(
        self, times: Sequence[float], framing: Callable[[int, int], Framing] | None = None
    ) -> UInt8[Tensor, "T 3 H W"]:
        """See `Frames`."""
        chosen = torch.from_numpy(self.pixels[shown_at(self.edges, times)]).permute(0, 3, 1, 2)
        if framing is None:
            return chosen.contiguous()
        return _resized(chosen, framing(chosen.shape[3], chosen.shape[2]))


def decode_video(data: bytes) -> Video:
    """The decoder of samples: a video that was looked through, whose frames were not decoded.

    Raises:
        Undecodable: see `Video`.
    """
    return Video(data)


def has_pictures(raw: bytes | str | PathLike[str]) -> bool:
    """Whether a file holds moving pictures or a still one, and not sound alone; the cover of an album does not count.

    Raises:
        Undecodable: it is neither.
        FileNotFoundError: there is no such file.
    """
    with opened(raw) as container:
        return any(not each.disposition & Disposition.attached_pic for each in container.streams.video)


def read_sound(raw: bytes | str | PathLike[str], rate: int) -> Float32[Tensor, " S"]:
    """The whole sound of a file that may hold nothing else, mono.

    Args:
        rate: samples a second.

    Raises:
        Undecodable: there is no sound track, or it is damaged.
        FileNotFoundError: there is no such file.
    """
    with opened(raw) as container:
        if not container.streams.audio:
            raise Undecodable("no sound")
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
        parts = [frame.to_ndarray()[0] for frame in _resampled(container.decode(stream), resampler)]
    if not parts:
        raise Undecodable("no sound", "a track without any")
    return torch.from_numpy(np.concatenate(parts))


def shown_at(edges: Float64[np.ndarray, " N+1"], times: Sequence[float]) -> list[int]:
    """The number of the frame that is shown at each time.

    Raises:
        ValueError: there are no times, or some are no numbers.
    """
    if not len(times) or not np.isfinite(times).all():
        raise ValueError(f"Frames are asked for by finite times, at least one; got {list(times)}.")
    close = 1e-6  # a time that was computed as a frame's own may have been rounded below it
    places = np.searchsorted(edges, np.asarray(times, np.float64) + close, side="right") - 1
    return np.clip(places, 0, len(edges) - 2).tolist()


register_decoder(decode_video, *VIDEOS)
register_modality("video", *VIDEOS, *IMAGES)  # ALPRO trains on pictures as videos that stand still


# The file -------------------------------------------------------------------------------------------------------


class _Index(NamedTuple):
    """What the packets of a video tell."""

    stamps: list[int]  # when each frame is shown, in the stream's time base, rising
    keys: list[tuple[int, int]]  # of key frames: when each is shown, and when it is decoded
    edges: Float64[np.ndarray, " N+1"]
    origin: float  # when the first frame is shown, in seconds of the file
    stream: int  # its number among all of the file's
    unit: Fraction  # the time base: seconds
    codec: str
    timed: bool  # whether frames come out with their own stamps, from wherever decoding begins


@contextmanager
def opened(raw: bytes | str | PathLike[str]) -> Iterator[Any]:
    """The container; what FFmpeg raises within, as `Undecodable`."""
    try:
        container = av.open(io.BytesIO(raw) if isinstance(raw, bytes) else fspath(raw), metadata_errors="replace")
    except NoSuchFile:
        raise FileNotFoundError(f"There is no video {raw!r}.") from None
    except (FFmpegError, ValueError) as error:
        raise Undecodable("not a video", f"{_said(error)}; expected a whole {', '.join(VIDEOS)}") from None
    try:
        yield container
    except FFmpegError as error:
        raise Undecodable("damaged video", f"{_said(error)}; expected a whole file") from None
    finally:
        container.close()


def _said(error: Exception) -> str:
    """What FFmpeg says of it, without its numbers."""
    return getattr(error, "strerror", None) or str(error)


def video_stream(container: Any) -> Any:
    """The first that is no cover of an album."""
    pictures = (each for each in container.streams.video if not each.disposition & Disposition.attached_pic)
    stream = next(pictures, None)
    if stream is None:
        held = "only sound" if container.streams.audio else "no stream of pictures"
        raise Undecodable("no video", f"{held}, expected moving pictures")
    if stream.codec_context is None:
        raise Undecodable("unknown codec", "the file has moving pictures that nothing here decodes")
    stream.codec_context.thread_count = 1  # loading processes share out the cores
    return stream


def _look_through(container: Any, stream: Any, raw: bytes | str | PathLike[str]) -> _Index:
    """Go through the packets without decoding them."""
    stamps: list[int] = []
    keys: list[tuple[int, int]] = []
    ends: dict[int, int] = {}  # of each stream, in its time base
    last = 0  # the end of what is shown, in that of the video
    for packet in container.demux():
        stamp = packet.pts if packet.pts is not None else packet.dts
        if not packet.size or stamp is None:
            continue
        number, end = packet.stream_index, stamp + (packet.duration or 0)
        ends[number] = max(ends.get(number, end), end)
        if number == stream.index and not packet.is_discard:
            stamps.append(stamp)
            last = max(last, end)
            if packet.is_keyframe:
                keys.append((stamp, packet.dts if packet.dts is not None else stamp))
    if not stamps:
        raise Undecodable("no frames", "there is a stream of pictures without any")
    seconds = max(float(end * container.streams[number].time_base) for number, end in ends.items())
    _check_end(container, stream, raw, seconds, len(stamps))
    stamps.sort()
    origin = stamps[0]
    last = max(last, stamps[-1] + _usual_gap(stamps, stream))
    base = float(stream.time_base)
    edges = (np.array([*stamps, last]) - origin) * base
    codec, timed = stream.codec_context.codec.canonical_name, container.format.name not in UNSEEKABLE
    return _Index(stamps, sorted(keys), edges, origin * base, stream.index, stream.time_base, codec, timed)


def _usual_gap(stamps: list[int], stream: Any) -> int:
    """How long a last frame is shown of which nothing is said, in the stream's time base."""
    if len(stamps) > 1:
        return max(1, round((stamps[-1] - stamps[0]) / (len(stamps) - 1)))
    rate = stream.average_rate or stream.guessed_rate
    return max(1, round(1 / (rate * stream.time_base))) if rate else 1


def _check_end(container: Any, stream: Any, raw: bytes | str | PathLike[str], end: float, count: int) -> None:
    """A file that was cut short promises bytes or seconds that it does not have.

    Raises:
        Undecodable: it does.
    """
    length = len(raw) if isinstance(raw, bytes) else os.path.getsize(raw)
    if any(entry.pos + entry.size > length for entry in stream.index_entries):
        raise Undecodable("truncated video", f"{count} of {len(stream.index_entries)} frames are there")
    if container.duration is not None:
        # Whether the header counts from 0 or from the first time stamp differs from format to format.
        promised, found = container.duration / av.time_base, end - min(0, container.start_time or 0) / av.time_base
        if promised - found > max(MISSING_SECONDS, MISSING_SHARE * promised):
            raise Undecodable("truncated video", f"{found:.2f} of {promised:.2f} seconds are there")


# Frames ---------------------------------------------------------------------------------------------------------


def _seen(
    container: Any, stream: Any, index: _Index, wanted: list[int], framing: Callable[[int, int], Framing] | None
) -> Iterator[UInt8[Tensor, "3 H W"]]:
    """The frames of these numbers, which rise, as they are seen."""
    view: Framing | None = None
    scaler = VideoReformatter()
    for frame in _decoded(container, stream, index, wanted):
        if framing is not None and view is None:
            view = framing(*shown_size(frame))
        yield _pixels(frame, view, scaler)


def _seen_by_torchcodec(
    raw: bytes | str | PathLike[str],
    index: _Index,
    wanted: list[int],
    framing: Callable[[int, int], Framing] | None,
) -> Iterator[UInt8[Tensor, "3 H W"]]:
    """The same, where torchcodec gives them."""
    view: Framing | None = None
    for pixels in by_torchcodec.decoded(raw, index.stream, index.unit, index.stamps, wanted):
        if framing is not None and view is None:
            view = framing(pixels.shape[2], pixels.shape[1])
        yield _resized(pixels, view) if view else pixels


def _decoded(container: Any, stream: Any, index: _Index, wanted: list[int]) -> Iterator[Any]:
    """The frames of these numbers, which rise; it seeks where a key frame lies between one and the next."""
    decoder = _Decoder(container, stream, index, wanted)
    for place in wanted:
        yield decoder.frame(index.stamps[place])


class _Decoder:
    """Decodes onwards from where it stands: `last` is the frame that it came by, `pending` one yet to pass."""

    def __init__(self, container: Any, stream: Any, index: _Index, wanted: list[int]) -> None:
        self.container, self.stream, self.index = container, stream, index
        self.wanted = {index.stamps[place] for place in wanted}
        self.key_stamps = [shown for shown, _ in index.keys]
        self.key = -1  # the number of the key frame from which on it decodes
        self.seeks = index.timed
        timeless = container.format.name == TIMELESS
        self.frames: Iterator[Any] = (
            _counted(container, stream, index) if timeless else _stamped(container, stream, self.wanted)
        )
        self.last: Any = None
        self.pending: Any = None

    def frame(self, stamp: int) -> Any:
        """The frame that is shown at a stamp, which is none before the last one's."""
        key = bisect_right(self.key_stamps, stamp) - 1
        if self.seeks and key > max(self.key, 0):
            self._seek(key)
            if self.pending is None or self.pending.pts > stamp:  # the file cannot be sought in: decode all of it
                self.seeks = False
                self._stand(0, self.index.keys[0][1])
        while self.last is None or self.last.pts != stamp:
            self.pending = self.pending or next(self.frames, None)
            if self.pending is None or (self.last is not None and self.pending.pts > stamp):
                break
            self.last, self.pending = self.pending, None
        if self.last is None:
            raise Undecodable("damaged video", "no frame can be decoded")
        # Decoders mark what they could not decode, or leave it out. Of two fields, only one has a frame's stamp.
        if self.last.is_corrupt or (self.last.pts != stamp and not self.last.interlaced_frame):
            raise Undecodable("damaged video", f"the frame at {float(stamp * self.stream.time_base):.2f} seconds")
        return self.last

    def _seek(self, key: int) -> None:
        """Stand before a key frame."""
        shown, decoded = self.index.keys[key]
        self._stand(key, shown)  # by the time of decoding some formats find the key frame before, and decode it all
        if self.pending is None or self.pending.pts > shown:
            self._stand(key, decoded)

    def _stand(self, key: int, stamp: int) -> None:
        self.container.seek(stamp, stream=self.stream, backward=True)
        self.frames, self.key = _stamped(self.container, self.stream, self.wanted), key
        self.last, self.pending = None, next(self.frames, None)


def _stamped(container: Any, stream: Any, wanted: set[int]) -> Iterator[Any]:
    """The frames to come; those that nobody wants may be left out, where no other is made from them."""
    context = stream.codec_context
    skips = context.name in SKIPPABLE
    for packet in container.demux(stream):
        if skips:  # the packets at the end have no stamp, but frames that are still to come out
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        for frame in packet.decode():
            if frame.pts is not None:
                yield frame


def _counted(container: Any, stream: Any, index: _Index) -> Iterator[Any]:
    """All frames with the stamps in their order, where their own are guessed from the order of decoding."""
    for frame, stamp in zip(container.decode(stream), index.stamps, strict=False):
        frame.pts = stamp
        yield frame


def shown_size(frame: Any) -> tuple[int, int]:
    """Width and height after the rotation."""
    return (frame.height, frame.width) if frame.rotation % 180 else (frame.width, frame.height)


def _pixels(frame: Any, view: Framing | None, scaler: VideoReformatter) -> UInt8[Tensor, "3 H W"]:
    """A decoded frame as it is seen."""
    width, height = (view.width, view.height) if view else shown_size(frame)
    pixels = upright(frame, width, height, scaler, view.interpolation if view else "bicubic")
    picture = torch.from_numpy(pixels).permute(2, 0, 1)
    return _laid(picture, view) if view else picture


def upright(
    frame: Any, width: int, height: int, scaler: VideoReformatter, interpolation: str = "bicubic"
) -> UInt8[np.ndarray, "H W 3"]:
    """A decoded frame, scaled, and turned as its file asks for.

    Args:
        scaler: one for all frames of a video: it makes its filters once for frames of one size.
    """
    if frame.rotation % 180:
        width, height = height, width
    scaled = scaler.reformat(frame, width, height, "rgb24", interpolation=_SCALERS[interpolation], threads=1)
    return np.ascontiguousarray(np.rot90(scaled.to_ndarray(), round(frame.rotation / 90)))  # counter-clockwise, both


def _resized(pixels: UInt8[Tensor, "*T 3 h w"], view: Framing) -> UInt8[Tensor, "*T 3 H W"]:
    """Frames as they are seen, without the decoder's scaler."""
    if pixels.shape[-2:] != (view.height, view.width):
        mode = transforms.InterpolationMode(view.interpolation)
        pixels = transforms.resize(pixels, [view.height, view.width], mode, antialias=True)
    return _laid(pixels, view)


def _laid(pixels: UInt8[Tensor, "*T 3 h w"], view: Framing) -> UInt8[Tensor, "*T 3 H W"]:
    """Scaled frames on their canvas."""
    height, width = view.size
    top, left = max(0, -view.top), max(0, -view.left)
    seen = pixels[..., top : height - view.top, left : width - view.left]
    if seen.shape[-2:] == view.size:
        return seen.contiguous()
    canvas = pixels.new_zeros(*pixels.shape[:-2], height, width)
    top, left = max(0, view.top), max(0, view.left)
    canvas[..., top : top + seen.shape[-2], left : left + seen.shape[-1]] = seen
    return canvas


# Sound ----------------------------------------------------------------------------------------------------------


def _sound(container: Any, stream: Any, start: float, length: float, rate: int) -> Float32[Tensor, " S"]:
    """So many seconds from a time of the file on, each piece where its time stamp says."""
    track = np.zeros(max(0, round(length * rate)), np.float32)
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    stream.codec_context.thread_count = 1
    if start > PREROLL:
        container.seek(int((start - PREROLL) / stream.time_base), stream=stream, backward=True)
    for frame in _resampled(container.decode(stream), resampler):
        if frame.pts is None:
            continue
        place = round((float(frame.pts * frame.time_base) - start) * rate)
        if place >= len(track):
            break
        piece = frame.to_ndarray()[0]
        first, last = max(0, place), min(len(track), place + len(piece))
        if last > first:
            track[first:last] = piece[first - place : last - place]
    return torch.from_numpy(track)


def _resampled(frames: Iterator[Any], resampler: Any) -> Iterator[Any]:
    for frame in frames:
        yield from resampler.resample(frame)
    yield from resampler.resample(None)
