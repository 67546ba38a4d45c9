"""Shards at URLs: whole downloads to a bounded cache, with retries."""

import os
import time
from multiprocessing import get_context
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from collimate.data import ShardSource
from collimate.data.remote import RemoteFiles
from collimate.data.shards import INDEX_SUFFIX, BadShards, shard_index


class Flaky(MemoryFileSystem):
    """Fails every file's first opens, then hands out a short one, then works."""

    protocol = "flaky"
    store: dict = {}  # noqa: RUF012 - fsspec's own way: one store for all instances
    pseudo_dirs = [""]  # noqa: RUF012
    failures = 0
    opened = 0

    def _open(self, path, mode="rb", **options):
        if mode == "rb":
            Flaky.opened += 1
            if Flaky.opened <= Flaky.failures:
                raise ConnectionError("the network is down")
        return super()._open(path, mode, **options)


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture
def bucket(shards):
    """Three shards at memory://, without indexes."""
    filesystem = fsspec.filesystem("memory")
    for path in shards(3, 2, 4):
        filesystem.pipe(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket"
    filesystem.rm("/bucket", recursive=True)


def test_reads_from_a_url(bucket, jpeg):
    source = ShardSource(f"{bucket}/{{000000..000002}}.tar")
    assert source.counts.tolist() == [3, 2, 4]
    assert source.read(4)["jpg"] == jpeg(4)
    assert len(ShardSource(f"{bucket}/*.tar")) == 9


def test_an_index_at_the_url_saves_the_download(bucket, shards, cache):
    filesystem = fsspec.filesystem("memory")
    for path in shards(3, 2, 4):
        shard_index(str(path))
        filesystem.pipe(f"/bucket/{path.name}{INDEX_SUFFIX}", path.with_name(path.name + INDEX_SUFFIX).read_bytes())
    source = ShardSource(f"{bucket}/{{000000..000002}}.tar")
    assert len(source) == 9
    kept = [path.name for path in (cache / "shards").iterdir()]
    assert not [name for name in kept if name.endswith(".tar")]
    source.read(0)
    assert len([path for path in (cache / "shards").iterdir() if path.name.endswith(".tar")]) == 1


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_retries(tmp_path, failures, monkeypatch):
    pauses = []
    monkeypatch.setattr("collimate.data.remote.time.sleep", pauses.append)
    fsspec.filesystem("flaky").pipe("flaky://a/x.tar", b"content")
    Flaky.failures, Flaky.opened = failures, 0
    path = RemoteFiles(str(tmp_path), attempts=4, wait=1.0).local("flaky://a/x.tar")
    assert Path(path).read_bytes() == b"content"
    assert len(pauses) == failures
    for place, pause in enumerate(pauses):
        assert 2**place <= pause <= 1.5 * 2**place


def test_giving_up_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("collimate.data.remote.time.sleep", lambda _: None)
    fsspec.filesystem("flaky").pipe("flaky://a/x.tar", b"content")
    Flaky.failures, Flaky.opened = 99, 0
    with pytest.raises(OSError, match=r"flaky://a/x.tar: 3 attempts .* the network is down"):
        RemoteFiles(str(tmp_path), attempts=3).local("flaky://a/x.tar")
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_short_download_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("collimate.data.remote.time.sleep", lambda _: None)
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/short/x.tar", b"content")
    sizes = iter([99, 7])
    info = type(filesystem).info
    monkeypatch.setattr(type(filesystem), "info", lambda self, path, **k: {**info(self, path), "size": next(sizes)})
    path = RemoteFiles(str(tmp_path)).local("memory://short/x.tar")
    assert Path(path).read_bytes() == b"content"
    assert next(sizes, None) is None


def test_missing_remote_shards_are_bad_shards(bucket):
    with pytest.raises(BadShards, match="missing"):
        ShardSource(f"{bucket}/{{000000..000003}}.tar")
    assert len(ShardSource(f"{bucket}/{{000000..000003}}.tar", max_bad_rate=0.3)) == 9


def test_the_cache_is_bounded_and_the_oldest_goes_first(tmp_path):
    filesystem = fsspec.filesystem("memory")
    remote = RemoteFiles(str(tmp_path), size=250)
    for number in range(3):
        filesystem.pipe(f"/many/{number}.tar", bytes(100))
    for number in range(2):
        os.utime(remote.local(f"memory://many/{number}.tar"), (number, number))
    remote.local("memory://many/0.tar")  # used again, so 1 is the oldest
    remote.local("memory://many/2.tar")
    assert [remote.path(f"memory://many/{number}.tar").exists() for number in range(3)] == [True, False, True]


def test_prefetch(tmp_path):
    fsspec.filesystem("memory").pipe("/ahead/0.tar", b"x")
    remote = RemoteFiles(str(tmp_path))
    remote.prefetch(["memory://ahead/0.tar", "memory://ahead/missing.tar"])
    deadline = time.monotonic() + 5
    while not remote.path("memory://ahead/0.tar").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stream_fetches_the_shards_of_the_next_window(bucket, processors, monkeypatch):
    from collimate.data import Mixture, TrainingPreparation, TrainLoader

    source = ShardSource(f"{bucket}/{{000000..000002}}.tar", shuffle_window=3)
    asked = []
    monkeypatch.setattr(source._remote, "prefetch", asked.extend)
    next(TrainLoader(Mixture([source]), TrainingPreparation(processors), batch_size=2))
    order = source.order(0, 0)
    assert asked == sorted({source.urls[source.shard_of(order[position + 3])] for position in range(2)})


def _fetch(folder: str, url: str) -> bytes:
    with open(RemoteFiles(folder).local(url), "rb") as file:
        return file.read()


def test_processes_share_one_download(tmp_path):
    origin = tmp_path / "origin.tar"
    origin.write_bytes(bytes(range(256)) * 1000)
    with get_context("fork").Pool(4) as pool:
        found = pool.starmap(_fetch, [(str(tmp_path / "cache"), f"file://{origin}")] * 8)
    assert all(content == origin.read_bytes() for content in found)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]) == 1
