"""The data path alone beside open_clip's WebDataset pipeline: read, decode, augment, tokenize, batch.

    uv run python -m tools.bench.data

Both read the same shards of web-sized JPEGs with equal workers and batches, crop at random (area 0.9-1.0, 224 pixels,
bicubic) and tokenize with CLIP's byte pairs. They take turns in one process, with workers started anew for each turn;
the batches that fill the queues are left out, and the figure is the median over the turns.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import open_clip_train.data as open_clip_data
from PIL import Image
from webdataset import tariterators
from webdataset.writer import TarWriter

from collimate.data import ImageAugmentation, Mixture, TrainingPreparation, TrainLoader, open_source
from collimate.processing import ClipTokenizer, ImageProcessor
from tools.bench._harness import report

SHAPES = ((4, 3), (3, 2), (3, 4), (1, 1), (16, 9))  # common formats of photographs on the web
QUALITY = 85

# open_clip 3.3 was written for webdataset 0.2, which marked no ends of shards: without this it fails at the first.
open_clip_data.tar_file_expander = partial(tariterators.tar_file_expander, eof_value=None)  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[500, 1000], help="longer side of the pictures, pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=10, help="measured in a turn")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for side in options.sides:
        with tempfile.TemporaryDirectory() as folder:
            samples = options.batch_size * (options.batches + 3 * max(options.workers) + 1)
            shards = make_shards(Path(folder), samples, side)
            bytes_each = sum(path.stat().st_size for path in Path(folder).glob("*.tar")) / samples
            for workers in options.workers:
                rows.append(_compare(shards, samples, workers, options) | {"side": side, "kib_each": bytes_each / 1024})
    path = report("data", rows, **vars(options))
    print(f"Goal: 500-pixel pictures at 1.5 times the speed. Written to {path}.")


def make_shards(folder: Path, samples: int, side: int = 500, shards: int = 4) -> str:
    """Write shards of JPEGs with captions, the same whenever made; returns their pattern.

    The pictures are coloured noise of falling spectrum, as photographs have, and compress like them (about 60 KiB at
    500 pixels). A hundred of them are repeated: decoding one again is not faster.
    """
    random = np.random.default_rng(0)
    pictures = [_picture(random, side, SHAPES[number % len(SHAPES)]) for number in range(min(samples, 100))]
    words = ["".join(random.choice(list("abcdefghilmnoprstu"), random.integers(2, 9))) for _ in range(3000)]
    for shard in range(shards):
        with TarWriter(str(folder / f"{shard:06d}.tar")) as tar:
            for number in range(shard, samples, shards):
                drawn = np.minimum(random.zipf(1.3, random.integers(6, 25)), len(words)) - 1
                caption = " ".join(words[word] for word in drawn).capitalize() + "."
                tar.write({"__key__": f"{number:09d}", "jpg": pictures[number % len(pictures)], "txt": caption})
    return f"{folder}/{{000000..{shards - 1:06d}}}.tar"


def _picture(random: np.random.Generator, side: int, shape: tuple[int, int]) -> bytes:
    width, height = (round(side * extent / max(shape)) for extent in shape)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) * side
    falling = 1 / np.maximum(frequency, 1) ** 1.3
    planes = [np.fft.irfft2(np.fft.rfft2(random.standard_normal((height, width))) * falling) for _ in range(3)]
    grey = planes[0]
    colours = np.stack([grey + 0.3 * planes[1], grey, grey + 0.3 * planes[2]], -1)
    pixels = np.clip(127 + 55 * (colours - colours.mean()) / colours.std(), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _compare(shards: str, samples: int, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    contenders = {
        "open_clip": lambda: _theirs(shards, samples, workers, options.batch_size),
        "collimate": lambda: _ours(shards, workers, options.batch_size),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.turns):
        for name, start in contenders.items():
            times[name].append(_turn(start, 2 * workers + 1, options.batches))
    speed = {name: options.batch_size * options.batches / median(seconds) for name, seconds in times.items()}
    return {
        "workers": workers,
        "open_clip_images_per_second": round(speed["open_clip"], 1),
        "collimate_images_per_second": round(speed["collimate"], 1),
        "ratio": round(speed["collimate"] / speed["open_clip"], 3),
    }


def _turn(start: Callable[[], Iterator[Any]], leave_out: int, count: int) -> float:
    """Seconds for so many batches, once the queues are full."""
    batches = start()
    for _ in range(leave_out):
        next(batches)
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    return time.perf_counter() - begin


def _theirs(shards: str, samples: int, workers: int, batch_size: int) -> Iterator[Any]:
    settings = SimpleNamespace(
        train_data=shards,
        train_num_samples=samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=batch_size,
        workers=workers,
        world_size=1,
        seed=0,
    )
    transform = open_clip.image_transform(224, is_train=True)
    info = open_clip_data.get_wds_dataset(
        settings, transform, is_train=True, tokenizer=open_clip.get_tokenizer("ViT-B-32")
    )
    return iter(info.dataloader)


def _ours(shards: str, workers: int, batch_size: int) -> Iterator[Any]:
    processors = {"image": ImageProcessor(224), "text": ClipTokenizer()}
    preparation = TrainingPreparation(processors, augmentations={"image": ImageAugmentation()})
    return iter(TrainLoader(Mixture([open_source(shards)]), preparation, batch_size, num_workers=workers))


if __name__ == "__main__":
    main()
