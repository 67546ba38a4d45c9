"""Hugging Face datasets as a source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collimate.data.source import CorruptSample, Sample, Source
from collimate.data.tables import COLUMNS


class HuggingFaceSource(Source):
    """A map-style dataset of the `datasets` package, which memory-maps it.

    Args:
        path: a folder that `save_to_disk` wrote, or what `datasets.load_dataset` takes.
        split: which part of it.
        columns: key of the sample schema -> column, where the usual names do not fit: `{"jpg": "img"}`.
        name: what reports call it.
        options: further arguments of `load_dataset`.

    Raises:
        ImportError: `datasets` is not installed.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        try:
            import datasets
        except ImportError as error:
            raise ImportError("Hugging Face datasets need an extra: install `collimate[huggingface]`.") from error

        if (Path(path) / "state.json").is_file() or (Path(path) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(path)
            data = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            data = datasets.load_dataset(path, split=split, **options)
        self.name = name or f"hf:{path}?split={split}"
        names = {"jpg": ("image", "img", "jpg", "picture"), **{k: v for k, v in COLUMNS.items() if k != "file"}}
        found = {key: next((n for n in usual if n in data.column_names), None) for key, usual in names.items()}
        self.columns = {**{key: column for key, column in found.items() if column}, **(columns or {})}
        if missing := [column for column in self.columns.values() if column not in data.column_names]:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(data.column_names)}.")
        self.class_names: list[str] | None = None
        for column, feature in data.features.items():
            if isinstance(feature, datasets.Image):
                data = data.cast_column(column, datasets.Image(decode=False))  # decoding is the preparation's
            elif isinstance(feature, datasets.ClassLabel) and column == self.columns.get("cls"):
                self.class_names = list(feature.names)
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def read(self, index: int) -> Sample:
        row = self._data[index]
        sample: Sample = {"__key__": str(index), "__source__": self.name}
        for key, column in self.columns.items():
            value = row[column]
            if isinstance(value, dict) and {"bytes", "path"} <= value.keys():
                value = value["bytes"] if value["bytes"] is not None else _read(value["path"], self.name)
            if value is not None:
                sample[key] = value
        return sample


def _read(path: str | None, name: str) -> bytes:
    try:
        return Path(path or "").read_bytes()
    except OSError as error:
        raise CorruptSample(f"{name}: {path}", "missing file", str(error)) from None
