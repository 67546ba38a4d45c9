"""Clips that are seen, heard and read, for VATT's claims: of the procedural world, drawn once."""

from __future__ import annotations

from functools import cache
from typing import Any

from collimate.processing import ImageProcessor
from collimate_video import FrameEncoder, TokenEncoder, TokenTransformer, VideoProcessor, Waveform, WaveSpectra
from collimate_world import ClipSource
from collimate_world.sound import Sound

from .experiment import Listed, small_image_tower

SECONDS, RATE, WIDTH = 0.8, 8000, 64


@cache
def seen_and_heard(split: str, length: int, seed: int, side: int) -> Listed:
    """Clips of one frame that show one object, and its sound.

    Args:
        side: of the frame.
    """
    world = ClipSource(split, length=length, frames=1, size=side, seed=seed)
    samples = []
    for place in range(length):
        scene = world.scene(place)
        thing = scene.things[0]
        samples.append(
            {
                "__key__": str(place),
                "mp4": world.clip(place).pixels,
                "wav": Sound(scene, SECONDS, RATE).wav(),
                "txt": f"a {thing.colour} {thing.shape} before a {scene.background} background",
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
