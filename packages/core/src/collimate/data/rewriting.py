"""Shards and tables written anew, each sample with what a model adds to it: resumed, and counted.

The verbs `collimate data caption` and `collimate data regions` share it.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from collimate.data.commands import (
    MANIFEST,
    console,
    progress_bar,
    readable,
    resumed,
    write_class_names,
    write_shard,
)
from collimate.data.decoding import IMAGES, naming, value_of
from collimate.data.files import write_atomically
from collimate.data.opening import open_source
from collimate.data.shards import ShardSource
from collimate.data.source import CorruptSample, Sample, Source
from collimate.data.tables import TableSource

Precision = Literal["float32", "bfloat16", "float16"]
Change = Callable[[Sequence[Sample], "Counter[str]"], None]
"""Adds something to each of some samples, in place; those to which it adds nothing it counts by the reason."""


def rewrite(
    data: str, output: str, plan: dict[str, Any], adds: str, key: str, batch_size: int, begin: Callable[[int], Change]
) -> None:
    """Write shards, or a table, anew with their samples in their order, and tell what was done.

    A shard appears, under its old name, only when it is whole, and a table when all of it is. An interrupted run of the
    same plan goes on after the last shard, or the last rows. What cannot be read is left out of shards, and counted;
    rows of a table are all kept.

    Args:
        data: a folder or pattern of shards, or a table.
        output: the folder of the new shards; or a new table, a .jsonl file, for which `data` is a table.
        plan: what makes them what they are, as plain data, for their manifest.
        adds: what is added to a sample, in the singular.
        key: where it lies in a sample; a table has it in the column of that name without `.json`, or where it had it.
        batch_size: samples at a time.
        begin: called with the number of each shard (of each batch of a table) before it is written; gives what changes
            its samples. It is not called for what is finished, so that a model is only loaded where it is needed.

    Raises:
        ValueError: two shards have one name, the output is there already or was made otherwise, or a table was to be
            made of what is none.
    """
    if output.endswith(".jsonl"):
        _rewrite_table(data, Path(output), plan, adds, key, batch_size, begin)
    else:
        _rewrite_shards(data, Path(output), plan, adds, batch_size, begin)


def picture_of(sample: Sample) -> Image.Image:
    """A sample's picture, as RGB.

    Raises:
        CorruptSample: there is none, or it is damaged.
    """
    with naming(sample, "image"):
        return value_of(sample, IMAGES).convert("RGB")


def listed_in(sample: Sample, key: str) -> list[Any]:
    """What a sample's list under a key holds, as it is; nothing where it has none.

    Raises:
        CorruptSample: it is damaged.
    """
    found = value_of(sample, (key,)) if key in sample else []
    return found if isinstance(found, list) else [found]


# Shards and tables ---------------------------------------------------------------------------------------------


def _rewrite_shards(
    shards: str, folder: Path, plan: dict[str, Any], adds: str, batch_size: int, begin: Callable[[int], Change]
) -> None:
    source = ShardSource(shards)
    names = [Path(url).name for url in source.urls]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"Several shards are called {twice[0]}, but each is written under its own name.")
    plan = {"input": shards, "samples": len(source), **plan}
    folder.mkdir(parents=True, exist_ok=True)
    without = f"without_{adds}"
    state = {without: {}, **resumed(folder, plan)}
    finished = {each["file"]: each["taken"] for each in state["shards"]}
    write_class_names(source, folder)
    ends = source.counts.cumsum().tolist()
    with progress_bar() as progress:
        task = progress.add_task(f"Writing {adds}s", total=len(source), completed=sum(finished.values()))
        for number, (name, count, end) in enumerate(zip(names, source.counts.tolist(), ends, strict=True)):
            if name in finished or not count:
                continue
            lacking: Counter[str] = Counter()
            samples = _changed(source, range(end - count, end), batch_size, begin(number), lacking)
            entry = write_shard(folder / name, samples, math.inf, state["corrupt"], lambda: progress.advance(task))
            state[without] = dict(lacking + Counter(state[without]))
            state["shards"].append(entry)
            write_atomically(folder / MANIFEST, json.dumps({**plan, **state}, indent=1).encode())
    written = sum(each["samples"] for each in state["shards"])
    _tell(written, adds, state[without], state["corrupt"], f"{len(state['shards'])} shards in {folder}/")


def _rewrite_table(
    table: str, path: Path, plan: dict[str, Any], adds: str, key: str, batch_size: int, begin: Callable[[int], Change]
) -> None:
    source = open_source(table)
    if not isinstance(source, TableSource):
        raise ValueError(f"A table can only be made of a table, not of {table!r}: name a folder for new shards.")
    column = key.removesuffix(".json")
    if key not in source.columns and column in source.row(0):
        raise ValueError(f"The column {column!r} of {table} holds something else than a sample's {key}.")
    if path.exists():
        raise ValueError(f"{path} is there already: choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = _Rows(path, {"input": table, "samples": len(source), **plan})
    lacking = Counter(rows.state["lacking"])
    with progress_bar() as progress:
        task = progress.add_task(f"Writing {adds}s", total=len(source), completed=rows.state["rows"])
        for first in range(rows.state["rows"], len(source), batch_size):
            places = range(first, min(first + batch_size, len(source)))
            samples = list(_changed(source, places, batch_size, begin(first // batch_size), lacking))
            lacking.update(sample.reason for sample in samples if isinstance(sample, CorruptSample))
            new = [_row(source, place, sample, key, path) for place, sample in zip(places, samples, strict=True)]
            rows.append(new, dict(lacking))
            progress.advance(task, len(places))
    rows.finish()
    _tell(len(source), adds, lacking, {}, str(path))


def _row(source: TableSource, place: int, sample: Sample | CorruptSample, key: str, table: Path) -> dict[str, Any]:
    """A row of a table, for a table elsewhere, with what was added to its sample."""
    row = source.row(place)
    if file := row.get(column := source.columns.get("file", "")):
        row[column] = Path(os.path.relpath(source.path.parent / file, table.parent)).as_posix()
    column = source.columns.get(key, key.removesuffix(".json"))
    added = sample.get(key) if isinstance(sample, dict) else row.get(column)
    return {**row, column: json.loads(added) if isinstance(added, bytes) else added or None}


class _Rows:
    """The rows of a table that is being written: beside it, until it is whole."""

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path, self.plan = path, plan
        self.partial, self.notes = (path.with_name(f".{path.name}.{suffix}") for suffix in ("partial", "json"))
        self.state: dict[str, Any] = {"rows": 0, "bytes": 0, "lacking": {}}
        if self.notes.is_file():
            noted = json.loads(self.notes.read_text(encoding="utf-8"))
            if changed := [key for key, value in plan.items() if noted["plan"].get(key) != value]:
                raise ValueError(
                    f"{path} was begun otherwise: {changed[0]} was {noted['plan'].get(changed[0])!r}, now it is "
                    f"{plan[changed[0]]!r}. Choose another name, or remove {self.notes}."
                )
            self.state = noted["state"]

    def append(self, rows: Sequence[dict[str, Any]], lacking: dict[str, int]) -> None:
        """Write further rows, and note how far the table is."""
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogateescape")
        with open(self.partial, "r+b" if self.state["bytes"] else "wb") as file:
            file.seek(self.state["bytes"])  # over what was written, but not noted
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        done = {"rows": self.state["rows"] + len(rows), "bytes": self.state["bytes"] + len(data)}
        self.state = {**done, "lacking": lacking}
        write_atomically(self.notes, json.dumps({"plan": self.plan, "state": self.state}).encode())

    def finish(self) -> None:
        os.replace(self.partial, self.path)
        self.notes.unlink()


def _tell(written: int, adds: str, lacking: Mapping[str, int], corrupt: Mapping[str, int], where: str) -> None:
    console.print(f"{written - sum(lacking.values())} of {written} samples have a {adds} more, in {where}.")
    for reason, count in sorted(lacking.items()):
        console.print(f"Without {adds}: {count} x {reason}.")
    for reason, count in sorted(corrupt.items()):
        console.print(f"Left out: {count} x {reason}.")


def _changed(
    source: Source, places: Sequence[int], batch_size: int, change: Change, lacking: Counter[str]
) -> Iterator[Sample | CorruptSample]:
    """The samples at these places, in order, changed where they can be read."""
    for first in range(0, len(places), batch_size):
        samples = list(readable(source, places[first : first + batch_size]))
        change([sample for sample in samples if not isinstance(sample, CorruptSample)], lacking)
        yield from samples
