"""What captions say is read back and held against the scene."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collimate_world import (
    COLOURS,
    CONVERSE,
    KINDS,
    SHAPES,
    SIZES,
    TEXTURES,
    Relation,
    caption,
    phrase,
    relations,
    sample_scene,
)
from collimate_world.captions import NUMBERS

scenes = st.builds(
    sample_scene,
    st.sampled_from(["train", "test"]),
    st.integers(0, 2**31),
    st.just(0),
    st.sampled_from([(1, 1), (2, 4)]),
)
variants = st.integers(0, 20)

NAME = rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
MENTION = re.compile(rf"\b(?:(?P<size>{'|'.join(SIZES)}) )?(?:(?P<texture>{'|'.join(TEXTURES)}) )?(?P<name>{NAME})")
RELATION = re.compile(rf"the ({NAME}) (?:is|lies|is placed) ({'|'.join(CONVERSE)}) the ({NAME})", re.IGNORECASE)


def true_of(text: str, scene) -> bool:
    """Whether all that a text says of objects, attributes, relations, number and background holds."""
    things = {thing.name: thing for thing in scene.things}
    for mention in MENTION.finditer(text):
        thing = things.get(mention["name"])
        if (
            thing is None
            or mention["size"] not in (None, thing.size)
            or mention["texture"] not in (None, thing.texture)
        ):
            return False
    names = [thing.name for thing in scene.things]
    for subject, name, target in RELATION.findall(text):
        if Relation(names.index(subject), name, names.index(target)) not in relations(scene):
            return False
    background = re.search(r"(\w+) background", text)
    number = re.search(r"(\w+) objects?\b", text)
    return (background is None or background[1] == scene.background) and (
        number is None or number[1] == NUMBERS[len(scene.things)]
    )


@given(scenes, st.sampled_from(KINDS), variants)
def test_captions_are_true_exactly_where_they_say_so(scene, kind, variant):
    found = caption(scene, kind, variant)
    assert MENTION.search(found.text)
    assert true_of(found.text, scene) == found.true
    assert found.true or kind == "noisy"


@given(scenes, st.sampled_from(["short", "synthetic", "long"]), variants)
def test_clean_captions_name_every_object_with_the_right_article(scene, kind, variant):
    text = caption(scene, kind, variant).text
    assert {mention["name"] for mention in MENTION.finditer(text)} == {thing.name for thing in scene.things}
    assert not re.search(r"\b(a [aeiou]|an [^aeiou])", text)


@given(scenes, variants)
def test_long_captions_have_a_sentence_for_each_object_and_relation(scene, variant):
    text = caption(scene, "long", variant).text
    said = {
        frozenset([(subject, name, target), (target, CONVERSE[name], subject)])
        for subject, name, target in RELATION.findall(text)
    }
    names = [thing.name for thing in scene.things]
    known = {
        frozenset([(names[i], name, names[j]), (names[j], CONVERSE[name], names[i])]) for i, name, j in relations(scene)
    }
    assert said == known
    assert text.count(".") == 1 + len(scene.things) + len(known)
    assert all(phrase(thing) in text for thing in scene.things)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 1.0])
def test_noisy_captions_are_wrong_at_the_given_rate(rate):
    count = 2000
    wrong = sum(not caption(sample_scene("train", i), "noisy", noise_rate=rate).true for i in range(count))
    assert abs(wrong - rate * count) <= 4 * (count * rate * (1 - rate)) ** 0.5  # four deviations of the binomial


@pytest.mark.parametrize("kind", KINDS)
def test_wording_varies_and_each_variant_is_fixed(kind):
    scene = sample_scene("train", 7, objects=(3, 3))
    assert caption(scene, kind, 2) == caption(scene, kind, 2)
    assert len({caption(scene, kind, variant).text for variant in range(30)}) > 8


def test_scenes_of_several_objects_have_distinct_captions():
    texts = [caption(sample_scene("test", i, objects=(2, 4)), "synthetic").text for i in range(300)]
    assert len(set(texts)) == len(texts)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="short, noisy, synthetic, long; not 'lengthy'"):
        caption(sample_scene("test", 0), "lengthy")  # pyright: ignore[reportArgumentType]
