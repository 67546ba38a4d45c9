"""What people, crawlers and captioning models would write under a scene: four kinds of text whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from collimate_world.relations import CONVERSE, Relation, relations
from collimate_world.scene import COLOURS, SHAPES, Scene, Thing

Kind = Literal["short", "noisy", "synthetic", "long"]
T = TypeVar("T")
KINDS: tuple[Kind, ...] = ("short", "noisy", "synthetic", "long")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Caption:
    """A text, and whether it is true of its scene."""

    kind: Kind
    text: str
    true: bool = True


def caption(scene: Scene, kind: Kind, variant: int = 0, noise_rate: float = 0.4) -> Caption:
    """The caption of a kind; another `variant` words it anew.

    - `short`: colour and shape of every object, in any order.
    - `noisy`: as crawled: names one object, among words that mean nothing; wrong with probability `noise_rate`.
    - `synthetic`: one clean sentence with sizes, textures and a relation.
    - `long`: a sentence for the whole, for each object, and for each relation of each pair (said in one direction).

    Raises:
        ValueError: no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"Captions are {', '.join(KINDS)}; not {kind!r}.")
    rng = scene.generator(KINDS.index(kind), variant)
    if kind == "noisy":
        true = bool(rng.random() >= noise_rate)
        name = pick(rng, scene.things).name if true else _absent(scene, rng)
        return Caption(kind, pick(rng, _CRAWLED).format(name, int(rng.integers(10_000))), true)
    return Caption(kind, _WRITERS[kind](scene, rng))


def phrase(thing: Thing) -> str:
    """One object, in the words for all its attributes: `a small striped red circle`."""
    words = [thing.size, thing.texture, thing.name]
    return with_article(" ".join(word for word in words if word not in ("medium", "plain")))


def sentence(scene: Scene, relation: Relation, verb: str = "is") -> str:
    """A relation in words: `the red circle is left of the blue star`."""
    subject, target = scene.things[relation.subject], scene.things[relation.target]
    return f"the {subject.name} {verb} {relation.name} the {target.name}"


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of them."""
    return choices[int(rng.integers(len(choices)))]


def with_article(words: str) -> str:
    """`a red circle`, `an orange star`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _short(scene: Scene, rng: np.random.Generator) -> str:
    names = [with_article(scene.things[i].name) for i in rng.permutation(len(scene.things))]
    return pick(rng, _FRAMES).format(_enumerate(names))


def _synthetic(scene: Scene, rng: np.random.Generator) -> str:
    text = _enumerate([phrase(scene.things[i]) for i in rng.permutation(len(scene.things))])
    known = relations(scene)
    if known:
        text += f", where {sentence(scene, pick(rng, known))}"
    return f"{text}, on a {scene.background} background"


def _long(scene: Scene, rng: np.random.Generator) -> str:
    count = len(scene.things)
    noun = "object" if count == 1 else "objects"
    sentences = [pick(rng, _OPENINGS).format(NUMBERS[count], noun, scene.background)]
    sentences += [pick(rng, _MENTIONS).format(phrase(scene.things[i])) for i in rng.permutation(count)]
    for relation in relations(scene):
        if relation.subject < relation.target:
            verb = "is" if relation.name.endswith("than") else pick(rng, ("is", "lies", "is placed"))
            either = relation if rng.random() < 0.5 else _converse(relation)
            sentences.append(sentence(scene, either, verb))
    return " ".join(text[0].upper() + text[1:] + "." for text in sentences)


def _converse(relation: Relation) -> Relation:
    return Relation(relation.target, CONVERSE[relation.name], relation.subject)


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    """A colour and shape that no object has."""
    here = {thing.name for thing in scene.things}
    return pick(rng, [name for name in _NAMES if name not in here])


def _enumerate(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


_NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
_WRITERS: dict[str, Callable[[Scene, np.random.Generator], str]] = {
    "short": _short,
    "synthetic": _synthetic,
    "long": _long,
}
_FRAMES = ("{}", "a picture of {}", "there is {}", "this shows {}", "here we see {}")
_CRAWLED = ("{}", "IMG_{1:04d} {0}", "{0} - free download", "best {0} {1}", "{0} | buy now", "my {0} photo {1}.jpg")
_OPENINGS = ("the picture shows {} {} on a {} background", "we see {} {} before a {} background")
_MENTIONS = ("there is {}", "one can see {}", "it shows {}")
