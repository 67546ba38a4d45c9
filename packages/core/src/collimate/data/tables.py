"""Tables of files and captions: CSV, TSV and JSON lines."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from collimate.data.classes import labels_of
from collimate.data.decoding import Undecodable
from collimate.data.files import FileReader
from collimate.data.shards import read_class_names
from collimate.data.source import CorruptSample, Sample, Source

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "file": ("file", "image", "path", "filepath", "file_path", "filename", "image_path", "audio", "video"),
    "txt": ("caption", "text", "title", "txt"),
    "captions.json": ("captions",),
    "cls": ("label_id", "cls", "class_id", "label", "class"),
    "labels.json": ("labels",),
    "regions.json": ("regions", "boxes"),
    "compositional.json": ("compositional",),
}
"""What a column holds, by its usual names; the first name found is taken."""

KIND = "captions."
"""What columns with captions of a kind are asked for by: `captions.long`."""


class TableSource(Source):
    """One sample a row: a file, and what the other columns say of it.

    Only the place of each row in the table is held in memory. Classes that are named are numbered in alphabetical
    order, or as a `classes.json` beside the table says: those of the whole table, whatever rows are taken.

    Args:
        path: a .csv, .tsv or .jsonl file.
        columns: what -> column, where the usual names (`COLUMNS`) do not fit. `file` is the column with the path of
            the sample's file, relative to the table; its suffix says what it is. `captions.<kind>` are one or several
            columns with captions of a kind (one a cell, or a list), which together become the sample's
            `captions.json`; empty cells are left out.
            Any other key is one of the sample schema:
            `{"file": "img", "txt": "alt_text", "captions.short": "blip", "captions.long": ["llava", "sharegpt4v"]}`.
        where: column -> the value that a row must have in it to be taken, such as `{"split": "train"}`, or the values
            of which it must have one: `{"fold": [1, 2, 3]}`.
        name: what reports call it; the path if None.

    Raises:
        ValueError: a row cannot be parsed, a column that was asked for is not there, or no row is left.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Mapping[str, str | Sequence[str]] | None = None,
        where: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        self.path = Path(path)
        wanted = {column: each if isinstance(each, list) else [each] for column, each in (where or {}).items()}
        self.where = {column: [str(value) for value in values] for column, values in wanted.items()}
        conditions = "&".join(  # as `open_source` takes them
            f"{column}={values[0] if len(values) == 1 else '[' + ','.join(values) + ']'}"
            for column, values in self.where.items()
        )
        self.name = name or (f"{path}?{conditions}" if conditions else str(path))
        self._delimiter = {".csv": ",", ".tsv": "\t"}.get(self.path.suffix)  # None: JSON lines
        self._files = FileReader()
        self._header: list[str] | None = None
        starts, ends, labels = [], [], set()
        self.columns: dict[str, str] = {}
        given, self._kinds = _by_kind(columns or {})
        for row, start, end in self._scan():
            if not self.columns:
                self.columns = self._choose_columns(row, given)
            labels.update(self._names_of(row))
            if any(str(row.get(column)) not in values for column, values in self.where.items()):
                continue
            starts.append(start)
            ends.append(end)
        if not starts:
            raise ValueError(
                f"{self.path}: " + (self._unmet(conditions) if self.columns else "no rows: expected one a sample.")
            )
        self._starts, self._ends = np.array(starts, np.int64), np.array(ends, np.int64)
        names = self.path.parent / "classes.json"
        listed = (read_class_names(names) if names.is_file() else None) or []
        self.class_names = (listed if labels <= set(listed) else sorted(labels)) or None
        self._labels = {label: number for number, label in enumerate(self.class_names or [])}

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> dict[str, Any]:
        """The row as it stands in the table."""
        start, end = int(self._starts[index]), int(self._ends[index])
        return self._parse(self._files.read(str(self.path), start, end - start))

    def read(self, index: int) -> Sample:
        return self._read(index)

    def peek(self, index: int, keys: Sequence[str]) -> Sample:
        sample = self._read(index, keys)
        return {key: value for key, value in sample.items() if key in keys or key.startswith("__")}

    def size_of(self, index: int) -> int:
        """The bytes of a sample's file, or of its row if it has none: a measure of its length that costs no reading.

        A file that is missing has 0; what is wrong with it is told when it is read.
        """
        value = self.row(index).get(self.columns["file"]) if "file" in self.columns else None
        if value is None:
            return int(self._ends[index] - self._starts[index])
        with suppress(OSError):
            return (self.path.parent / str(value)).stat().st_size
        return 0

    def _read(self, index: int, keys: Sequence[str] | None = None) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"Row {index} of {len(self)} in {self.name}.")
        row = self.row(index)
        sample: Sample = {"__key__": str(index), "__source__": self.name, "json": row}
        for what, column in self.columns.items():
            value = row.get(column)
            if value is None:
                continue
            if what == "file":
                sample["__key__"] = f"{index}:{value}"
                if keys is None or _suffix(str(value)) in keys:
                    sample[_suffix(str(value))] = self._file(str(value), index)
            elif what == "cls":
                sample["cls"] = int(value) if _is_number(value) else self._labels[str(value)]
            else:
                sample[what] = value
        texts = ((text, kind) for column, kind in self._kinds.items() for text in _texts(row.get(column)))
        if captions := [{"text": text, "kind": kind} for text, kind in texts]:
            sample["captions.json"] = captions
        return sample

    def _names_of(self, row: Mapping[str, Any]) -> Iterator[str]:
        """The classes that a row names."""
        for what in ("cls", "labels.json"):
            value = row.get(self.columns[what]) if what in self.columns else None
            with suppress(Undecodable):  # such a row spoils itself only, when it is read
                for label in [value] if what == "cls" else labels_of(value or []):
                    if label is not None and not _is_number(label):
                        yield str(label)

    def _file(self, value: str, index: int) -> bytes:
        try:
            return (self.path.parent / value).read_bytes()
        except OSError as error:
            reason = "missing file" if isinstance(error, FileNotFoundError) else "unreadable file"
            raise CorruptSample(f"{self.path}: row {index}", reason, str(self.path.parent / value)) from None

    def _unmet(self, conditions: str) -> str:
        """What to say where no row meets the conditions: what the first row has in their place."""
        first, _, _ = next(self._scan())
        there = ", ".join(f"{column}={first.get(column)}" for column in self.where)
        return f"no row has {conditions}. The first row has {there}: name values that are in the table."

    def _choose_columns(self, row: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
        if missing := [column for column in (*given.values(), *self._kinds, *self.where) if column not in row]:
            raise ValueError(f"{self.path} has no column {missing[0]!r}; it has {', '.join(row)}.")
        found = {what: next((name for name in names if name in row), None) for what, names in COLUMNS.items()}
        if isinstance(row.get("captions"), str):
            found["txt"], found["captions.json"] = found["txt"] or "captions", None
        return {**{what: column for what, column in found.items() if column is not None}, **given}

    # Rows and their places --------------------------------------------------------------------------------------

    @property
    def _form(self) -> str:
        return "an object of columns and values, in one line" if self._delimiter is None else "cells as in the header"

    def _scan(self) -> Iterator[tuple[dict[str, Any], int, int]]:
        """Each row with the bytes of the table that it takes."""
        with open(self.path, "rb") as file:
            lines = _Counted(file)
            if self._delimiter is not None:
                self._header = self._next(lines)
            while True:
                start = lines.consumed
                row = self._next(lines)
                if row is not None and self._delimiter is not None:
                    row = dict(zip(self._header or [], row, strict=False))
                if row is None:
                    return
                if not isinstance(row, dict):
                    raise ValueError(f"{self.path}: line {lines.count}: expected {self._form}.")
                if row:
                    yield row, start, lines.consumed

    def _next(self, lines: _Counted) -> Any:
        """The next line's value, or the next row's cells; None at the end."""
        try:
            if self._delimiter is not None:
                return next(csv.reader(lines.text(), delimiter=self._delimiter), None)
            line = next(lines, None)
            return None if line is None else json.loads(_text(line)) if line.strip() else {}
        except (ValueError, csv.Error) as error:
            raise ValueError(
                f"{self.path}: line {lines.count}: cannot parse it ({error}). Expected {self._form}: mend the line, or "
                "remove it."
            ) from None

    def _parse(self, data: bytes) -> dict[str, Any]:
        if self._delimiter is None:
            return json.loads(_text(data))
        cells = next(csv.reader(io.StringIO(_text(data), newline=""), delimiter=self._delimiter))
        return dict(zip(self._header or [], cells, strict=False))


class _Counted:
    """The lines of a file, with the bytes and lines taken so far; a CSV reader takes as many as a row has."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self.consumed = self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = next(self._lines)
        self.consumed += len(line)
        self.count += 1
        return line

    def text(self) -> Iterator[str]:
        for line in self:
            yield _text(line)


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _by_kind(columns: Mapping[str, str | Sequence[str]]) -> tuple[dict[str, str], dict[str, str]]:
    """What a table was asked for: what -> column, and column -> kind of its captions."""
    plain, kinds = {}, {}
    for what, given in columns.items():
        if what.startswith(KIND) and what != "captions.json":
            kinds.update(dict.fromkeys([given] if isinstance(given, str) else given, what.removeprefix(KIND)))
        elif isinstance(given, str):
            plain[what] = given
        else:
            raise ValueError(f"{what} is one column, not {given}; several are for captions of a kind.")
    return plain, kinds


def _text(data: bytes) -> str:
    """Bytes that are no UTF-8 become lone surrogates, so that they spoil their own row only: its caption is refused."""
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _suffix(path: str) -> str:
    return path.rsplit("/", 1)[-1].partition(".")[2].rsplit(".", 1)[-1].lower()


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.strip().isdecimal())
