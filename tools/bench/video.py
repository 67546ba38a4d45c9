"""Eight frames out of videos of ten seconds: what is decoded for them, and how long that takes.

    uv run python -m tools.bench.video
    uv run --with decord==0.6.0 --with torchcodec==0.17.0 python -m tools.bench.video     # with both beside it

Videos are made here (synthetic: a drifting texture, 640 x 360, 30 frames a second): H.264 with key frames as far apart
as encoders put them by default, and as `collimate video transcode` puts them; VP9 and AV1 as the web has them. Each
contender reads the bytes of the file and gives eight frames of 224 x 224, evenly spread, on one thread. "Collimate by
torchcodec" has torchcodec decode what Collimate asks for, H.264 too, which is otherwise left to PyAV. Time: medians of
interleaved calls in one process.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from unittest import mock

import av
import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms

from collimate.processing import ImageProcessor
from collimate_video import SegmentStarts, VideoProcessor, by_torchcodec, encode
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
THROUGH = "Collimate by torchcodec"
WEB = {  # of libvpx and SVT-AV1: as fast as they encode, which decoding hardly notices
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "b": "300k"}),
    "av1": ("libsvtav1", {"preset": "12"}),
}


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


def alone(data: bytes) -> torch.Tensor:
    """The same eight frames in their full size, by number, resized as `ImageProcessor` does pictures."""
    reader = VideoDecoder(data, num_ffmpeg_threads=1)
    chosen = np.linspace(0, len(reader), FRAMES, endpoint=False).astype(int).tolist()
    small = transforms.resize(
        reader.get_frames_at(chosen).data, [SIDE], transforms.InterpolationMode.BICUBIC, antialias=True
    )
    return transforms.center_crop(small, [SIDE])


def through_collimate(processor: VideoProcessor, data: bytes) -> torch.Tensor:
    """The same eight frames as ours, each by torchcodec."""
    with mock.patch.object(by_torchcodec, "TOLD", (*by_torchcodec.TOLD, "h264")):
        video = Video(data, "torchcodec")
        clip = processor(video)
    assert video.decoder == "torchcodec", "it was refused"
    return clip


def encode_web(pictures: np.ndarray, codec: str, key_every: int) -> bytes:
    """A video in WebM or MP4, by the fastest setting of its encoder."""
    encoder, options = WEB[codec]
    file = io.BytesIO()
    with av.open(file, "w", format="webm" if codec == "vp9" else "mp4") as output:
        stream = output.add_stream(encoder, rate=RATE, options={"g": str(key_every), **options})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def compare(data: bytes, codec: str, repeats: int) -> dict:
    """Milliseconds of each contender, and how many times as fast ours is."""
    processor = VideoProcessor(FRAMES, ImageProcessor(SIDE))
    calls: dict[str, Callable[[], torch.Tensor]] = {OURS: lambda: processor(data), ALL: lambda: everything(data)}
    if decord is not None and codec != "av1":  # its FFmpeg is older than that
        calls[DECORD] = lambda: by_decord(data)
    if VideoDecoder is not None:
        calls[TORCHCODEC] = lambda: alone(data)
        calls[THROUGH] = lambda: through_collimate(processor, data)
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
    for codec, key_every in (("h264", 250), ("h264", 30), ("h264", 12), ("vp9", 128), ("av1", 128)):
        data = (
            encode(pictures, RATE, side=min(SIZE), key_every=key_every)
            if codec == "h264"
            else encode_web(pictures, codec, key_every)
        )
        keys = len(Video(data)._index.keys)
        row = {"codec": codec, "key frame every": key_every, "key frames": keys, "KiB": len(data) // 1024}
        rows.append({**row, **compare(data, codec, repeats)})
    _harness.report("video", rows, frames=FRAMES, side=SIDE, size=SIZE, seconds=SECONDS, repeats=repeats)


if __name__ == "__main__":
    main()
