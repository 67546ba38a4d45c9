"""Shards: indexed once, read anywhere, as webdataset would read them."""

import os
import pickle
import tarfile

import numpy as np
import pytest
import webdataset

from collimate.data import CorruptSample, ShardSource
from collimate.data.shards import INDEX_SUFFIX, ShardIndex, expand, index_tar, read_class_names, shard_index


def test_samples_are_what_was_written(shards, jpeg):
    source = ShardSource(shards(4, 3), name="mine")
    assert len(source) == 7
    assert source.counts.tolist() == [4, 3]
    sample = source.read(5)
    assert sample["jpg"] == jpeg(5)
    assert sample["txt"] == b"caption 5"
    assert (sample["__key__"], sample["__source__"]) == ("00005", "mine")
    with pytest.raises(IndexError):
        source.read(7)


def test_agrees_with_webdataset(shared_data):
    pattern = str(shared_data / "images_caltech101" / "test-{000000..000001}.tar")
    source = ShardSource(pattern)
    theirs = list(webdataset.WebDataset(pattern, shardshuffle=False))
    assert len(source) == len(theirs) == 600
    for place, sample in enumerate(theirs):
        ours = source.read(place)
        assert ours["__key__"] == sample["__key__"]
        assert {k: v for k, v in ours.items() if k[0] != "_"} == {k: v for k, v in sample.items() if k[0] != "_"}
    assert len(source.class_names) == 60
    assert source.class_names[14] == "cougar"


def test_reads_what_webdataset_writes(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write({"__key__": "dir.x/one", "json": {"a": 1}, "cls": 3, "captions.json": ["x"], "emb.npy": np.arange(3)})
    sample = ShardSource(tmp_path / "a.tar").read(0)
    assert sample["__key__"] == "dir.x/one"
    assert sample["cls"] == b"3"
    assert set(sample) >= {"json", "captions.json", "emb.npy"}


def test_members_that_are_no_samples_are_passed_over(tmp_path, write_tar):
    members = [("__meta__", b"x"), (".hidden.txt", b"x"), ("README", b"x"), ("a/b.TXT", b"yes")]
    source = ShardSource(write_tar(tmp_path / "a.tar", members))
    assert [source.read(0)["__key__"], len(source)] == ["a/b", 1]
    assert source.read(0)["txt"] == b"yes"


def test_the_index_is_kept_beside_the_shard_and_made_anew_when_that_changes(shards, write_tar, monkeypatch):
    (path,) = shards(4)
    shard_index(str(path))
    assert path.with_name(path.name + INDEX_SUFFIX).is_file()
    monkeypatch.setattr("collimate.data.shards.index_tar", lambda path: pytest.fail("indexed again"))
    assert len(shard_index(str(path))) == 4
    monkeypatch.undo()
    write_tar(path, [("only.txt", b"one")])
    assert len(shard_index(str(path))) == 1


def test_a_damaged_index_is_made_anew(shards):
    (path,) = shards(4)
    for content in (b"", b"nonsense", ShardIndex(0).to_bytes([1, 2])[:-9]):
        path.with_name(path.name + INDEX_SUFFIX).write_bytes(content)
        assert len(ShardSource(path)) == 4


def test_the_index_goes_to_the_cache_where_the_folder_is_read_only(shards, cache, monkeypatch):
    (path,) = shards(4)

    def refuse(place, data):
        if place.parent == path.parent:
            raise PermissionError(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    monkeypatch.setattr("collimate.data.shards.write_atomically", refuse)
    assert len(ShardSource(path)) == 4
    assert len(list((cache / "index").iterdir())) == 1
    monkeypatch.setattr("collimate.data.shards.index_tar", lambda path: pytest.fail("indexed again"))
    assert len(ShardSource(path)) == 4


def test_the_index_survives_a_round_trip(shards):
    (path,) = shards(5)
    index = index_tar(str(path))
    again = ShardIndex.from_bytes(index.to_bytes([3, 4]), [3, 4])
    assert ShardIndex.from_bytes(index.to_bytes([3, 4]), [3, 5]) is None
    for sample in range(5):
        assert list(again.members(sample)) == list(index.members(sample))
        assert again.key(sample) == index.key(sample)


def test_checksums(shards):
    import hashlib

    (path,) = shards(2)
    assert shard_index(str(path)).sha256 is None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert shard_index(str(path), checksum=True).sha256 == digest
    assert ShardSource(path).checksums() == {str(path): digest}


def test_patterns(shards, tmp_path):
    paths = [str(path) for path in shards(1, 1, 1)]
    folder = tmp_path / "shards"
    assert expand(f"{folder}/{{000000..000002}}.tar") == paths
    assert expand(f"{folder}/*.tar") == expand(folder) == expand(paths) == paths
    assert expand([f"{folder}/000001.tar", f"{folder}/00000[02].tar"]) == [paths[1], paths[0], paths[2]]
    with pytest.raises(FileNotFoundError, match="No shards match"):
        expand(f"{folder}/*.tgz")
    with pytest.raises(FileNotFoundError):
        expand(tmp_path)


def test_pickled_sources_read_on(shards):
    source = ShardSource(shards(4, 3))
    before = source.read(6)
    assert pickle.loads(pickle.dumps(source)).read(6) == before


def test_few_files_are_open_at_a_time(shards, monkeypatch):
    monkeypatch.setattr("collimate.data.files.MAX_OPEN_FILES", 3)
    source = ShardSource(shards(*[1] * 12))
    before = len(os.listdir("/proc/self/fd"))
    for index in range(12):
        source.read(index)
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_a_shard_that_changes_while_in_use_is_noticed(shards):
    one, two, three = shards(4, 4, 4)
    source = ShardSource([one, two, three])
    source.read(0)
    os.truncate(one, 1000)
    with pytest.raises(CorruptSample, match="shorter than its index"):
        source.read(3)
    os.truncate(two, two.stat().st_size // 2)
    with pytest.raises(CorruptSample, match="changed since"):
        source.read(4)
    three.unlink()
    with pytest.raises(CorruptSample, match="shard missing"):
        source.read(8)


def test_one_sample_may_lie_apart(tmp_path, write_tar):
    source = ShardSource(
        write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), ("b.txt", b"4")])
    )
    assert [source.read(place)["txt"] for place in range(2)] == [b"3", b"4"]


def test_long_and_foreign_names(tmp_path):
    name = "ü" * 150
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo(f"{name}.txt"))
    assert ShardSource(tmp_path / "a.tar").read(0)["__key__"] == name


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ('["a", "b"]', ["a", "b"]),
        ('{"classes": ["a", "b"]}', ["a", "b"]),
        ('{"classes": ["a", "b"], "prompt_names": ["an a", "a b"]}', ["an a", "a b"]),
        ('{"classes": ["a", "b"], "names": {"b": "bee"}}', ["a", "bee"]),
        ('{"else": 1}', None),
    ],
)
def test_class_names(tmp_path, content, names):
    (tmp_path / "classes.json").write_text(content)
    assert read_class_names(tmp_path / "classes.json") == names
