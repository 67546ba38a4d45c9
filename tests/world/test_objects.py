"""Single objects of the world: what is drawn, what is said of it, and the source of the samples."""

from collections import Counter

import numpy as np
import pytest

from collimate.data import class_names, open_source
from collimate.data.commands import shard
from collimate_3d import read_points
from collimate_world import (
    FURNITURE,
    HELD_OUT_FURNITURE,
    HELD_OUT_OBJECTS,
    OBJECT_CLASSES,
    OBJECT_TEMPLATES,
    PAINTS,
    Furnishing,
    ObjectSource,
    object_captions,
)


def seen(source: ObjectSource, count: int = 600) -> set[int]:
    return {OBJECT_CLASSES.index(source.room(index).things[0].name) for index in range(count)}


def test_each_class_misses_a_colour_in_training():
    assert len(OBJECT_CLASSES) == len(PAINTS) * len(FURNITURE)
    assert Counter(label for _, label in HELD_OUT_FURNITURE) == dict.fromkeys(FURNITURE, 1)
    assert {colour for colour, _ in HELD_OUT_FURNITURE} == set(PAINTS)
    everything, held_out = set(range(len(OBJECT_CLASSES))), set(HELD_OUT_OBJECTS)
    assert seen(ObjectSource("train")) == seen(ObjectSource("val", combinations="seen")) == everything - held_out
    assert seen(ObjectSource("test")) == everything
    assert seen(ObjectSource("test", combinations="held_out")) == held_out


def test_the_source():
    source = open_source("world-objects:test?length=50&points=64&text=long")
    assert isinstance(source, ObjectSource)
    sample, again = source.read(7), ObjectSource("test", length=50, points=64, text="long").read(7)
    thing = source.room(7).things[0]
    assert set(sample) == {"__key__", "__source__", "points.npz", "txt", "captions.json", "cls", "json"}
    assert sample["json"]["synthetic"] is True
    assert OBJECT_CLASSES[sample["cls"]] == thing.name
    assert class_names(source) == OBJECT_CLASSES
    assert [one["kind"] for one in sample["captions.json"]] == ["short", "long"]
    assert sample["captions.json"][0]["text"] == OBJECT_TEMPLATES[0].format(thing.name)
    assert sample["txt"] == sample["captions.json"][1]["text"]
    cloud = read_points(sample["points.npz"])
    assert np.array_equal(cloud.xyz, read_points(again["points.npz"]).xyz)
    assert (len(cloud), cloud.fields) == (64, ("red", "green", "blue"))
    assert np.abs(cloud.xyz - thing.center).max() < max(thing.size) / 2 + 0.03
    with pytest.raises(IndexError, match="no sample 50"):
        source.read(50)


def test_samples_differ_over_splits_and_seeds():
    sources = [ObjectSource(split, 5, seed=seed) for split in ("train", "test") for seed in (0, 1)]
    samples = [source.read(index) for source in sources for index in range(5)]
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    assert len({sample["points.npz"]["xyz"].tobytes() for sample in samples}) == len(samples)


@pytest.mark.parametrize(
    ("label", "shares", "told"),
    [
        ("cabinet", (1.1, 1.0, 0.9), "one red cabinet, wide and low"),
        ("cabinet", (0.9, 1.0, 1.0), "one red cabinet, narrow"),
        ("pillar", (1.0, 1.0, 1.1), "one red pillar, tall"),
        ("ball", (1.1, 1.1, 1.1), "one red ball, large"),
        ("ball", (0.9, 0.9, 0.9), "one red ball, small"),
        ("slab", (1.03, 1.03, 0.97), "one red slab"),
    ],
)
def test_what_is_said_of_sizes(label, shares, told):
    width, depth, height = np.multiply(FURNITURE[label][1], shares).tolist()
    for size in ((width, depth, height), (depth, width, height)):  # turned by a quarter
        if label != "ball" or size[0] == size[1]:
            assert object_captions(Furnishing(label, "red", (0, 0, 0), size))[1].text == told


def test_objects_can_be_written_as_shards(tmp_path):
    shard("world-objects:train?length=5&points=16", str(tmp_path / "shards"))
    shards, source = open_source(tmp_path / "shards"), ObjectSource("train", length=5, points=16)
    assert class_names(shards) == OBJECT_CLASSES
    for index in range(5):
        written = read_points(shards.read(index)["points.npz"])
        assert {written.xyz.tobytes()} <= {source.read(each)["points.npz"]["xyz"].tobytes() for each in range(5)}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"text": "noisy"}, "short, long"),
        ({"combinations": "new"}, "not 'new'"),
        ({"combinations": "all"}, "never holds the held-out"),
        ({"split": "x"}, "train"),
        ({"points": 0}, "one point or more"),
    ],
)
def test_what_cannot_be_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        ObjectSource(**wrong)
