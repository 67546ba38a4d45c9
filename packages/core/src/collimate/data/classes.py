"""The classes of samples: what labels a sample has, and lists of class names in files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collimate.data.decoding import Undecodable

NAME_COLUMNS = ("display_name", "name", "class", "label")
OTHER_COLUMNS = ("mid", "mids", "id")

_BETWEEN = re.compile(r"\s*;\s*|,(?! )")


def labels_of(value: Any) -> list[str | int]:
    """The labels that a sample's value says: names, or numbers of classes.

    Args:
        value: a list of them; one of them; or several in one text, as a JSON list or with `;` or `,` between them. A
            comma before a blank is part of a name, as in AudioSet's `Chewing, mastication`.

    Raises:
        Undecodable: it is none of these.
    """
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = json.loads(text)
            except ValueError as error:
                raise Undecodable("damaged list of labels", f"{text[:60]!r}: {error}") from None
        else:
            value = [label for label in _BETWEEN.split(text) if label]
    listed = value if isinstance(value, list | tuple) else [value]
    if wrong := [label for label in listed if isinstance(label, bool) or not isinstance(label, str | int)]:
        raise Undecodable("labels are neither names nor numbers", repr(wrong[0])[:60])
    return list(listed)


def read_class_list(path: str | Path) -> tuple[list[str], list[str]]:
    """The names of classes in the order of their numbers, and second names where the file has them.

    Args:
        path: a `classes.json`, as shards have it beside them; a .csv with a header, such as AudioSet's
            `class_labels_indices.csv` (`index,mid,display_name`), whose rows are sorted by `index` where they have
            one; or a text with one name a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no names are in it.
    """
    from collimate.data.shards import read_class_names

    path = Path(path)
    if path.suffix == ".csv":
        names, others = _from_table(path)
    elif path.suffix == ".json":
        names, others = read_class_names(path) or [], []
    else:
        names, others = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()], []
    if not names:
        raise ValueError(f"{path}: no class names. Expected a list, a table with `display_name`, or one name a line.")
    return names, others


def _from_table(path: Path) -> tuple[list[str], list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    if rows and rows[0].get("index", "").isdecimal():
        rows.sort(key=lambda row: int(row["index"]))
    found = [_first(rows, columns) for columns in (NAME_COLUMNS, OTHER_COLUMNS)]
    return found[0], found[1]


def _first(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> list[str]:
    column = next((column for column in columns if rows and column in rows[0]), None)
    return [] if column is None else [row[column].strip() for row in rows]
