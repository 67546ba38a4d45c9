"""The sounds of the world as a source of samples, made when they are read."""

from __future__ import annotations

from typing import cast

from collimate.data import Sample
from collimate_world.generated import Generated
from collimate_world.scene import (
    HELD_OUT_SIZES,
    SHAPES,
    SIZES,
    Combinations,
    Scene,
    combinations_of,
    sample_scene,
)
from collimate_world.sound import PITCHES, TIMBRES, Sound
from collimate_world.sound_captions import SOUND_KINDS, SoundKind, sound_caption, sound_name
from collimate_world.source import description, number_range

SOUND_CLASSES = [f"{PITCHES[size]} {TIMBRES[shape]}" for size in SIZES for shape in SHAPES]
"""The classes of clips with one sound, in the order of their numbers: pitch and timbre."""

HELD_OUT_SOUNDS = sorted(
    SOUND_CLASSES.index(f"{PITCHES[size]} {TIMBRES[shape]}") for shape, size in HELD_OUT_SIZES.items()
)
"""The numbers of the classes that never occur in the training split: for each timbre one pitch."""

SOUND_TEMPLATES = ["a {}", "the sound of a {}", "we hear a {}", "a {} can be heard", "a recording of a {}"]
"""Prompts for zero-shot classification."""


class SoundSource(Generated):
    """Clips of scenes as samples: `world-sound:train?objects=1-3` on the command line.

    A sample has `wav` (the bytes of a WAV file, 16-bit), `txt`, `captions.json` (several, each of a kind), `json` (the
    scene, and that it is synthetic), and for scenes of one object `cls`, its pitch and timbre.

    Args:
        split: train, val or test. Held-out combinations of pitch and timbre occur in the last two only.
        objects: how many sounds a clip has: a number, or a range as in `1-3`.
        length: number of clips.
        seconds: of each clip: a number, or a range as in `1-10`.
        rate: samples a second.
        seed: another seed, another world of the same kind.
        text: the kind of caption that is the sample's `txt`.
        combinations: of pitch and timbre: `seen` in training, `held_out`, or `all`; by default what the split allows.

    Raises:
        ValueError: an argument is not one of these; says which are.
    """

    def __init__(
        self,
        split: str = "train",
        objects: int | str = 1,
        length: int = 10_000,
        seconds: float | str = 2.0,
        rate: int = 16_000,
        seed: int = 0,
        text: str = "short",
        combinations: str | None = None,
    ) -> None:
        if text not in SOUND_KINDS:
            raise ValueError(f"The text of a sample is one of {', '.join(SOUND_KINDS)}; not {text!r}.")
        super().__init__(f"world-sound:{split}?objects={objects}", split, length, seed)
        self.combinations: Combinations = combinations_of(split, combinations, "pitch and timbre")
        self.objects = number_range(objects, int, "The number of objects")
        self.seconds = number_range(seconds, float, "The length of a clip in seconds")
        self.rate, self.text = rate, cast(SoundKind, text)
        if self.objects == (1, 1):
            self.class_names, self.templates = SOUND_CLASSES, SOUND_TEMPLATES
        if not 0 < self.seconds[0] <= self.seconds[1]:
            raise ValueError(f"A clip has some seconds, the lesser number first; not {seconds!r}.")
        Sound(self.scene(0), self.seconds[0], rate)  # refuses what cannot be, before training starts

    def scene(self, index: int) -> Scene:
        """The scene of a sample: that of the same picture in `WorldSource`, where all combinations are allowed."""
        return sample_scene(self.split, index, self.seed, self.objects, sizes_by_shape=self.combinations)

    def sound(self, index: int) -> Sound:
        """The clip of a sample."""
        scene = self.scene(index)
        return Sound(scene, float(scene.generator(_LENGTHS).uniform(*self.seconds)), self.rate)

    def size_of(self, index: int) -> float:
        """The seconds of a clip, which is not made for it."""
        return self.sound(index).seconds

    def made(self, index: int) -> Sample:
        sound = self.sound(index)
        scene = sound.scene
        captions = [sound_caption(scene, kind, variant) for kind, variant in _CAPTIONS]
        sample: Sample = {
            "__key__": f"sound-{self.split}-{'-'.join(map(str, self.objects))}-{self.seed}-{index:08d}",
            "__source__": self.name,
            "wav": sound.wav(),
            "txt": next(one.text for one in captions if one.kind == self.text),
            "captions.json": [dict(vars(one)) for one in captions],
            "json": description(scene)
            | {"split": self.split, "seed": self.seed, "index": index, "seconds": sound.seconds},
        }
        if self.objects == (1, 1):
            sample["cls"] = SOUND_CLASSES.index(sound_name(scene.things[0]))
        return sample


_LENGTHS = 101  # of the scene's random numbers; those next to it are for the sound
_CAPTIONS: tuple[tuple[SoundKind, int], ...] = (
    ("short", 0),
    ("short", 1),
    ("synthetic", 0),
    ("synthetic", 1),
    ("long", 0),
)
