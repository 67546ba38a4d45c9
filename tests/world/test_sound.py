"""Sound: each attribute of a scene can be heard, alone, and nothing else of it."""

import io
import wave
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from collimate_world import (
    COLOURS,
    HELD_OUT_SIZES,
    RHYTHMS,
    SHAPES,
    SIZES,
    SOUND_CLASSES,
    SOUND_KINDS,
    TEXTURES,
    TIMBRES,
    Scene,
    Sound,
    SoundSource,
    Thing,
    sample_scene,
    sound_caption,
    sound_name,
    sound_phrase,
)
from collimate_world.scene import Light
from collimate_world.sound import hertz

RATE = 16_000
HUM = Thing("red", "circle", "medium", "plain", (0.0, 0.0, 2.0), SIZES["medium"])


def scene_of(*things):
    return Scene((0, 0, 0, 1, 1), things, "white", Light(1.0, 0.0))


def heard(*things, seconds=2.0):
    return Sound(scene_of(*things), seconds, RATE).waveform


def level(waveform):
    return float(np.sqrt(np.mean(np.square(waveform))))


def peak_hertz(waveform):
    power = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))) ** 2
    return float(np.argmax(power) * RATE / len(waveform))


def bursts(waveform):
    """How often sound sets in."""
    envelope = np.abs(waveform)[: len(waveform) // 160 * 160].reshape(-1, 160).max(1)
    loud = envelope > 0.3 * envelope.max()
    return int(loud[0]) + int((loud[1:] & ~loud[:-1]).sum())


def test_a_clip_is_a_function_of_its_scene():
    scene = sample_scene("test", 5, objects=(3, 3))
    clip = Sound(scene, 2.0).waveform
    assert clip.dtype == np.float32
    assert clip.shape == (32_000,)
    assert np.array_equal(clip, Sound(scene, 2.0).waveform)
    assert not np.array_equal(clip, Sound(sample_scene("test", 6, objects=(3, 3)), 2.0).waveform)


def test_no_clip_leaves_the_range_of_a_waveform():
    for shape, size, texture in product(SHAPES, SIZES, TEXTURES):
        clip = heard(replace(HUM, shape=shape, size=size, radius=SIZES[size], texture=texture), seconds=1.0)
        assert np.isfinite(clip).all()
        assert 0.05 < np.abs(clip).max() < 1, (shape, size, texture)


@pytest.mark.parametrize("shape", ["circle", "triangle", "heart", "star"])
@pytest.mark.parametrize("size", SIZES)
def test_the_pitch_is_the_size(shape, size):
    thing = replace(HUM, shape=shape, size=size, radius=SIZES[size])
    tolerance = 0.2 if shape == "heart" else 0.02  # a warble swings by 15 %
    assert peak_hertz(heard(thing)) == pytest.approx(hertz(thing), rel=tolerance)


def test_pitches_of_different_names_never_cross():
    at = {size: [hertz(replace(HUM, radius=SIZES[size] * spread)) for spread in (1.08, 0.92)] for size in SIZES}
    glide = 2**0.3
    assert at["large"][1] * glide < at["medium"][0] / glide
    assert at["medium"][1] * glide < at["small"][0] / glide


def test_the_level_is_the_distance():
    far = replace(HUM, position=(0.0, 2.0, 2.0))
    assert level(heard(far)) / level(heard(HUM)) == pytest.approx((6 / 8) ** 4, rel=0.02)


@pytest.mark.parametrize(("texture", "count"), [("plain", 1), ("striped", 8), ("dotted", 23)])
def test_the_rhythm_is_the_texture(texture, count):
    assert abs(bursts(heard(replace(HUM, texture=texture))) - count) <= 1


@pytest.mark.parametrize(("tilt", "sign"), [(0.3, 1), (-0.3, -1)])
def test_the_glide_is_the_tilt(tilt, sign):
    clip = heard(replace(HUM, orientation=tilt))
    first, last = peak_hertz(clip[2000:6000]), peak_hertz(clip[-8000:-4000])
    assert sign * np.log2(last / first) == pytest.approx(0.6 * 0.3 / 0.35 * 0.7, abs=0.1)


def test_what_comes_nearer_becomes_louder():
    clip = heard(replace(HUM, position=(0.0, 1.5, 2.0), velocity=(0.0, -0.6, 0.0)))
    assert level(clip[-10_000:-4000]) > 1.3 * level(clip[2000:8000])


def test_colour_cannot_be_heard():
    clips = [heard(replace(HUM, colour=colour)) for colour in COLOURS]
    assert all(np.array_equal(clip, clips[0]) for clip in clips)


def test_objects_sound_one_after_the_other_from_left_to_right():
    low = replace(HUM, size="large", radius=SIZES["large"], position=(1.0, 0.0, 2.0))
    high = replace(HUM, size="small", radius=SIZES["small"], position=(-1.0, 0.0, 2.0))
    clip = heard(low, high)
    assert peak_hertz(clip[:14_000]) == pytest.approx(hertz(high), rel=0.02)
    assert peak_hertz(clip[16_000:30_000]) == pytest.approx(hertz(low), rel=0.02)
    assert sound_caption(scene_of(low, high), "short").text.find("high hum") < sound_caption(
        scene_of(low, high), "short"
    ).text.find("low hum")


def test_a_clip_tells_its_class():
    """The nearest mean spectrum finds pitch and timbre: in a space without learning, by what is heard alone."""

    def features(index):
        clip = source.sound(index).waveform
        frames = np.abs(np.fft.rfft(clip[:31_744].reshape(-1, 512) * np.hanning(512)))
        bands = np.add.reduceat(frames, np.unique(np.geomspace(2, 250, 40).astype(int)), axis=1)
        rows = np.log(bands + 1e-3)
        return np.concatenate([np.sort(rows, 0)[-12:].mean(0), rows.std(0)])

    source = SoundSource("test", length=700)
    vectors = np.stack([features(i) for i in range(700)])
    classes = np.array([SOUND_CLASSES.index(sound_name(source.scene(i).things[0])) for i in range(700)])
    means = np.stack([vectors[:500][classes[:500] == number].mean(0) for number in range(len(SOUND_CLASSES))])
    spread = vectors[:500].std(0)
    distances = (((vectors[500:, None] - means) / spread) ** 2).sum(-1)
    assert (distances.argmin(1) == classes[500:]).mean() > 0.6  # 1 in 24 by chance


def test_wav_files_hold_the_clip():
    sound = Sound(sample_scene("test", 1), 0.5, 8000)
    with wave.open(io.BytesIO(sound.wav())) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (8000, 1, 4000)
        samples = np.frombuffer(file.readframes(4000), "<i2") / 32768
    assert np.abs(samples - sound.waveform).max() < 2 / 32768


def test_captions_say_what_is_heard():
    thing = Thing("red", "star", "small", "striped", (0.0, 1.9, 2.0), SIZES["small"], 0.3)
    assert sound_name(thing) == "high bell"
    assert sound_phrase(thing) == "a distant rising high pulsing bell"
    assert sound_phrase(HUM) == "a near middle hum"
    assert sound_phrase(replace(HUM, velocity=(0.0, -1.0, 0.0))) == "an approaching middle hum"
    assert all("high bell" in sound_caption(scene_of(thing), "short", variant).text for variant in range(9))


def test_captions_name_every_sound_in_its_order():
    for index in range(40):
        scene = sample_scene("test", index, objects=(2, 4))
        names = [sound_name(thing) for thing in sorted(scene.things, key=lambda thing: thing.position[0])]
        rest = sound_caption(scene, "short").text
        for name in names:
            assert name in rest
            rest = rest[rest.index(name) + len(name) :]
        assert sound_caption(scene, "long").text.count(".") == 1 + len(names)


def test_captions_are_worded_anew_by_variant_and_alike_each_time():
    scene = sample_scene("test", 3, objects=(3, 3))
    for kind in SOUND_KINDS:
        texts = [sound_caption(scene, kind, variant).text for variant in range(12)]
        assert texts == [sound_caption(scene, kind, variant).text for variant in range(12)]
        assert len(set(texts)) > 3


def test_held_out_sizes_leave_each_shape_and_each_size_in_training():
    assert set(HELD_OUT_SIZES) == set(SHAPES) == set(TIMBRES)
    assert set(RHYTHMS) == set(TEXTURES)
    for size in SIZES:
        assert 0 < sum(held_out == size for held_out in HELD_OUT_SIZES.values()) < len(SHAPES)
    for index in range(300):
        seen = sample_scene("train", index, objects=(1, 4), sizes_by_shape="seen")
        assert all(thing.size != HELD_OUT_SIZES[thing.shape] for thing in seen.things)
        held_out = sample_scene("test", index, objects=(1, 4), sizes_by_shape="held_out")
        assert all(thing.size == HELD_OUT_SIZES[thing.shape] for thing in held_out.things)


def test_impossible_sounds_are_refused():
    with pytest.raises(ValueError, match=r"too short for 3 sounds"):
        Sound(sample_scene("test", 0, objects=(3, 3)), 0.1)
    with pytest.raises(ValueError, match="not at 4000"):
        Sound(sample_scene("test", 0), 1.0, 4000)
    with pytest.raises(ValueError, match="not 'noisy'"):
        sound_caption(sample_scene("test", 0), "noisy")
