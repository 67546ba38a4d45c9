"""Folders of pictures or sounds: one folder a class, or files with captions of the same name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from collimate.data.decoding import IMAGES, SOUNDS
from collimate.data.shards import read_class_names
from collimate.data.source import CorruptSample, Sample, Source

SIDECARS = ("txt", "captions.json", "regions.json", "labels.json", "cls", "json")
"""Keys that may lie beside a picture, in a file of the same name."""


class FolderSource(Source):
    """The pictures below a folder, or its sounds where it has no picture, in the order of their names.

    Where all of them lie in subfolders, the first level names the classes (torchvision's `ImageFolder` layout),
    numbered in alphabetical order. A file of the same name and another suffix (`SIDECARS`) belongs to the sample.

    Args:
        root: the folder.
        extensions: what counts as a sample's main file, where it is another choice.
        name: what reports call it; the folder if None.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
    """

    def __init__(
        self, root: str | os.PathLike[str], extensions: tuple[str, ...] | None = None, name: str | None = None
    ) -> None:
        self.root = Path(root)
        self.name = name or str(root)
        kinds = (IMAGES, SOUNDS) if extensions is None else (extensions,)
        listing = list(_files(self.root))
        self.paths = next((paths for kind in kinds if (paths := _ending(listing, kind))), [])
        if not self.paths:
            endings = ", ".join(f".{extension}" for kind in kinds for extension in kind)
            raise FileNotFoundError(
                f"{self.root}: no files that end in {endings}. Name the folder that holds them, or say by `extensions` "
                "what its files end in."
            )
        self._has_sidecars = len(listing) > len(self.paths)
        classes = sorted({path.split("/")[0] for path in self.paths if "/" in path})
        if all("/" in path for path in self.paths) and len(classes) > 1:
            self._labels = {name: number for number, name in enumerate(classes)}
            self.class_names: list[str] | None = _readable(self.root, classes)
        else:
            self._labels, self.class_names = {}, None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Sample:
        return self._read(index)

    def peek(self, index: int, keys: Sequence[str]) -> Sample:
        return self._read(index, keys)

    def size_of(self, index: int) -> int:
        """The bytes of a sample's main file: a measure of its length that costs no reading."""
        return (self.root / self.paths[index]).stat().st_size

    def _read(self, index: int, keys: Sequence[str] | None = None) -> Sample:
        path = self.root / self.paths[index]
        stem = self.paths[index].rsplit(".", 1)[0]
        sample: Sample = {"__key__": stem, "__source__": self.name}
        extension = path.suffix[1:].lower()
        try:
            if keys is None or extension in keys:
                sample[extension] = path.read_bytes()
        except OSError as error:
            raise CorruptSample(str(path), "unreadable file", str(error)) from None
        if self._labels:
            sample["cls"] = self._labels[self.paths[index].split("/")[0]]
        if self._has_sidecars:
            for key in SIDECARS if keys is None else set(SIDECARS).intersection(keys):
                beside = path.with_name(f"{path.name.rsplit('.', 1)[0]}.{key}")
                if beside.is_file():
                    sample[key] = beside.read_bytes()
        return sample


def _ending(paths: list[str], extensions: tuple[str, ...]) -> list[str]:
    endings = tuple(f".{extension}" for extension in extensions)
    return [path for path in paths if path.lower().endswith(endings)]


def _files(root: Path, inside: str = "") -> Iterator[str]:
    """Paths of all files below `root`, relative to it, in order; hidden ones left out."""
    for entry in sorted(os.scandir(root / inside), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        path = f"{inside}{entry.name}"
        if entry.is_dir():
            yield from _files(root, f"{path}/")
        else:
            yield path


def _readable(root: Path, classes: list[str]) -> list[str]:
    """The names in a `classes.json` in the folder or above it, if they fit; else the folders' own."""
    for folder in (root, root.parent):
        if (folder / "classes.json").is_file():
            names = read_class_names(folder / "classes.json")
            if names is not None and len(names) == len(classes):
                return names
    return classes
