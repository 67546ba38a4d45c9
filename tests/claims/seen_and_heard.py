"""Clips that are seen, heard and read, for claims of the video package: of the procedural world, drawn once."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from collimate.processing import ImageProcessor
from collimate_video import FrameEncoder, TokenEncoder, TokenTransformer, VideoProcessor, Waveform, WaveSpectra
from collimate_world import ClipSource
from collimate_world.sound import PITCHES, TIMBRES, Sound

from .experiment import Listed, small_image_tower

SECONDS, RATE, WIDTH = 0.8, 8000, 64


@cache
def seen_and_heard(split: str, length: int, seed: int, side: int, misaligned: float = 0.0) -> Listed:
    """Clips of one frame that show one object, its sound, and a caption of what is seen.

    Args:
        side: of the frame.
        misaligned: share of clips that have the text of another, and of those that have the sound of another, drawn
            apart; `misaligned` of a sample says whether it is among either.
    """
    world = ClipSource(split, length=length, frames=1, size=side, seed=seed)
    draws, places = np.random.default_rng(seed), np.arange(length)
    sounds, texts = (np.where(draws.random(length) < misaligned, draws.permutation(length), places) for _ in range(2))
    samples = []
    for place, sound, text in zip(places.tolist(), sounds.tolist(), texts.tolist(), strict=True):
        told = world.scene(text)
        words = f"a {told.things[0].colour} {told.things[0].shape} before a {told.background} background"
        sample = _sample(world, place, sound, words)
        samples.append(sample | {"misaligned": sound != place or text != place})
    return Listed(samples)


@cache
def seen_or_heard(split: str, length: int, seed: int, side: int) -> Listed:
    """Clips of one frame of one scene with the sound of another: half of the caption's words are of what is seen,
    `red before grey`, the other half of what is heard, `a low hum`.

    Args:
        side: of the frame.
    """
    world = ClipSource(split, length=length, frames=1, size=side, seed=seed)
    samples = []
    for place in range(length):
        sound = (place - length // 2) % length
        scene, heard = world.scene(place), world.scene(sound).things[0]
        words = f"{scene.things[0].colour} before {scene.background}, a {PITCHES[heard.size]} {TIMBRES[heard.shape]}"
        samples.append(_sample(world, place, sound, words))
    return Listed(samples)


def _sample(world: ClipSource, place: int, sound: int, words: str) -> dict[str, Any]:
    return {
        "__key__": str(place),
        "mp4": world.clip(place).pixels,
        "wav": Sound(world.scene(sound), SECONDS, RATE).wav(),
        "txt": words,
    }


def small_towers(side: int) -> dict[str, Any]:
    """Constructor arguments of a method: towers of one width that learn these clips in minutes on one core."""
    samples = round(SECONDS * RATE)
    return {
        "video_encoder": FrameEncoder(small_image_tower(WIDTH), frames=1),
        "audio_encoder": TokenEncoder(WaveSpectra(samples, 256, WIDTH), small_trunk(), dropout=0.0),
        "video_processor": VideoProcessor(1, ImageProcessor(side)),
        "audio_processor": Waveform(SECONDS, RATE),
    }


def small_trunk() -> TokenTransformer:
    return TokenTransformer(WIDTH, 2, 4, 2 * WIDTH, 0.0, init_std=0.1)
