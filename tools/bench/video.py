"""Eight frames out of videos of ten seconds: what is decoded for them, and how long that takes.

    uv run python -m tools.bench.video
    uv run --with decord==0.6.0 --with torchcodec==0.17.0 python -m tools.bench.video     # with both beside it

Videos are made here (synthetic: a drifting texture, 640 x 360, 30 frames a second, H.264), with key frames as far
apart as encoders put them by default, and as `collimate video transcode` puts them. Each contender reads the bytes of
the file and gives eight frames of 224 x 224, evenly spread, on one thread. Time: medians of interleaved calls in one
process.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable

import av
import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms

from collimate.processing import ImageProcessor
from collimate_video import SegmentStarts, VideoProcessor, encode
from collimate_video.reading import Video, shown_at
from tools.bench import _harness

try:
    import decord
except ImportError:
    decord = None
try:
    from torchcodec.decoders import VideoDecoder
except (ImportError, OSError, RuntimeError):  # it needs FFmpeg's shared libraries
    VideoDecoder = None

FRAMES, SIDE, RATE, SECONDS, SIZE = 8, 224, 30, 10, (360, 640)
OURS, ALL, DECORD, TORCHCODEC = "collimate", "decode everything", "decord", "torchcodec"


def texture() -> np.ndarray:
    """A video (T, H, W, 3) of a smooth random texture that drifts, as bytes."""
    draws = np.random.default_rng(0).normal(size=(3, 24, 40)).astype(np.float32)
    wide = transforms.resize(torch.from_numpy(draws), [SIZE[0], 2 * SIZE[1]], antialias=True)
    picture = ((wide - wide.min()) / (wide.max() - wide.min()) * 255).byte().permute(1, 2, 0).numpy()
    return np.stack([picture[:, 2 * frame : 2 * frame + SIZE[1]] for frame in range(RATE * SECONDS)])


def everything(data: bytes) -> torch.Tensor:
    """All frames, of which eight are kept and resized: the plain way."""
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].thread_count = 1
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    edges = np.arange(len(frames) + 1) / RATE
    chosen = torch.from_numpy(frames[shown_at(edges, SegmentStarts()(edges, FRAMES))]).permute(0, 3, 1, 2)
    small = transforms.resize(chosen, [SIDE], transforms.InterpolationMode.BICUBIC, antialias=True)
    return transforms.center_crop(small, [SIDE])


def by_decord(data: bytes) -> torch.Tensor:
    """As ALPRO's code reads: a reader that scales, asked for eight frames."""
    reader = decord.VideoReader(io.BytesIO(data), width=round(SIDE * SIZE[1] / SIZE[0]), height=SIDE, num_threads=1)
    frames = reader.get_batch(np.linspace(0, len(reader), FRAMES, endpoint=False).astype(int).tolist()).asnumpy()
    return transforms.center_crop(torch.from_numpy(frames).permute(0, 3, 1, 2), [SIDE])


def by_torchcodec(data: bytes) -> torch.Tensor:
    """The same eight frames in their full size, by number, resized as `ImageProcessor` does pictures."""
    reader = VideoDecoder(data, num_ffmpeg_threads=1)
    chosen = np.linspace(0, len(reader), FRAMES, endpoint=False).astype(int).tolist()
    small = transforms.resize(
        reader.get_frames_at(chosen).data, [SIDE], transforms.InterpolationMode.BICUBIC, antialias=True
    )
    return transforms.center_crop(small, [SIDE])


def compare(data: bytes, repeats: int) -> dict:
    """Milliseconds of each contender, and how many times as fast ours is."""
    processor = VideoProcessor(FRAMES, ImageProcessor(SIDE))
    calls: dict[str, Callable[[], torch.Tensor]] = {OURS: lambda: processor(data), ALL: lambda: everything(data)}
    if decord is not None:
        calls[DECORD] = lambda: by_decord(data)
    if VideoDecoder is not None:
        calls[TORCHCODEC] = lambda: by_torchcodec(data)
    difference = float((calls[OURS]().float() - calls[ALL]().float()).abs().mean())
    taken = _harness.interleaved(calls, repeats)
    found = {f"{name} ms": 1000 * seconds for name, seconds in taken.items()}
    found |= {f"times as fast as {name}": taken[name] / taken[OURS] for name in taken if name != OURS}
    return found | {"mean difference in grey levels": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    pictures = texture()
    rows = []
    for key_every in (250, 30, 12):
        data = encode(pictures, RATE, key_every=key_every)
        keys = len(Video(data)._index.keys)
        rows.append(
            {"key frame every": key_every, "key frames": keys, "KiB": len(data) // 1024, **compare(data, repeats)}
        )
    _harness.report("video", rows, frames=FRAMES, side=SIDE, size=SIZE, seconds=SECONDS, repeats=repeats)


if __name__ == "__main__":
    main()
