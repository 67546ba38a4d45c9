"""What is said of a sound: pitch and timbre of each object in the order of their turns, or all that can be heard."""

from __future__ import annotations

from typing import Literal

import numpy as np

from collimate_world.captions import NUMBERS, Caption, pick, with_article
from collimate_world.scene import DEPTH, Scene, Thing
from collimate_world.sound import PITCHES, RHYTHMS, TIMBRES

SoundKind = Literal["short", "synthetic", "long"]
SOUND_KINDS: tuple[SoundKind, ...] = ("short", "synthetic", "long")

_GLIDES = 0.12  # radians of tilt from which a glide is told
_MOVES = 0.25  # metres per second from which coming and going is told
_NUMBER = 200  # of the kinds' random numbers; those below are for other captions, and for the sound itself


def sound_caption(scene: Scene, kind: SoundKind, variant: int = 0) -> Caption:
    """The caption of a kind of what is heard of a scene; another `variant` words it anew.

    - `short`: `a high bell, then a low buzz`, in a frame of words.
    - `synthetic`: the same with rhythm, glide, distance and coming or going, in words that mean the same.
    - `long`: a sentence for the whole, and one for each sound.

    Raises:
        ValueError: no such kind.
    """
    if kind not in SOUND_KINDS:
        raise ValueError(f"Captions of sounds are {', '.join(SOUND_KINDS)}; not {kind!r}.")
    rng = scene.generator(_NUMBER + SOUND_KINDS.index(kind), variant)
    things = sorted(scene.things, key=lambda thing: thing.position[0])
    if kind == "long":
        return Caption(kind, _long(things, rng))
    if kind == "short":
        text = pick(rng, _FRAMES).format(", then ".join(with_article(sound_name(thing)) for thing in things))
    else:
        text = _followed([sound_phrase(thing, rng) for thing in things], rng)
    return Caption(kind, text)


def sound_name(thing: Thing) -> str:
    """Pitch and timbre, which are the class of a sound: `high bell`."""
    return f"{PITCHES[thing.size]} {TIMBRES[thing.shape]}"


def sound_phrase(thing: Thing, rng: np.random.Generator | None = None) -> str:
    """All that can be heard of an object: `a distant rising high pulsing bell`; with `rng` in words drawn anew."""
    words = [*_places(thing), *_glides(thing), PITCHES[thing.size], *_rhythms(thing), TIMBRES[thing.shape]]
    return with_article(" ".join(word if rng is None else pick(rng, _SYNONYMS.get(word, (word,))) for word in words))


def _followed(phrases: list[str], rng: np.random.Generator) -> str:
    text = phrases[0]
    for phrase in phrases[1:]:
        text += pick(rng, _LINKS).format(phrase)
    return pick(rng, _FRAMES).format(text)


def _long(things: list[Thing], rng: np.random.Generator) -> str:
    count = len(things)
    sentences = [f"{pick(rng, _OPENINGS)} {NUMBERS[count]} {'sound' if count == 1 else 'sounds'}"]
    for number, thing in enumerate(things):
        place = "it is" if count == 1 else "first comes" if number == 0 else pick(rng, ("then comes", "next is"))
        sentences.append(f"{place} {sound_phrase(thing, rng)}")
    return " ".join(text[0].upper() + text[1:] + "." for text in sentences)


def _places(thing: Thing) -> list[str]:
    if abs(thing.velocity[1]) > _MOVES:
        return ["receding" if thing.velocity[1] > 0 else "approaching"]
    depth = thing.position[1] / DEPTH
    return ["near"] if depth < 0.25 else ["distant"] if depth > 0.75 else []


def _glides(thing: Thing) -> list[str]:
    return ["rising"] if thing.orientation > _GLIDES else ["falling"] if thing.orientation < -_GLIDES else []


def _rhythms(thing: Thing) -> list[str]:
    return [] if thing.texture == "plain" else [RHYTHMS[thing.texture]]


_FRAMES = ("{}", "the sound of {}", "{} can be heard", "we hear {}", "a recording of {}")
_LINKS = (", then {}", ", followed by {}", ", and then {}", ", next {}")
_OPENINGS = ("the recording has", "we hear", "there is a recording of")
_SYNONYMS = {
    "high": ("high", "high-pitched", "shrill"),
    "middle": ("middle", "mid-pitched"),
    "low": ("low", "low-pitched", "deep"),
    "rising": ("rising", "ascending"),
    "falling": ("falling", "descending"),
    "near": ("near", "close", "loud"),
    "distant": ("distant", "faint", "far"),
    "pulsing": ("pulsing", "repeated", "beating"),
    "stuttering": ("stuttering", "rapidly repeated", "pattering"),
    "hum": ("hum", "drone"),
    "buzz": ("buzz", "buzzing"),
    "pluck": ("pluck", "plucked string"),
    "bell": ("bell", "chime"),
    "hiss": ("hiss", "rush of noise"),
    "growl": ("growl", "rumble"),
    "warble": ("warble", "trill"),
}
