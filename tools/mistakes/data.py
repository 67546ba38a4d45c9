"""Mistakes in data: files, tables, shards, captions, regions."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from collimate.data import open_source
from collimate.data.loading import TrainLoader
from collimate.data.mixture import Mixture
from collimate.data.preparation import TrainingPreparation
from collimate.processing import ClipTokenizer, ImageProcessor, Processor

from .table import command, mistake

SUBJECT = "Data"


def picture(side: int = 32) -> bytes:
    """A whole JPEG file."""
    file = io.BytesIO()
    Image.fromarray(np.add.outer(np.arange(side), np.arange(side)).astype(np.uint8)).convert("RGB").save(file, "jpeg")
    return file.getvalue()


def shard(folder: Path, members: Mapping[str, bytes], name: str = "set.tar") -> Path:
    """A tar file of these members."""
    with tarfile.open(folder / name, "w") as tar:
        for member, data in members.items():
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return folder / name


def table(folder: Path, *rows: dict[str, Any]) -> Path:
    """A table of these rows beside two pictures, a.jpg and b.jpg."""
    for name in "ab":
        (folder / f"{name}.jpg").write_bytes(picture())
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "table.jsonl"


def train_on(data: Path | str, max_corrupt_rate: float = 0.01, **processors: Processor) -> None:
    """The first batch of a training stream."""
    mixture = Mixture([open_source(data)])
    next(TrainLoader(mixture, TrainingPreparation(processors), 1, max_corrupt_rate=max_corrupt_rate))


def captioned(data: Path | str) -> None:
    """The first batch of pictures and captions."""
    train_on(data, image=ImageProcessor(32), text=ClipTokenizer(16))


def verify(data: Path | str) -> None:
    command("data", "verify", "--data", data, "--workers", "1")


@mistake(SUBJECT, "Data that is not there", "pictures", "There is no", "a folder of pictures", "is named as")
def missing_data(folder: Path) -> None:
    verify(folder / "pictures")


@mistake(SUBJECT, "A folder with nothing in it", "empty", "no files", "that end in .jpg", "Name the folder")
def empty_folder(folder: Path) -> None:
    (folder / "empty").mkdir()
    verify(folder / "empty")


@mistake(
    SUBJECT,
    "A source that no package offers: `wordl:train`",
    "'wordl'",
    "No installed package",
    "a folder of pictures",
    "world:...",
)
def unknown_source(folder: Path) -> None:
    verify("wordl:train")


@mistake(SUBJECT, "A split of the synthetic world that there is not", "world", "'tset'", "train, val, test", "one of")
def unknown_split(folder: Path) -> None:
    verify("world:tset")


@mistake(SUBJECT, "A shard that is missing", "000001.tar", "missing", "max_bad_rate", "Make them anew")
def missing_shard(folder: Path) -> None:
    shard(folder, {"a.jpg": picture(), "a.txt": b"a ball"}, "000000.tar")
    captioned(f"{folder}/{{000000..000001}}.tar")


@mistake(SUBJECT, "A shard that was cut short", "set.tar", "truncated", "max_bad_rate", "Make them anew")
def truncated_shard(folder: Path) -> None:
    path = shard(folder, {"a.jpg": picture(256), "a.txt": b"a ball", "b.jpg": picture(256)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    captioned(path)


@mistake(
    SUBJECT,
    "A shard whose member would be written outside of it",
    "set.tar: ../a",
    "unsafe member name",
    "expected",
    "anew",
)
def escaping_member(folder: Path) -> None:
    captioned(shard(folder, {"../a.jpg": picture(), "../a.txt": b"a ball"}))


@mistake(
    SUBJECT, "Two samples of one key in a shard", "set.tar: a", "two members of one name", "expected one file", "anew"
)
def duplicate_key(folder: Path) -> None:
    path = folder / "set.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("a.txt", b"a ball"), ("a.txt", b"a ring"), ("a.jpg", picture())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    captioned(path)


@mistake(SUBJECT, "A column that a table lacks", "table.jsonl", "'split'", "image, caption", "it has")
def missing_column(folder: Path) -> None:
    verify(f"{table(folder, {'image': 'a.jpg', 'caption': 'a ball'})}?split=train")


@mistake(SUBJECT, "Conditions that no row of a table meets", "table.jsonl", "split=trian", "split=train", "name values")
def no_row(folder: Path) -> None:
    verify(f"{table(folder, {'image': 'a.jpg', 'caption': 'a ball', 'split': 'train'})}?split=trian")


@mistake(
    SUBJECT, "A table with a line that is no JSON", "table.jsonl", "line 2", "object of columns and values", "mend"
)
def broken_line(folder: Path) -> None:
    path = table(folder, {"image": "a.jpg", "caption": "a ball"})
    path.write_text(path.read_text() + '{"image": "b.jpg", \n')
    verify(path)


@mistake(
    SUBJECT,
    "A table that names a picture that is not there",
    "table.jsonl: row 0",
    "missing file",
    "c.jpg",
    "leave them out",
)
def missing_picture(folder: Path) -> None:
    verify(table(folder, {"image": "c.jpg", "caption": "a ball"}))


@mistake(SUBJECT, "A text file called .jpg", "set.tar: a.jpg", "not an image", "expected", "leave them out")
def no_picture(folder: Path) -> None:
    verify(shard(folder, {"a.jpg": b"<html>not found</html>", "a.txt": b"a ball"}))


@mistake(SUBJECT, "A JPEG file that was cut short", "set.tar: a.jpg", "truncated", "expected", "leave them out")
def truncated_picture(folder: Path) -> None:
    verify(shard(folder, {"a.jpg": picture(256)[:2000], "a.txt": b"a ball"}))


@mistake(SUBJECT, "A caption without words", "set.tar: a", "empty text", "words", "leave them out")
def empty_caption(folder: Path) -> None:
    captioned(shard(folder, {"a.jpg": picture(), "a.txt": b"  \n"}))


@mistake(SUBJECT, "Samples without captions", "set.tar: a", "no txt/captions.json", "it has jpg", "leave them out")
def no_caption(folder: Path) -> None:
    captioned(shard(folder, {"a.jpg": picture()}))


@mistake(
    SUBJECT,
    "More corrupt samples than allowed",
    "set.tar",
    "not an image",
    "max_corrupt_rate=0",
    "raise data.max_corrupt_rate",
)
def too_many_corrupt(folder: Path) -> None:
    path = shard(folder, {"a.jpg": b"<html>", "a.txt": b"a ball", "b.jpg": picture(), "b.txt": b"a ball"})
    loader = TrainLoader(
        Mixture([open_source(path)]), TrainingPreparation({"image": ImageProcessor(32)}), 2, max_corrupt_rate=0
    )
    next(loader)


@mistake(
    SUBJECT,
    "A run that goes on with other data",
    "data.train",
    "held 8 samples",
    "Expected the same data",
    "--resume never",
)
def other_data(folder: Path) -> None:
    from types import SimpleNamespace

    from collimate.data import DataModule

    method = SimpleNamespace(processors={"image": ImageProcessor(32)})
    state: dict[str, Any] = {}
    for length in (8, 12):
        data = DataModule(f"world:train?length={length}", batch_size=4)
        data.trainer = SimpleNamespace(lightning_module=method, is_global_zero=True)  # type: ignore[assignment]
        data.load_state_dict(state)
        data.train_dataloader()
        state = data.state_dict()


def regions(folder: Path, region: dict[str, Any], side: int = 32) -> None:
    """Check a square picture with one region."""
    verify(shard(folder, {"a.jpg": picture(side), "a.regions.json": json.dumps([region]).encode()}))


@mistake(
    SUBJECT, "A box whose corners are swapped", "set.tar: a.regions.json", "region 0", "x0 <= x1", "sort the corners"
)
def inverted_box(folder: Path) -> None:
    regions(folder, {"box": [20, 20, 4, 4], "phrase": "a ball"})


@mistake(
    SUBJECT,
    "A box outside of its picture",
    "set.tar: a.regions.json",
    "[40.0, 40.0, 60.0, 60.0]",
    "32 x 32 pixels",
    "another size",
)
def box_outside(folder: Path) -> None:
    regions(folder, {"box": [40, 40, 60, 60], "phrase": "a ball"})


@mistake(
    SUBJECT,
    "Shares of the picture where pixels belong",
    "set.tar: a.regions.json",
    "[0.1, 0.1, 0.5, 0.5]",
    "expected pixels",
    '"normalised": true',
)
def normalised_box(folder: Path) -> None:
    regions(folder, {"box": [0.1, 0.1, 0.5, 0.5], "phrase": "a ball"}, side=128)


@mistake(
    SUBJECT, "A label that is no number of a class", "set.tar: a.cls", "b'cat'", "number of a class", "leave them out"
)
def wrong_label(folder: Path) -> None:
    verify(shard(folder, {"a.jpg": picture(), "a.cls": b"cat"}))
