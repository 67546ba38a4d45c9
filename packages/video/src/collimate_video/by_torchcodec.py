"""torchcodec as the decoder of a video's frames, where somebody asks for it instead of PyAV.

Which frames are shown is read from the packets as ever (`reading`). torchcodec decodes these, and each is taken only if
it carries the time stamp that was asked for. What torchcodec refuses goes back to PyAV, which decodes it or tells what
is damaged.

It is never chosen by itself, for two reasons. On a CPU it is hardly faster: eight frames of ten seconds, scaled to 224
pixels, took it 0.86 to 1.08 of PyAV's CPU time in VP9 and AV1, and 0.92 to 1.73 in H.264 (456 x 256 to 1280 x 720), of
which PyAV leaves out frames on which no other rests. And it does not say which frames its decoder had to guess at: of
H.264, HEVC, MPEG-4 and FFV1 it gives damaged ones as if they were whole. So it decodes only the codecs of `TOLD`.

With the same FFmpeg behind both, frames of full size are equal, bit for bit, where channels have 8 bits; of 10 bits
they differ by 1.3 grey levels in the mean, at coloured edges by up to 30. Scaled ones differ as torchvision's resizing
does from the decoder's own: by 1 to 4 grey levels in the mean and up to 40 at coloured edges; with `nearest`, which
takes another neighbour, by up to 8 and 70.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from os import PathLike, fspath
from typing import Any

import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8
from torch import Tensor

TOLD = ("av1", "vp8", "vp9")
"""The codecs of which torchcodec refuses every frame that PyAV calls damaged; tests damage them at random."""

INSTALL = "It is `collimate-video[torchcodec]`, and loads where FFmpeg's shared libraries are installed."


class Refused(Exception):
    """torchcodec does not give these frames, or not surely the right ones."""


def decoded(
    raw: bytes | str | PathLike[str], stream: int, unit: Fraction, stamps: list[int], wanted: list[int]
) -> Iterator[UInt8[Tensor, "3 H W"]]:
    """Some frames of a video in their full size, upright and as RGB.

    Args:
        raw: the bytes of a file, or its path.
        stream: the number of the pictures' stream among all of the file's.
        unit: in which its stamps count, in seconds.
        stamps: when each frame is shown, rising.
        wanted: their numbers, rising.

    Raises:
        Refused: it does not work here, or does not suit this file.
    """
    video_decoder = load()
    if video_decoder is None:
        raise Refused
    try:
        source = raw if isinstance(raw, bytes) else fspath(raw)
        decoder = video_decoder(source, stream_index=stream, num_ffmpeg_threads=1, device="cpu")
        if len(decoder) != len(stamps):  # it counts other packets, so that its numbers are not ours
            raise Refused
        for place in wanted:
            frame = decoder.get_frame_at(place)
            if round(frame.pts_seconds / unit) != stamps[place]:  # in place of a damaged one, the next
                raise Refused
            yield frame.data.contiguous()
    except (IndexError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise Refused from error


@cache
def load() -> Any:
    """torchcodec's `VideoDecoder`; None where it does not work, which a warning says once a process."""
    try:
        from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]

        VideoDecoder(_film(), device="cpu").get_frame_at(0)  # newer ones are imported without FFmpeg, and fail here
    except (FFmpegError, ImportError, OSError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        warnings.warn(f"PyAV decodes videos, although torchcodec was asked for: {reason}. {INSTALL}", stacklevel=2)
        return None
    return VideoDecoder


def _film() -> bytes:
    from collimate_video.transcoding import encode

    return encode(np.zeros((1, 16, 16, 3), np.uint8))
