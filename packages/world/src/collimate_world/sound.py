"""The microphone: what the objects of a scene sound like.

Each object has its turn, from left to right. Its shape is its timbre, its size the pitch, its texture the rhythm, its
tilt the glide, and its distance the level; colours cannot be heard. Beneath it all is a little noise of the room.

Shape legend: N samples of a clip, n of an object's turn, P of one period in a table.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from collimate_world.scene import CAMERA_DISTANCE, SIZES, Scene, Thing

Wave = Float32[np.ndarray, " n"]

TIMBRES: dict[str, str] = {
    "circle": "hum",
    "square": "buzz",
    "triangle": "whistle",
    "star": "bell",
    "cross": "pluck",
    "ring": "growl",
    "heart": "warble",
    "crescent": "hiss",
}
"""shape -> the name of its timbre."""

PITCHES = {"small": "high", "medium": "middle", "large": "low"}
"""size -> the name of its pitch."""

RHYTHMS = {"plain": "steady", "striped": "pulsing", "dotted": "stuttering"}
"""texture -> the name of its rhythm."""

GLIDE = 0.6  # octaves, up or down in one turn, for each `FULL_TILT`: neighbouring pitches stay apart
FULL_TILT = 0.35  # radians; objects are drawn with no more

_HERTZ = 1300.0  # of a small object of the mean radius; medium ones have 440 Hz, large ones 148 Hz
_STEEPNESS = 3.0  # pitch falls with this power of the radius
_LEVEL = 0.12  # root mean square of an object on the plane y = 0
_LOSS = 4.0  # level falls with this power of the distance: more than in air, so that the far can be told from the near
_NOISE_DECIBELS = (-65.0, -45.0)  # of the room, relative to full scale
_PULSES = {"steady": 0.0, "pulsing": 4.0, "stuttering": 12.0}  # a second, and at least as many in a turn
_OPEN = {"steady": 1.0, "pulsing": 0.6, "stuttering": 0.45}  # the share of each pulse in which there is sound
_RAMP = 0.006  # seconds to open and to close, so that nothing clicks
_TURN = 0.92  # of an object's share of the time; the rest is silence
_PURPOSE = 100  # of the scene's random numbers; those below it are for captions and negatives
_PERIOD = 4096  # P


class Turn(NamedTuple):
    """When an object sounds."""

    thing: Thing
    onset: float  # seconds
    duration: float  # seconds


class Sound:
    """A scene heard by a microphone.

    Args:
        scene: what is heard.
        seconds: of the clip.
        rate: samples a second.

    Raises:
        ValueError: an object's turn would be shorter than 50 ms, or the rate is too low for the highest pitch.
    """

    def __init__(self, scene: Scene, seconds: float = 2.0, rate: int = 16_000) -> None:
        if seconds < 0.05 * len(scene.things):
            raise ValueError(f"{seconds:g} s are too short for {len(scene.things)} sounds; each needs 0.05 s.")
        if rate < 8000:
            raise ValueError(f"The world sounds at 8000 samples a second or more, not at {rate}.")
        self.scene, self.seconds, self.rate = scene, seconds, rate

    @cached_property
    def turns(self) -> list[Turn]:
        """When each object sounds: one after the other, from left to right."""
        order = sorted(self.scene.things, key=lambda thing: thing.position[0])
        share = self.seconds / len(order)
        return [Turn(thing, number * share, _TURN * share) for number, thing in enumerate(order)]

    @cached_property
    def waveform(self) -> Float32[np.ndarray, " N"]:
        """The clip, in [-1, 1]."""
        rng = self.scene.generator(_PURPOSE)
        clip = rng.standard_normal(round(self.seconds * self.rate), np.float32)
        clip *= np.float32(10 ** (rng.uniform(*_NOISE_DECIBELS) / 20))
        for turn in self.turns:
            first = round(turn.onset * self.rate)
            heard = _heard(turn, self.rate, rng)
            clip[first : first + len(heard)] += heard
        return np.clip(clip, -1, 1, out=clip)

    def wav(self) -> bytes:
        """The clip as a WAV file of 16-bit integers."""
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(self.rate)
            writer.writeframes((self.waveform * np.float32(32767)).astype("<i2").tobytes())
        return file.getvalue()


def hertz(thing: Thing) -> float:
    """The pitch of an object, in the middle of its glide."""
    return _HERTZ * (SIZES["small"] / thing.radius) ** _STEEPNESS


def loudness(thing: Thing, seconds: float | Wave = 0.0) -> float | Wave:
    """The root mean square of an object's steady sound; of a moving one, so many seconds later."""
    return _LEVEL * (CAMERA_DISTANCE / (thing.distance + thing.velocity[1] * seconds)) ** _LOSS


def _heard(turn: Turn, rate: int, rng: np.random.Generator) -> Wave:
    thing, rhythm = turn.thing, RHYTHMS[turn.thing.texture]
    time = np.arange(round(turn.duration * rate), dtype=np.float32) / np.float32(rate)
    pulses = max(_PULSES[rhythm], _PULSES[rhythm] and 3 / turn.duration)
    period = np.float32(1 / pulses if pulses else turn.duration)
    since = time % period  # seconds from the beginning of the pulse
    gate = np.clip(np.minimum(since, np.float32(_OPEN[rhythm]) * period - since) / np.float32(_RAMP), 0, 1)
    octaves = np.float32(GLIDE * thing.orientation / FULL_TILT) * (time / np.float32(turn.duration) - np.float32(0.5))
    phase = np.cumsum(hertz(thing) / rate * np.exp2(octaves), dtype=np.float64) + rng.random()
    wave = _TIMBRES[TIMBRES[thing.shape]](_Note(phase, time, since, hertz(thing), rate), rng)
    level = loudness(thing, turn.onset + time) if thing.velocity[1] else loudness(thing)
    return wave * gate * np.float32(level)


# Timbres: waves whose root mean square is 1 where they do not decay -------------------------------------------------


class _Note(NamedTuple):
    phase: Float[np.ndarray, " n"]  # in periods
    time: Wave  # seconds from the beginning of the turn
    since: Wave  # seconds from the beginning of the pulse
    hertz: float
    rate: int


def _hum(note: _Note, rng: np.random.Generator) -> Wave:
    return _read(_table((1.0, 0.35, 0.12)), note.phase)


def _buzz(note: _Note, rng: np.random.Generator) -> Wave:
    return _read(_table(tuple(k % 2 / k for k in range(1, _overtones(note) + 1))), note.phase)


def _whistle(note: _Note, rng: np.random.Generator) -> Wave:
    """A pure tone and breath."""
    return _read(_table((1.0,)), note.phase) + 0.25 * rng.standard_normal(len(note.phase), np.float32)


def _bell(note: _Note, rng: np.random.Generator) -> Wave:
    """Partials that are no harmonics, the higher the sooner gone."""
    heard = [partial for partial in _PARTIALS if partial[0] * note.hertz * 2**0.5 < note.rate / 2]
    found = np.zeros_like(note.time)
    for ratio, size, decay in heard:
        tone = _read(_table((1.0,)), note.phase * ratio)
        found += np.float32(size) * tone * np.exp(np.float32(-decay) * note.since)
    return np.float32(1.6) * found  # louder, for it decays


def _pluck(note: _Note, rng: np.random.Generator) -> Wave:
    """A string: bright at first, then soft."""
    bright = _read(_table(tuple(1 / k for k in range(1, _overtones(note) + 1))), note.phase)
    soft = _read(_table((1.0, 0.3)), note.phase)
    return np.float32(1.4) * (bright * np.exp(-18 * note.since) + soft * np.exp(-5 * note.since))


def _growl(note: _Note, rng: np.random.Generator) -> Wave:
    """A rough sound: overtones that tremble 35 times a second."""
    saw = _read(_table(tuple(1 / k for k in range(1, _overtones(note) + 1))), note.phase)
    return np.float32(0.76) * saw * (1 + np.float32(0.9) * _read(_table((1.0,)), 35 * note.time))


def _warble(note: _Note, rng: np.random.Generator) -> Wave:
    """A tone whose pitch goes up and down 7 times a second, by 15 %."""
    swing = 0.15 * note.hertz / (2 * np.pi * 7)
    return _read(_table((1.0,)), note.phase + swing * np.sin(2 * np.pi * 7 * note.time))


def _hiss(note: _Note, rng: np.random.Generator) -> Wave:
    """Noise in a band about the pitch: a tone whose amplitude is slow noise."""
    width = 0.5 * note.hertz
    corners = rng.standard_normal(int(note.time[-1] * width) + 2)
    slow = np.interp(note.time * width, np.arange(len(corners)), corners).astype(np.float32)
    return np.float32(1.2) * slow * _read(_table((1.0,)), note.phase)


_PARTIALS = ((1.0, 1.0, 4.0), (2.76, 0.6, 6.0), (5.4, 0.4, 9.0), (8.93, 0.25, 14.0))  # ratio, size, decay a second
_TIMBRES: dict[str, Callable[[_Note, np.random.Generator], Wave]] = {
    "hum": _hum,
    "buzz": _buzz,
    "whistle": _whistle,
    "bell": _bell,
    "pluck": _pluck,
    "growl": _growl,
    "warble": _warble,
    "hiss": _hiss,
}


def _overtones(note: _Note) -> int:
    """How many harmonics lie below half the rate throughout the glide."""
    return max(1, min(40, int(note.rate / 2 / (note.hertz * 2 ** (GLIDE / 2)))))


@lru_cache(maxsize=256)
def _table(harmonics: tuple[float, ...]) -> Float32[np.ndarray, " P"]:
    """One period of a wave whose root mean square is 1, from the size of each harmonic."""
    angle = 2 * np.pi * np.arange(_PERIOD) / _PERIOD
    period = sum(size * np.sin(k * angle) for k, size in enumerate(harmonics, 1))
    return (period / np.sqrt(np.mean(np.square(period)))).astype(np.float32)


def _read(table: Float32[np.ndarray, " P"], phase: Float[np.ndarray, " n"]) -> Wave:
    return table[(phase * _PERIOD).astype(np.int64) & (_PERIOD - 1)]
