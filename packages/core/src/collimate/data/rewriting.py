"""Shards written anew, each sample with what a model adds to it: shard by shard, resumed, counted.

The verbs `collimate data caption` and `collimate data regions` share it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from collimate.data.shards import ShardSource
from collimate.data.source import CorruptSample, Sample

Precision = Literal["float32", "bfloat16", "float16"]
Change = Callable[[Sequence[Sample], "Counter[str]"], None]
"""Adds something to each of some samples, in place; those to which it adds nothing it counts by the reason."""


def rewrite(
    shards: str, output: str, plan: dict[str, Any], adds: str, batch_size: int, begin: Callable[[int], Change]
) -> None:
    """Write shards anew, under their names, with their samples in their order, and tell what was done.

    A shard appears only when it is whole, and an interrupted run of the same plan goes on after the last one. What
    cannot be read is left out, and counted.

    Args:
        shards: a folder or pattern of shards.
        output: the folder of the new ones.
        plan: what makes them what they are, as plain data, for their manifest.
        adds: what is added to a sample, in the singular.
        batch_size: samples at a time.
        begin: called with the number of each shard before it is written; gives what changes its samples. It is not
            called for finished shards, so that a model is only loaded where it is needed.

    Raises:
        ValueError: two shards have one name, or the folder holds shards made otherwise.
    """
    source, folder = ShardSource(shards), Path(output)
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
    console.print(
        f"{written - sum(state[without].values())} of {written} samples have a {adds} more, "
        f"in {len(state['shards'])} shards in {folder}/."
    )
    for reason, count in sorted(state[without].items()):
        console.print(f"Without {adds}: {count} x {reason}.")
    for reason, count in sorted(state["corrupt"].items()):
        console.print(f"Left out: {count} x {reason}.")


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


def device_named(device: str) -> str:
    """The device of a model; `auto` is the first GPU where there is one, else the CPU."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _changed(
    source: ShardSource, places: Sequence[int], batch_size: int, change: Change, lacking: Counter[str]
) -> Iterator[Sample | CorruptSample]:
    """The samples at these places, in order, changed where they can be read."""
    for first in range(0, len(places), batch_size):
        samples = list(readable(source, places[first : first + batch_size]))
        change([sample for sample in samples if not isinstance(sample, CorruptSample)], lacking)
        yield from samples
