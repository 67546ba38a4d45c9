"""Moving scenes: what moves as it is said, stays in view, and comes out the same every time."""

import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from collimate.data import open_source
from collimate_video import Video, VideoProcessor
from collimate_video.transcoding import transcode
from collimate_world import (
    MOTION_CLASSES,
    MOTION_KINDS,
    MOTIONS,
    OPPOSITE,
    Clip,
    ClipSource,
    Sound,
    motion,
    motion_caption,
    moving,
    sample_scene,
)
from collimate_world.motion import at
from collimate_world.scene import VIEW, projection

SECONDS = 1.5


def scenes(count=120, objects=(1, 3)):
    return [moving(sample_scene("train", index, objects=objects), SECONDS) for index in range(count)]


def test_objects_go_where_their_motion_says():
    for scene in scenes(60, (1, 1)):
        first, last = (projection(at(scene, time).things[0]) for time in (0, SECONDS))
        x, z, growth = last[0] - first[0], last[1] - first[1], last[2] / first[2]
        name = motion(scene.things[0])
        if name in ("comes nearer", "goes away"):
            assert growth > 1.2 if name == "comes nearer" else growth < 1 / 1.2
            continue
        wanted = MOTIONS[name]
        assert growth == 1
        assert (np.sign(round(x, 6)), np.sign(round(z, 6))) == (wanted[0], wanted[2])
        assert name == "stays still" or np.hypot(x, z) > 0.4


def test_every_object_stays_in_full_view():
    for scene in scenes():
        for time in np.linspace(0, SECONDS, 5):
            for thing in at(scene, time).things:
                x, z, radius = projection(thing)
                assert max(abs(x), abs(z)) + radius <= VIEW / 2 + 1e-6
                assert thing.distance >= 4.9


def test_all_motions_occur_and_are_independent_of_the_shape():
    found = [(motion(scene.things[0]), scene.things[0].shape) for scene in scenes(700, (1, 1))]
    counts = {name: sum(each == name for each, _ in found) for name in MOTIONS}
    assert min(counts.values()) > 60
    assert len(set(found)) == 7 * 8


def test_the_still_scene_is_the_same():
    still = sample_scene("val", 5, objects=(2, 2))
    scene = moving(still, SECONDS)
    assert [thing.name for thing in scene.things] == [thing.name for thing in still.things]
    assert (scene.background, scene.light) == (still.background, still.light)


def test_played_backwards_everything_does_the_opposite():
    for scene in scenes(20, (1, 1)):
        last = at(scene, SECONDS).things[0]
        back = replace(last, velocity=tuple(-speed for speed in last.velocity))
        assert motion(back) == OPPOSITE[motion(scene.things[0])]


def test_a_clip_shows_the_motion():
    scene = next(scene for scene in scenes(60, (1, 1)) if motion(scene.things[0]) == "moves right")
    clip = Clip(scene, 16, 48)
    assert clip.pixels.shape == (16, 48, 48, 3)
    assert clip.pixels.dtype == np.uint8
    middles = [np.nonzero(picture.masks[0])[1].mean() for picture in clip.pictures]
    assert np.all(np.diff(middles) > 0)
    assert not np.array_equal(clip.pixels[0], clip.pixels[-1])


def test_captions_say_every_motion():
    for scene in scenes(30):
        for kind in MOTION_KINDS:
            text = motion_caption(scene, kind).text
            for thing in scene.things:
                assert f"{thing.name} {motion(thing)}" in text
    assert len({motion_caption(scenes(1)[0], "short", variant).text for variant in range(12)}) > 2
    with pytest.raises(ValueError, match="short, long"):
        motion_caption(scenes(1)[0], "noisy")


def test_the_source():
    source = open_source("world-clip:train?length=50&frames=6&size=32")
    assert isinstance(source, ClipSource)
    sample = source.read(7)
    assert sample["mp4"].shape == (6, 32, 32, 3)
    assert MOTION_CLASSES[sample["cls"]] in sample["txt"]
    assert sample["json"]["synthetic"]
    again = ClipSource("train", length=50, frames=6, size=32).read(7)
    assert np.array_equal(again["mp4"], sample["mp4"])
    assert again["captions.json"] == sample["captions.json"]
    with pytest.raises(IndexError, match="no sample 50"):
        source.read(50)
    assert "cls" not in ClipSource(objects="2-3", frames=2, size=16).read(0)


def test_clips_can_have_sound():
    source = open_source("world-clip:train?length=40&frames=12&size=16&objects=2&sound=true&rate=8000")
    sample = source.read(3)
    found, rate = soundfile.read(io.BytesIO(sample["wav"]), dtype="float32")
    assert (rate, len(found)) == (8000, 9600)
    wanted = Sound(source.scene(3), 1.2, 8000).waveform
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    silent = ClipSource(length=40, frames=12, size=16, objects=2).read(3)
    assert "wav" not in silent
    assert np.array_equal(silent["mp4"], sample["mp4"])


def test_a_share_of_clips_is_misaligned():
    source = ClipSource(length=400, frames=2, size=16, sound=True, misaligned=0.4)
    texts = [source.text_index(index) != index for index in range(400)]
    sounds = [source.sound_index(index) != index for index in range(400)]
    assert 0.3 < np.mean(texts) < 0.5
    assert 0.3 < np.mean(sounds) < 0.5
    assert 0.1 < np.mean(np.logical_and(texts, sounds)) < 0.25  # drawn apart
    wrong = texts.index(True)
    sample, aligned = source.read(wrong), ClipSource(length=400, frames=2, size=16, sound=True)
    assert sample["json"]["text_index"] == source.text_index(wrong)
    assert sample["txt"] == aligned.read(source.text_index(wrong))["txt"]
    assert sample["wav"] == aligned.read(source.sound_index(wrong))["wav"]
    assert np.array_equal(sample["mp4"], aligned.read(wrong)["mp4"])
    assert sample["cls"] == aligned.read(wrong)["cls"]


def test_clips_are_videos_and_can_be_written_as_files():
    sample = ClipSource(frames=10, size=64).read(0)
    assert VideoProcessor(4)(sample["mp4"]).shape == (4, 3, 224, 224)
    video = Video(transcode(sample["mp4"], quality=10))
    assert len(video) == 10
    np.testing.assert_allclose(video.edges[:-1], np.arange(10) / 10, atol=1e-3)
    frames = video.frames([0.05, 0.95]).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(frames - sample["mp4"][[0, -1]].astype(int)).mean() < 6


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"text": "noisy"}, "short, long"),
        ({"objects": "many"}, "range"),
        ({"frames": 0}, "frame"),
        ({"split": "x"}, "train"),
        ({"combinations": "some"}, "held_out"),
        ({"misaligned": 1.5}, "share"),
        ({"sound": True, "frames": 1, "objects": 3}, "too short"),
    ],
)
def test_what_cannot_be_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        ClipSource(**wrong)
    with pytest.raises(ValueError, match="seconds"):
        moving(sample_scene("train", 0), 0)
