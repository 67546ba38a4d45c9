"""The world's sounds as a source: the sample schema, splits, and the way through core's data path."""

import json

import numpy as np
import pytest
import torch

from collimate.data import Preparation, Source, class_names, open_source
from collimate.data.commands import shard
from collimate_audio import FilterBank
from collimate_audio.reading import read_sound
from collimate_world import HELD_OUT_SOUNDS, SOUND_CLASSES, SOUND_TEMPLATES, SoundSource, WorldSource, sound_name


def test_samples_have_the_keys_of_the_schema():
    source = SoundSource("test", length=10)
    assert isinstance(source, Source)
    sample = source.read(3)
    assert set(sample) == {"__key__", "__source__", "wav", "txt", "captions.json", "json", "cls"}
    assert sample["json"]["synthetic"] is True
    assert class_names(source)[sample["cls"]] == sound_name(source.scene(3).things[0])
    assert [one["kind"] for one in sample["captions.json"]] == ["short", "short", "synthetic", "synthetic", "long"]
    assert sample["txt"] == sample["captions.json"][0]["text"]
    assert class_names(SoundSource("test", "2-3")) is None
    assert all("{}" in template for template in SOUND_TEMPLATES)


def test_sounds_are_read_alike_each_time():
    first, again = (SoundSource("train", "1-3", length=10).read(9) for _ in range(2))
    assert first.pop("wav") == again.pop("wav")
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(again))


def test_keys_and_sounds_are_unique_over_splits_numbers_and_seeds():
    samples = [
        SoundSource(split, objects, 5, seed=seed).read(i)
        for split in ("train", "test")
        for objects in (1, "1-2")
        for seed in (0, 1)
        for i in range(5)
    ]
    assert len({sample["__key__"] for sample in samples}) == len(samples) == len({one["wav"] for one in samples})


def test_every_class_occurs_where_it_may():
    def seen(source):
        return {SOUND_CLASSES.index(sound_name(source.scene(i).things[0])) for i in range(400)}

    everything = set(range(len(SOUND_CLASSES)))
    assert len(HELD_OUT_SOUNDS) == 8
    assert seen(SoundSource("train")) == everything - set(HELD_OUT_SOUNDS)
    assert seen(SoundSource("test")) == everything
    assert seen(SoundSource("test", combinations="held_out")) == set(HELD_OUT_SOUNDS)
    assert seen(SoundSource("val", combinations="seen")) == everything - set(HELD_OUT_SOUNDS)


def test_the_picture_of_a_clip_is_the_worlds_own():
    assert SoundSource("test", "2-3").scene(7) == WorldSource("test", "2-3").scene(7)


def test_the_command_line_names_the_sounds_and_their_options():
    source = open_source("world-sound:test?objects=2-3&seconds=1-4&rate=8000&length=30&seed=4&text=long")
    clips = [read_sound(source.read(i)["wav"], 0) for i in range(30)]
    lengths = [len(clip) / rate for clip, rate in clips]
    assert {rate for _, rate in clips} == {8000}
    assert 1 <= min(lengths) < 1.7
    assert 3.3 < max(lengths) <= 4
    assert source.read(0)["txt"].count(".") >= 3


def test_sounds_pass_the_preparation():
    source = SoundSource("test")
    row = Preparation({"audio": FilterBank(2.0)}, also=("label", "id"))(source.read(2))
    torch.testing.assert_close(row["audio"], torch.from_numpy(source.sound(2).waveform), rtol=0, atol=2 / 32768)
    assert row["label"] == source.read(2)["cls"]


def test_sounds_can_be_written_as_shards(tmp_path):
    shard("world-sound:train?length=5&seconds=0.5", str(tmp_path / "shards"))
    shards, source = open_source(tmp_path / "shards"), SoundSource("train", length=5, seconds=0.5)
    assert class_names(shards) == SOUND_CLASSES
    written = {shards.read(i)["wav"] for i in range(5)}
    assert written == {source.read(i)["wav"] for i in range(5)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": "some"}, "a range as in 2-4, not 'some'"),
        ({"seconds": "long"}, "a range as in 2-4, not 'long'"),
        ({"seconds": "4-1"}, "the lesser number first"),
        ({"seconds": 0.01}, "too short for 1 sounds"),
        ({"text": "noisy"}, "not 'noisy'"),
        ({"combinations": "new"}, "not 'new'"),
        ({"combinations": "all"}, "never holds the held-out"),
        ({"split": "trian"}, "not 'trian'"),
        ({"rate": 100}, "not at 100"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        SoundSource(**options)


def test_there_is_no_clip_beyond_the_end():
    with pytest.raises(IndexError, match="there is no sample 10"):
        SoundSource(length=10).read(10)


def test_lengths_are_spread_evenly():
    lengths = np.array([SoundSource("train", seconds="1-10").sound(i).seconds for i in range(200)])
    assert np.abs(np.quantile(lengths, (0.25, 0.5, 0.75)) - (3.25, 5.5, 7.75)).max() < 0.9
