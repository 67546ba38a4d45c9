"""`collimate data`: make, index, inspect and check data sets."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from collimate.data.captions import listed
from collimate.data.decoding import (
    IMAGES,
    Undecodable,
    check_bytes,
    decode,
    extensions_of,
    keys_of,
    load_decoders,
    naming,
    value_of,
)
from collimate.data.files import naming_file, write_atomically
from collimate.data.opening import names_shards, open_source
from collimate.data.order import Permutation
from collimate.data.regions import REGIONS, regions_of
from collimate.data.shards import BadShard, ShardIndex, ShardSource, expand, shard_index
from collimate.data.source import CorruptSample, Sample, Source, class_names

T = TypeVar("T")
console = Console()

MANIFEST = "shards.json"


def shard(
    input: str,
    output: str,
    samples_per_shard: int = 10_000,
    max_bytes: int = 2**30,
    shuffle: bool = True,
    seed: int = 0,
    limit: int | None = None,
) -> None:
    """Write shards from a folder, a table or any other source, with their index and checksums beside them.

    A shard appears under its name only when it is whole. Run the same command again after an interruption: finished
    shards are kept. Samples that cannot be read are left out and counted.

    Args:
        input: what to read: a folder, a table, `world:train`, ... (see `collimate data inspect`).
        output: the folder of the shards.
        samples_per_shard: at most so many samples a shard.
        max_bytes: at most so many bytes of samples a shard.
        shuffle: write in random order. Training shuffles windows of samples only, so sorted shards learn badly.
        seed: of that order.
        limit: the first so many samples of the order; all if not given.
    """
    write_shards(open_source(input), output, {"input": input}, samples_per_shard, max_bytes, shuffle, seed, limit)


def write_shards(
    source: Source,
    output: str,
    plan: dict[str, Any],
    samples_per_shard: int = 10_000,
    max_bytes: int = 2**30,
    shuffle: bool = True,
    seed: int = 0,
    limit: int | None = None,
) -> None:
    """Write a source's samples as shards, and tell what was done; `shard` for sources that no text names.

    Args:
        source: what to read.
        output: the folder of the shards.
        plan: what makes the samples what they are, as plain data, for the manifest. A run of another plan is refused.
        samples_per_shard, max_bytes, shuffle, seed, limit: as for `shard`.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    total = len(source) if limit is None else min(limit, len(source))
    plan = {
        **plan,
        "samples": len(source),
        "samples_per_shard": samples_per_shard,
        "max_bytes": max_bytes,
        "shuffle": shuffle,
        "seed": seed,
    }
    state = resumed(folder, plan)
    finished: list[dict[str, Any]] = state["shards"]
    corrupt: dict[str, int] = state["corrupt"]
    write_class_names(source, folder)
    order = Permutation(len(source), seed) if shuffle else range(len(source))
    with progress_bar() as progress:
        task = progress.add_task("Writing shards", total=total, completed=sum(each["taken"] for each in finished))
        while (done := sum(each["taken"] for each in finished)) < total:
            path = folder / f"{len(finished):06d}.tar"
            places = range(done, min(total, done + samples_per_shard))
            samples = _numbered(readable(source, [order[place] for place in places]), done)
            finished.append(write_shard(path, samples, max_bytes, corrupt, lambda: progress.advance(task)))
            write_atomically(folder / MANIFEST, json.dumps({**plan, **state}, indent=1).encode())
    written = sum(each["samples"] for each in finished)
    console.print(f"{written} samples in {sum(bool(each['samples']) for each in finished)} shards in {folder}/.")
    for reason, count in sorted(corrupt.items()):
        console.print(f"Left out: {count} x {reason}.")


def index(shards: str, checksum: bool = True, workers: int = 2) -> None:
    """Index shards: counts, sizes, checksums. The index lies beside each shard, so that training starts at once.

    Args:
        shards: a folder or pattern of shards.
        checksum: compute the SHA-256 of each shard too.
        workers: processes.
    """
    paths = expand(shards)
    table = Table("shard", "samples", "MiB", "sha256", "trouble")
    bad = samples = size = 0
    with ProcessPoolExecutor(workers) as pool, progress_bar() as progress:
        jobs = pool.map(_index_one, paths, [checksum] * len(paths))
        for path, found in zip(paths, progress.track(jobs, total=len(paths), description="Indexing"), strict=True):
            if isinstance(found, str):
                table.add_row(path, "0", "", "", found)
                bad += 1
                continue
            table.add_row(path, str(len(found)), f"{found.size / 2**20:.1f}", (found.sha256 or "")[:16], found.problem)
            bad += bool(found.problem)
            samples += len(found)
            size += found.size
    console.print(table)
    console.print(f"{samples} samples, {size / 2**20:.1f} MiB, {len(paths)} shards, of which {bad} are bad.")
    if bad:
        raise SystemExit(1)


def inspect(data: str, limit: int = 10_000, show: int = 3) -> None:
    """Show counts, keys, sizes, caption lengths and a few samples.

    Args:
        data: what to look at: a folder, a table, a pattern of shards, `world:train`, ...
        limit: look at so many samples, spread evenly.
        show: print so many of them.
    """
    source = open_source(data)
    indices = _spread(len(source), limit)
    sizes: dict[str, list[int]] = defaultdict(list)
    pixels, words = [], []
    corrupt: Counter[str] = Counter()
    shown = []
    with progress_bar() as progress:
        for place in progress.track(indices, description="Reading"):
            try:
                sample = source.read(place)
                for key in keys_of(sample):
                    sizes[key].append(_size(sample[key]))
                if any(key in sample for key in IMAGES):
                    pixels.append(_image_size(value_of(sample, IMAGES)))
                if any(key in sample for key in extensions_of("text")):
                    captions = listed(value_of(sample, extensions_of("text")))
                    words += [len(caption.text.split()) for caption in captions]
            except (CorruptSample, Undecodable) as error:
                corrupt[error.reason] += 1
                continue
            if len(shown) < show:
                shown.append(sample)
    console.print(f"[bold]{source.name}[/]: {len(source)} samples; looked at {len(indices)}.")
    if isinstance(source, ShardSource):
        console.print(f"{len(source.urls)} shards of {source.counts.min()} to {source.counts.max()} samples.")
    if names := class_names(source):
        console.print(f"{len(names)} classes: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}")
    table = Table("key", "in samples", "median bytes", "largest")
    for key, found in sorted(sizes.items()):
        table.add_row(key, f"{len(found) / len(indices):.1%}", f"{np.median(found):.0f}", str(max(found)))
    console.print(table)
    if pixels:
        widths, heights = np.array(pixels).T
        console.print(
            f"Pictures: {widths.min()}-{widths.max()} pixels wide (median {np.median(widths):.0f}), "
            f"{heights.min()}-{heights.max()} high (median {np.median(heights):.0f})."
        )
    if words:
        _histogram("words a caption", words)
    for sample in shown:
        console.print(_summary(sample), markup=False)
    for reason, count in corrupt.most_common():
        console.print(f"[red]Corrupt: {count} x {reason}[/]; `collimate data verify` names them.")


def verify(data: str, workers: int = 2, limit: int | None = None, report: str | None = None) -> None:
    """Decode everything and list what is damaged, with reasons. The exit status is 1 if anything is.

    Args:
        data: what to check.
        workers: processes.
        limit: check so many samples, spread evenly; all if not given.
        report: write the list there too, as JSON.
    """
    load_decoders()
    source = open_source(data, **({"max_bad_rate": 1.0} if names_shards(data) else {}))  # report bad shards, go on
    bad_shards = source.bad if isinstance(source, ShardSource) else {}
    indices = _spread(len(source), limit or len(source))
    parts = [indices[start : start + 64] for start in range(0, len(indices), 64)]
    bad: list[tuple[str, str, str]] = []
    with ProcessPoolExecutor(workers, initializer=_open_once, initargs=(source,)) as pool, progress_bar() as progress:
        for found in progress.track(pool.map(_check, parts), total=len(parts), description="Decoding"):
            bad += found
    for url, reason in bad_shards.items():
        console.print(f"{url}: {reason}", markup=False)
    for where, reason, detail in bad:
        console.print(f"{where}: {reason}" + (f" ({detail})" if detail else ""), markup=False)
    if report:
        content = {
            "shards": bad_shards,
            "samples": [dict(zip(("where", "reason", "detail"), b, strict=True)) for b in bad],
        }
        write_atomically(Path(report), json.dumps(content, indent=1).encode())
    console.print(f"{len(indices)} samples checked: {len(bad)} are corrupt; {len(bad_shards)} shards are bad.")
    for reason, count in Counter(reason for _, reason, _ in bad).most_common():
        console.print(f"  {count} x {reason}")
    if bad or bad_shards:
        console.print("Make them anew, or leave them out; training passes over them up to data.max_corrupt_rate.")
        raise SystemExit(1)


def balance(data: str, ranks: int = 8, workers: int = 4, batch_size: int = 256) -> None:
    """Show what each rank and worker will read in an epoch.

    Args:
        data: what to train on.
        ranks: processes of the run.
        workers: loading processes of each rank.
        batch_size: samples of each rank in a step.
    """
    source = open_source(data)
    size, stride = len(source), ranks * batch_size
    steps, rest = divmod(size, stride)
    table = Table(
        "rank", "samples", "steps", "batches of each worker", *(["shards"] if isinstance(source, ShardSource) else [])
    )
    order = source.order(0, 0)
    for rank in range(ranks):
        samples = len(range(rank, size, ranks))
        by_worker = [len(range(worker, steps, max(workers, 1))) for worker in range(max(workers, 1))]
        row = [str(rank), str(samples), str(steps), " ".join(map(str, by_worker))]
        if isinstance(source, ShardSource):
            places = range(rank, size, ranks)
            read = {source.shard_of(order[places[place]]) for place in _spread(len(places), 5_000)}
            row.append(f"{len(read)} of {len(source.urls)}")
        table.add_row(*row)
    console.print(table)
    console.print(
        f"{size} samples; {stride} a step; {steps} whole steps an epoch. The {rest} that are left begin the next step, "
        "which the next epoch's first samples fill up: no rank waits, and no sample is lost or repeated."
    )
    if isinstance(source, ShardSource) and ranks > 1 and source.lanes % ranks:
        console.print(
            f"Every rank reads from nearly all shards. With lanes={ranks} (`?lanes={ranks}`) each would read its own "
            "part, which matters when shards are downloaded."
        )


# Writing --------------------------------------------------------------------------------------------------------


def write_shard(
    path: Path,
    samples: Iterable[Sample | CorruptSample],
    max_bytes: float,
    corrupt: dict[str, int],
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Write one shard, which appears under its name only when it is whole, and its index beside it.

    Args:
        path: of the shard.
        samples: each under its `__key__`; what is corrupt is left out, and counted in `corrupt` by its reason.
        max_bytes: no further sample is taken after so many.
        advance: called for each sample taken.

    Returns:
        the shard's entry in the manifest: its file, how many samples were written and taken, its checksum.
    """
    from webdataset.writer import TarWriter

    partial = path.with_name(f".{path.name}.partial")
    written = taken = size = 0
    # no time stamps: equal input, equal checksum
    with naming_file(path), open(partial, "wb") as file, TarWriter(file, mtime=0.0) as tar:
        for sample in samples:
            if size >= max_bytes:
                break
            advance()
            taken += 1
            if isinstance(sample, CorruptSample):
                corrupt[sample.reason] = corrupt.get(sample.reason, 0) + 1
                continue
            size += tar.write({"__key__": sample["__key__"], **{key: sample[key] for key in keys_of(sample)}})
            written += 1
        tar.close()
        file.flush()
        os.fsync(file.fileno())
    entry = {"file": path.name, "samples": written, "taken": taken}
    if written:
        os.replace(partial, path)
        entry["sha256"] = shard_index(str(path), checksum=True).sha256
    else:
        partial.unlink()
    return entry


def readable(source: Source, indices: Iterable[int]) -> Iterator[Sample | CorruptSample]:
    """The samples at these places; for one that cannot be read, what says why."""
    for place in indices:
        try:
            yield source.read(place)
        except CorruptSample as error:
            yield error


def _numbered(samples: Iterable[Sample | CorruptSample], first: int) -> Iterator[Sample | CorruptSample]:
    """Samples named by their place: the names of any source would not do for a tar file."""
    for number, sample in enumerate(samples, first):
        yield sample if isinstance(sample, CorruptSample) else {**sample, "__key__": f"{number:09d}"}


def write_class_names(source: Source, folder: Path) -> None:
    """What a source knows of its classes, where its shards' source will look for it."""
    names = class_names(source)
    if names is not None:
        write_atomically(folder / "classes.json", json.dumps({"classes": names}, indent=1).encode())


def resumed(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The manifest, without its plan, of an interrupted run of the same plan; else an empty one.

    Raises:
        ValueError: the folder holds shards made otherwise.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if old := sorted(path.name for path in folder.glob("*.tar")):
            raise ValueError(f"{folder} holds shards already ({old[0]}, ...): choose another folder.")
        return {"shards": [], "corrupt": {}}
    state = json.loads(manifest.read_text(encoding="utf-8"))
    if changed := [key for key, value in plan.items() if state.get(key) != value]:
        raise ValueError(
            f"{folder} holds shards made otherwise: {changed[0]} was {state.get(changed[0])!r}, "
            f"now it is {plan[changed[0]]!r}. Choose another folder."
        )
    return {key: value for key, value in state.items() if key not in plan}


# Reading --------------------------------------------------------------------------------------------------------

_source: Source | None = None


def _open_once(source: Source) -> None:
    global _source
    _source = source
    load_decoders()  # a spawned process has none yet


def _check(indices: list[int]) -> list[tuple[str, str, str]]:
    """What is corrupt among these samples: (where, reason, detail)."""
    assert _source is not None
    bad = []
    for place in indices:
        try:
            sample = _source.read(place)
            for key in keys_of(sample):
                value = value_of(sample, (key,))
                with naming(sample, key):
                    if isinstance(value, Image.Image):
                        value.load()
                    elif isinstance(value, bytes):
                        check_bytes(key, value)
            if REGIONS in sample:
                value, picture = (value_of(sample, keys) for keys in ((REGIONS,), IMAGES))
                with naming(sample, REGIONS):
                    regions_of(value, _image_size(picture))
        except CorruptSample as error:
            bad.append((error.where, error.reason, error.detail))
    return bad


def _index_one(path: str, checksum: bool) -> ShardIndex | str:
    try:
        return shard_index(path, checksum)
    except BadShard as error:
        return error.reason


def _spread(total: int, limit: int) -> list[int]:
    """At most `limit` of `range(total)`, evenly spread."""
    count = min(total, limit)
    return [place * total // count for place in range(count)]


def _size(value: Any) -> int:
    return len(value) if isinstance(value, bytes | str) else getattr(value, "nbytes", len(str(value)))


def _image_size(image: Any) -> tuple[int, int]:
    """Width and height of a Pillow image or an array (H, W, C)."""
    return image.size if isinstance(image, Image.Image) else image.shape[1::-1]


def _summary(sample: Sample) -> str:
    lines = [f"{sample['__key__']}"]
    for key in keys_of(sample):
        value = sample[key]
        if isinstance(value, bytes):
            try:
                decoded = decode(key, value)
            except Undecodable as error:
                decoded = error
            value = f"{len(value)} bytes" if isinstance(decoded, bytes) else decoded
        if isinstance(value, Image.Image):
            value = f"{value.format} picture of {value.width} x {value.height} pixels"
        text = " ".join(str(value).split())
        lines.append(f"  {key}: {text if len(text) <= 100 else text[:100] + '...'}")
    return "\n".join(lines)


def _histogram(title: str, values: list[int]) -> None:
    edges = [0, 5, 10, 15, 20, 30, 50, 77, 150, 500, max(501, max(values) + 1)]
    counts, _ = np.histogram(values, edges)
    console.print(f"{title}: median {np.median(values):.0f}, longest {max(values)}")
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            bar = "█" * max(1, round(40 * count / counts.max()))
            console.print(f"  {low:>4}-{high - 1:<6} {bar} {count}")


def progress_bar() -> Progress:
    """How far a command is, and how long it will take."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
