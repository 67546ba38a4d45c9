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
def seen_and_heard(
    split: str, length: int, seed: int, side: int, misaligned: float = 0.0, apart: bool = False
) -> Listed:
    """Clips of one frame that show one object, and its sound.

    Args:
        side: of the frame.
        misaligned: share of clips that have the text of another, and of those that have the sound of another, drawn
            apart; `misaligned` of a sample says whether it is among either.
        apart: the sound is another scene's, and half of the caption's words are of what is seen, `red before grey`,
            the other half of what is heard, `a low hum`; else the caption says what is seen.
    """
    world = ClipSource(split, length=length, frames=1, size=side, seed=seed)
    draws, places = np.random.default_rng(seed), np.arange(length)
    sounds, texts = (np.where(draws.random(length) < misaligned, draws.permutation(length), places) for _ in range(2))
    if apart:
        sounds = np.roll(places, length // 2)
    samples = []
    for place in range(length):
        heard, told = world.scene(int(sounds[place])), world.scene(int(texts[place]))
        thing, sounding = told.things[0], heard.things[0]
        words = f"{thing.colour} before {told.background}, a {PITCHES[sounding.size]} {TIMBRES[sounding.shape]}"
        samples.append(
            {
                "__key__": str(place),
                "mp4": world.clip(place).pixels,
                "wav": Sound(heard, SECONDS, RATE).wav(),
                "txt": words if apart else f"a {thing.colour} {thing.shape} before a {told.background} background",
                "misaligned": bool(sounds[place] != place or texts[place] != place),
            }
        )
    return Listed(samples)


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
