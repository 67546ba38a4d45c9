"""The world as a source: the sample schema, and the way through core's data path."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from collimate.data import Preparation, Source, class_names, open_source
from collimate.processing import ImageProcessor
from collimate_world import CLASS_NAMES, HELD_OUT, HELD_OUT_CLASSES, TEMPLATES, Picture, WorldSource


def test_samples_have_the_keys_of_the_schema():
    source = WorldSource("test", length=10)
    assert isinstance(source, Source)
    sample = source.read(3)
    assert set(sample) == {"__key__", "__source__", "png", "txt", "captions.json", "regions.json", "json", "cls"}
    assert sample["png"].shape == (64, 64, 3)
    assert sample["json"]["synthetic"] is True
    assert class_names(source)[sample["cls"]] == sample["regions.json"][0]["name"]
    assert {one["kind"] for one in sample["captions.json"]} == {"short", "noisy", "synthetic", "long"}
    assert sample["txt"] == sample["captions.json"][0]["text"]


def test_samples_survive_json_and_are_read_alike_each_time():
    source = WorldSource("train", "2-4", length=10)
    first, again = source.read(9), WorldSource("train", "2-4", length=10).read(9)
    assert np.array_equal(first.pop("png"), again.pop("png"))
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(again))
    assert "cls" not in first
    assert class_names(source) is None


def test_keys_are_unique_over_splits_numbers_of_objects_and_seeds():
    sources = [
        WorldSource(split, objects, 5, seed=seed)
        for split in ("train", "test")
        for objects in (1, "1-2")
        for seed in (0, 1)
    ]
    keys = [source.read(i)["__key__"] for source in sources for i in range(5)]
    assert len(set(keys)) == len(keys)
    assert not any("." in key for key in keys)


def test_regions_are_those_of_the_picture():
    source = WorldSource("val", 4, size=128)
    found = source.read(1)["regions.json"]
    assert [region["box"] for region in found] == Picture(source.scene(1), 128).boxes.tolist()


def test_the_text_is_of_the_kind_asked_for():
    sample = WorldSource("train", 3, text="long").read(0)
    assert sample["txt"] == {one["kind"]: one["text"] for one in sample["captions.json"]}["long"]


def test_the_command_line_names_the_world_and_its_options():
    source = open_source("world:test?objects=2-3&size=32&length=7&seed=4&combinations=held_out")
    assert (len(source), source.read(0)["png"].shape) == (7, (32, 32, 3))
    assert {tuple(region["name"].split()) for i in range(7) for region in source.read(i)["regions.json"]} <= HELD_OUT


def test_pictures_pass_the_preparation_unchanged():
    source = WorldSource("test")
    row = Preparation({"image": ImageProcessor(64)}, also=("label",))(source.read(2))
    assert np.array_equal(row["image"].permute(1, 2, 0).numpy(), source.read(2)["png"])
    assert row["label"] == source.read(2)["cls"]


def test_pictures_can_be_written_as_jpeg():
    pixels = WorldSource("test").read(0)["png"]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    assert np.abs(np.asarray(Image.open(file), float) - pixels).mean() < 4


def test_held_out_classes_are_numbers_into_the_class_names():
    assert {tuple(CLASS_NAMES[number].split()) for number in HELD_OUT_CLASSES} == HELD_OUT
    assert all("{}" in template for template in TEMPLATES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": "some"}, "a range as in 2-4, not 'some'"),
        ({"objects": 9}, "1 to 6 objects"),
        ({"text": "loud"}, "not 'loud'"),
        ({"noise_rate": 1.5}, "between 0 and 1"),
        ({"combinations": "new"}, "not 'new'"),
        ({"split": "trian"}, "not 'trian'"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        WorldSource(**options)


def test_there_is_no_scene_beyond_the_end():
    with pytest.raises(IndexError, match="there is no sample 10"):
        WorldSource(length=10).read(10)
