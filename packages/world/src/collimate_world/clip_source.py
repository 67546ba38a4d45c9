"""Clips of the world as a source of samples, made when they are read."""

from __future__ import annotations

from typing import cast

import numpy as np

from collimate.data import Sample
from collimate_world.clip import CLIP_RATE, Clip
from collimate_world.generated import Generated
from collimate_world.motion import MOTIONS, motion, moving
from collimate_world.motion_captions import MOTION_KINDS, MotionKind, motion_caption
from collimate_world.scene import Combinations, Scene, sample_scene
from collimate_world.sound import Sound
from collimate_world.source import description, number_range

MOTION_CLASSES = list(MOTIONS)
"""The classes of clips with one object, in the order of their numbers."""

MOTION_TEMPLATES = ["something {}", "a shape {}", "in this video an object {}"]
"""Prompts for zero-shot classification."""


class ClipSource(Generated):
    """Clips of moving scenes as samples: `world-clip:train?objects=1-3` on the command line.

    With `sound=true` objects are also heard, each in its turn from left to right. With `misaligned=0.3` three of ten
    clips have the texts of another clip, and three of ten, drawn apart, its sound.

    A sample has `mp4` (the frames, a uint8 array (frames, size, size, 3), as video processors take them; `collimate
    video transcode` makes files of them), `txt`, `captions.json` (two of each kind), `json` (the scene as it is at the
    beginning, and that it is synthetic), with sound `wav` (the bytes of a WAV file as long as the clip), and for scenes
    of one object `cls`, its motion.

    Args:
        split: train, val or test. Held-out combinations of colour and shape occur in the last two only.
        objects: how many objects a scene has: a number, or a range as in `1-3`.
        length: number of clips.
        frames: of each clip, 10 a second.
        size: side of the frames in pixels.
        seed: another seed, another world of the same kind.
        text: the kind of caption that is the sample's `txt`.
        combinations: of colour and shape: `seen` in training, `held_out`, or `all`; by default what the split allows.
        sound: whether clips have sound.
        rate: samples of it a second.
        misaligned: the share of clips with texts of another, and the share with sound of another; in `json` they are
            `text_index` and `sound_index`.

    Raises:
        ValueError: an argument is not one of these; says which are.
    """

    def __init__(
        self,
        split: str = "train",
        objects: int | str = 1,
        length: int = 10_000,
        frames: int = 16,
        size: int = 64,
        seed: int = 0,
        text: str = "short",
        combinations: str | None = None,
        sound: bool = False,
        rate: int = 16_000,
        misaligned: float = 0.0,
    ) -> None:
        if not 0 <= misaligned <= 1 or (misaligned and length < 2):
            raise ValueError(f"misaligned is a share of two or more clips, from 0 to 1; not {misaligned} of {length}.")
        if text not in MOTION_KINDS:
            raise ValueError(f"The text of a sample is one of {', '.join(MOTION_KINDS)}; not {text!r}.")
        super().__init__(f"world-clip:{split}?objects={objects}", split, length, seed)
        self.combinations: Combinations | None = cast(Combinations | None, combinations)
        self.objects = number_range(objects, int, "The number of objects")
        self.frames, self.size = frames, size
        self.text: MotionKind = cast(MotionKind, text)
        if self.objects == (1, 1):
            self.class_names, self.templates = MOTION_CLASSES, MOTION_TEMPLATES
        self.sounds, self.rate, self.misaligned = sound, rate, misaligned
        if sound:
            self.sound(0)
        self.clip(0)  # refuses what cannot be, before training starts

    def scene(self, index: int) -> Scene:
        """The scene of a sample, as it is at the beginning."""
        still = sample_scene(self.split, index, self.seed, self.objects, self.combinations)
        return moving(still, max(self.frames - 1, 1) / CLIP_RATE)

    def clip(self, index: int) -> Clip:
        """The clip of a sample."""
        return Clip(self.scene(index), self.frames, self.size)

    def sound(self, index: int) -> Sound:
        """What the objects of a sample's scene sound like, as long as its clip."""
        return Sound(self.scene(index), self.frames / CLIP_RATE, self.rate)

    def text_index(self, index: int) -> int:
        """Of which clip a sample's texts are."""
        return self._other(index, 0)

    def sound_index(self, index: int) -> int:
        """Of which clip a sample's sound is."""
        return self._other(index, 1)

    def made(self, index: int) -> Sample:
        clip, told = self.clip(index), self.scene(self.text_index(index))
        captions = [motion_caption(told, kind, variant) for kind in MOTION_KINDS for variant in range(2)]
        sample: Sample = {
            "__key__": f"clip-{self.split}-{'-'.join(map(str, self.objects))}-{self.seed}-{index:08d}",
            "__source__": self.name,
            "mp4": clip.pixels,
            "txt": next(one.text for one in captions if one.kind == self.text),
            "captions.json": [dict(vars(one)) for one in captions],
            "json": description(clip.scene) | {"split": self.split, "seed": self.seed, "index": index},
        }
        if self.objects == (1, 1):
            sample["cls"] = MOTION_CLASSES.index(motion(clip.scene.things[0]))
        if self.sounds:
            sample["wav"] = self.sound(self.sound_index(index)).wav()
        if self.misaligned:
            sample["json"] |= {"text_index": self.text_index(index), "sound_index": self.sound_index(index)}
        return sample

    def _other(self, index: int, what: int) -> int:
        """The clip itself or, in a share of them, any other."""
        if not self.misaligned:
            return index
        draws = np.random.default_rng((self.seed, index, _MISALIGNED, what))
        if draws.random() >= self.misaligned:
            return index
        return (index + int(draws.integers(1, self.length))) % self.length


_MISALIGNED = 301  # of the world's random numbers; those before it are for scenes
