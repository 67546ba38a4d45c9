"""Small data sets, whole and damaged."""

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from collimate.data import CorruptSample, Source
from collimate.processing import ClipTokenizer, ImageProcessor


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """The cache of downloads and indexes, apart from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("COLLIMATE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def processors():
    return {"image": ImageProcessor(16), "text": ClipTokenizer(12)}


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    """A picture of one grey level (its number) with some structure, as the bytes of a file."""

    def make(number: int = 0, size: tuple[int, int] = (40, 30), format: str = "JPEG") -> bytes:
        pixels = np.random.default_rng(number).integers(0, 255, (3, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, format)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def write_tar() -> Callable[..., Path]:
    """Write members, (name, bytes) each, to a tar file as they are."""

    def write(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def shards(tmp_path, write_tar, jpeg) -> Callable[..., list[Path]]:
    """Shards of so many samples each; sample n holds picture n, caption `caption n` and class n modulo 3."""

    def make(*counts: int, folder: Path = tmp_path / "shards", replace: Mapping[int, bytes] | None = None):
        paths, number = [], 0
        for place, count in enumerate(counts):
            members = []
            for sample in range(number, number + count):
                image = (replace or {}).get(sample, jpeg(sample))
                members += [
                    (f"{sample:05d}.jpg", image),
                    (f"{sample:05d}.txt", f"caption {sample}".encode()),
                    (f"{sample:05d}.cls", str(sample % 3).encode()),
                ]
            number += count
            paths.append(write_tar(folder / f"{place:06d}.tar", members))
        return paths

    return make


class Numbers(Source):
    """Sample n has the caption `n`; those in `bad` are corrupt."""

    def __init__(self, size: int, name: str = "numbers", bad: Sequence[int] = ()) -> None:
        self.size, self.name, self.bad = size, name, set(bad)

    def __len__(self) -> int:
        return self.size

    def read(self, index: int) -> dict:
        if index in self.bad:
            raise CorruptSample(f"{self.name}: {index}", "spoilt")
        return {"__key__": str(index), "__source__": self.name, "txt": str(index)}


@pytest.fixture(scope="session")
def numbers() -> type[Numbers]:
    return Numbers
