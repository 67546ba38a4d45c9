"""Shards: WebDataset tar files with an index, read at any place.

The index is one pass over the tar headers, kept beside the shard (or in the cache where that is read-only).
Members are grouped as WebDataset groups them: the name up to the first dot is the sample, the rest its key.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand

from collimate.data.files import FileReader, cache_folder, write_atomically
from collimate.data.order import ShardOrder
from collimate.data.remote import RemoteFiles, is_remote
from collimate.data.source import CorruptSample, Sample, Source

log = logging.getLogger(__name__)

INDEX_SUFFIX = ".index.npz"
FORMAT = 1
_MEMBER = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")  # webdataset's rule: up to the first dot of the file name


class ShardSource(Source):
    """Samples of tar shards, local or at any URL that fsspec opens.

    Args:
        urls: a path or URL, with braces (`{000000..000012}.tar`) or wildcards; a folder; or a list of these.
        name: what reports call it; the first URL if None.
        lanes: ranges of the shards that are read side by side, see `ShardOrder`. With a multiple of the number of
            ranks, each rank opens (or downloads) its own part of the shards only.
        shuffle_window: samples that are shuffled together.
        max_bad_rate: the share of shards that may be damaged or missing. What can be read of a truncated shard
            still serves.
        cache_size: bytes of downloaded shards to keep, for URLs.

    Raises:
        FileNotFoundError: the pattern matches nothing.
        BadShards: more shards are bad than `max_bad_rate` allows.
    """

    def __init__(
        self,
        urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        name: str | None = None,
        lanes: int = 1,
        shuffle_window: int = 8192,
        max_bad_rate: float = 0.01,
        cache_size: int = 100 * 2**30,
    ) -> None:
        self.urls = expand(urls)
        self.name = name or str(urls if isinstance(urls, str | os.PathLike) else self.urls[0])
        self.lanes, self.shuffle_window = lanes, shuffle_window
        self._remote = RemoteFiles(size=cache_size) if any(map(is_remote, self.urls)) else None
        self.is_remote = self._remote is not None
        self._files = FileReader()
        self.bad: dict[str, str] = {}
        counts = []
        for url in self.urls:
            try:
                index = self._index(url)
            except BadShard as error:
                self.bad[url] = error.reason
                counts.append(0)
                continue
            if index.problem:
                self.bad[url] = index.problem
            counts.append(len(index))
        self.counts = np.array(counts, dtype=np.int64)
        self._ends = np.cumsum(self.counts)
        self._indexes = lru_cache(maxsize=256)(self._index)
        if self.bad:
            message = _describe(self.bad, len(self.urls))
            if len(self.bad) > max_bad_rate * len(self.urls):
                raise BadShards(
                    f"{message}\nMore than max_bad_rate={max_bad_rate:g} of the shards are bad. Make them anew, or "
                    "raise max_bad_rate to train on what can be read."
                )
            log.warning(message)
        self.class_names = _class_names(self.urls[0])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, ({k: v for k, v in self.__dict__.items() if k != "_indexes"},)

    def read(self, index: int) -> Sample:
        return self._read(index)

    def peek(self, index: int, keys: Sequence[str]) -> Sample:
        return self._read(index, keys)

    def _read(self, index: int, keys: Sequence[str] | None = None) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"Sample {index} of {len(self)} in {self.name}.")
        shard = self.shard_of(index)
        url = self.urls[shard]
        try:
            members = self._indexes(url)
        except BadShard as error:
            raise CorruptSample(url, f"shard {error.reason}") from None
        if len(members) != self.counts[shard]:
            raise CorruptSample(url, "the shard has changed since the source was opened")
        within = index - int(self._ends[shard] - self.counts[shard])
        path = self._local(url)
        sample: Sample = {"__key__": members.key(within), "__source__": self.name, "__url__": url}
        if problem := members.problem_of(within):
            raise CorruptSample(f"{url}: {sample['__key__']}", problem)
        for extension, offset, size in members.members(within):
            if keys is not None and extension not in keys:
                continue
            try:
                data = self._files.read(path, offset, size)
            except OSError as error:
                raise CorruptSample(url, "unreadable shard", str(error)) from None
            if len(data) < size:
                raise CorruptSample(f"{url}: {sample['__key__']}.{extension}", "the shard is shorter than its index")
            sample[extension] = data
        return sample

    def size_of(self, index: int) -> int:
        """The bytes of a sample, as the index has them: a measure of its length that costs no reading."""
        shard = self.shard_of(index)
        within = index - int(self._ends[shard] - self.counts[shard])
        return sum(size for _, _, size in self._indexes(self.urls[shard]).members(within))

    def order(self, seed: int, epoch: int) -> ShardOrder:
        return ShardOrder(self.counts.tolist(), seed, epoch, self.lanes, self.shuffle_window)

    def shard_of(self, index: int) -> int:
        """Which shard, by number, a sample lies in."""
        return int(np.searchsorted(self._ends, index, side="right"))

    def prefetch(self, indices: Sequence[int]) -> None:
        """Start downloading the shards of these samples, in the background."""
        if self._remote is not None:
            shards = {self.shard_of(index) for index in indices}
            self._remote.prefetch([self.urls[shard] for shard in sorted(shards) if is_remote(self.urls[shard])])

    def checksums(self) -> dict[str, str | None]:
        """URL -> SHA-256 of each readable shard, where its index has one."""
        return {url: self._index(url).sha256 for url in self.urls if url not in self.bad}

    def _index(self, url: str) -> ShardIndex:
        return remote_index(url, self._remote) if self._remote and is_remote(url) else shard_index(url)

    def _local(self, url: str) -> str:
        return self._remote.local(url) if self._remote and is_remote(url) else url


class BadShard(Exception):
    """A shard of which nothing can be read."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}")
        self.url, self.reason = url, reason


class BadShards(ValueError):
    """Too many of the shards are bad."""


def expand(urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """The shards that a pattern, a folder or a list of them names, in order.

    Raises:
        FileNotFoundError: a folder or pattern without shards. A plain name that does not exist is returned: whether
            one missing shard of many stops a run is for `max_bad_rate` to say.
    """
    if not isinstance(urls, str | os.PathLike):
        return [url for pattern in urls for url in expand(pattern)]
    found: list[str] = []
    for pattern in braceexpand(os.fspath(urls)):
        if is_remote(pattern):
            found += RemoteFiles.glob(pattern) if "*" in pattern else [pattern]
            continue
        if os.path.isdir(pattern):
            pattern = os.path.join(glob.escape(pattern), "*.tar")
        matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        if not matches:
            raise FileNotFoundError(f"No shards match {pattern!r}.")
        found += matches
    if not found:
        raise FileNotFoundError(f"No shards match {os.fspath(urls)!r}.")
    return found


# The index ------------------------------------------------------------------------------------------------------


@dataclass
class ShardIndex:
    """Where each member of a shard lies.

    Attributes:
        size: of the shard, in bytes.
        problem: why the shard counts as bad although some of it can be read, or "".
        sha256: of the shard, if it was asked for.
        keys: the samples' names.
        first: (samples + 1,) int64: the first member of each sample.
        extension, offset, length: of each member; extensions by number in `extensions`.
        corrupt: sample -> why it cannot be used.
    """

    size: int
    problem: str = ""
    sha256: str | None = None
    keys: list[str] = field(default_factory=list)
    first: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    extension: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    offset: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    length: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    extensions: list[str] = field(default_factory=list)
    corrupt: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, sample: int) -> str:
        return self.keys[sample]

    def problem_of(self, sample: int) -> str | None:
        return self.corrupt.get(sample)

    def members(self, sample: int) -> Iterator[tuple[str, int, int]]:
        """(extension, offset, length) of each member of a sample."""
        for member in range(int(self.first[sample]), int(self.first[sample + 1])):
            yield self.extensions[self.extension[member]], int(self.offset[member]), int(self.length[member])

    def to_bytes(self, stamp: Sequence[int]) -> bytes:
        """As an .npz file; `stamp` is what must agree for it to be used again."""
        meta = {
            "format": FORMAT,
            "stamp": list(stamp),
            "size": self.size,
            "problem": self.problem,
            "sha256": self.sha256,
            "samples": len(self),
            "keys": self.keys,
            "extensions": self.extensions,
            "corrupt": self.corrupt,
        }
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
            first=self.first,
            extension=self.extension,
            offset=self.offset,
            length=self.length,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, stamp: Sequence[int] | None = None) -> ShardIndex | None:
        """What `to_bytes` wrote; None if it is damaged, of another format or of another stamp."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                meta = json.loads(arrays["meta"].tobytes())
                if meta["format"] != FORMAT or (stamp is not None and meta["stamp"] != list(stamp)):
                    return None
                return cls(
                    meta["size"],
                    meta["problem"],
                    meta["sha256"],
                    meta["keys"],
                    arrays["first"],
                    arrays["extension"],
                    arrays["offset"],
                    arrays["length"],
                    meta["extensions"],
                    {int(sample): reason for sample, reason in meta["corrupt"].items()},
                )
        except Exception:  # of whatever kind the damage is, the remedy is to index anew
            return None


def shard_index(path: str, checksum: bool = False, report: Callable[[int], None] | None = None) -> ShardIndex:
    """The index of a local shard, from beside it where it is still valid, else made anew and kept.

    Args:
        checksum: have a SHA-256 of the shard in it.
        report: told the bytes of the shard, once it is done.

    Raises:
        BadShard: it is missing, empty or no tar file.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise BadShard(path, "missing" if isinstance(error, FileNotFoundError) else str(error.strerror)) from None
    stamp = (status.st_size, status.st_mtime_ns)
    places = [Path(path + INDEX_SUFFIX), _cached_index(path)]
    for place in places:
        if place.is_file():
            index = ShardIndex.from_bytes(place.read_bytes(), stamp)
            if index is not None and (index.sha256 or not checksum):
                return index
    index = index_tar(path)
    if checksum:
        with open(path, "rb") as file:
            index.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    for place in places:
        try:
            write_atomically(place, index.to_bytes(stamp))
            break
        except OSError:  # a read-only folder: the cache is next; and where that cannot be written, nothing is kept
            continue
    if report:
        report(status.st_size)
    return index


def remote_index(url: str, remote: RemoteFiles) -> ShardIndex:
    """The index of a shard at a URL: its own index file where there is one, else by downloading the shard."""
    index_file = remote.try_local(url + INDEX_SUFFIX)
    if index_file is not None:
        index = ShardIndex.from_bytes(Path(index_file).read_bytes())
        if index is not None:
            return index
    try:
        return shard_index(remote.local(url))
    except FileNotFoundError:
        raise BadShard(url, "missing") from None
    except BadShard as error:
        raise BadShard(url, error.reason) from None


def index_tar(path: str) -> ShardIndex:
    """One pass over the headers of a tar file.

    Raises:
        BadShard: it is empty or no tar file.
    """
    size = os.path.getsize(path)
    if size == 0:
        raise BadShard(path, "empty file")
    samples: dict[str, list[tuple[str, int, int]]] = {}
    corrupt: dict[str, str] = {}
    problem = ""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                parts = _MEMBER.match(member.name)
                if not member.isreg() or parts is None:
                    continue
                key, extension = parts.group(1), parts.group(2).lower()
                if member.offset_data + member.size > size:
                    problem = "truncated"
                    samples.pop(key, None)  # what came before of the same sample is not enough
                    break
                members = samples.setdefault(key, [])
                if key.startswith("/") or ".." in key.split("/"):
                    corrupt[key] = "unsafe member name: expected one without .. and without / in front"
                if any(extension == other for other, _, _ in members):
                    corrupt[key] = "two members of one name: expected one file for each key of a sample"
                members.append((extension, member.offset_data, member.size))
            end = tar.offset
    except tarfile.ReadError as error:
        if not samples:
            raise BadShard(path, f"no tar file ({error})") from None
        problem = "truncated"
    else:
        if not problem and end + tarfile.BLOCKSIZE > size:
            problem = "truncated"  # no end-of-archive block: cut off just between two members
    if not samples:
        raise BadShard(path, problem or "no samples")
    extensions = sorted({extension for members in samples.values() for extension, _, _ in members})
    number = {extension: place for place, extension in enumerate(extensions)}
    every = [member for members in samples.values() for member in members]
    return ShardIndex(
        size=size,
        problem=problem,
        keys=list(samples),
        first=np.cumsum([0, *map(len, samples.values())], dtype=np.int64),
        extension=np.array([number[extension] for extension, _, _ in every], np.int32),
        offset=np.array([offset for _, offset, _ in every], np.int64),
        length=np.array([length for _, _, length in every], np.int64),
        extensions=extensions,
        corrupt={place: corrupt[key] for place, key in enumerate(samples) if key in corrupt},
    )


def _cached_index(path: str) -> Path:
    name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:32]
    return cache_folder() / "index" / f"{name}{INDEX_SUFFIX}"


def _class_names(url: str) -> list[str] | None:
    """What a `classes.json` beside the shards says."""
    path = Path(url).parent / "classes.json"
    if is_remote(url) or not path.is_file():
        return None
    return read_class_names(path)


def read_class_names(path: Path) -> list[str] | None:
    """Class names of a `classes.json`: a list, or a mapping with `prompt_names`, `names` or `classes`.

    Each of these is a list in the order of the class numbers, or a mapping to names from classes or numbers.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, list):
        return [str(name) for name in content]
    classes = content.get("classes")
    for key in ("prompt_names", "names", "classes"):
        names = content.get(key)
        if isinstance(names, list):
            return [str(name) for name in names]
        if isinstance(names, dict) and isinstance(classes, list):
            return [str(names.get(name, name)) for name in classes]
    return None


def _describe(bad: dict[str, str], total: int) -> str:
    shown = [f"  {url}: {reason}" for url, reason in list(bad.items())[:10]]
    more = [f"  and {len(bad) - 10} more"] if len(bad) > 10 else []
    return "\n".join([f"{len(bad)} of {total} shards are bad:", *shown, *more])


def _unpickled(state: dict[str, Any]) -> ShardSource:
    source = object.__new__(ShardSource)
    source.__dict__.update(state)
    source._indexes = lru_cache(maxsize=256)(source._index)
    return source
