"""Scenes: the same draw each time, splits that share nothing, relations that are facts."""

from itertools import product
from math import hypot

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collimate_world import COLOURS, CONVERSE, HELD_OUT, SHAPES, SIZES, relations, sample_scene
from collimate_world.scene import MAX_OBJECTS, VIEW, projection

splits = st.sampled_from(["train", "val", "test"])
indices = st.integers(0, 2**31)
counts = st.sampled_from([(1, 1), (2, 4), (MAX_OBJECTS, MAX_OBJECTS)])
scenes = st.builds(sample_scene, splits, indices, st.integers(0, 99), counts)


@given(splits, indices, counts)
def test_a_scene_is_a_function_of_its_key(split, index, objects):
    assert sample_scene(split, index, 3, objects) == sample_scene(split, index, 3, objects)


def test_splits_and_seeds_share_no_scene():
    drawn = [
        sample_scene(split, i, seed).things
        for split, seed in product(("train", "val", "test"), (0, 1))
        for i in range(50)
    ]
    assert len(set(drawn)) == len(drawn)


def test_held_out_combinations_leave_each_colour_and_each_shape_in_training():
    assert len(HELD_OUT) == 8
    for words, place in ((COLOURS, 0), (SHAPES, 1)):
        assert {word: sum(pair[place] == word for pair in HELD_OUT) for word in words} == dict.fromkeys(words, 1)


@given(indices, st.integers(0, 99), counts)
def test_training_never_sees_what_is_held_out(index, seed, objects):
    scene = sample_scene("train", index, seed, objects)
    assert not HELD_OUT & {(thing.colour, thing.shape) for thing in scene.things}


@given(indices, st.sampled_from(["val", "test"]))
def test_evaluation_can_be_of_held_out_combinations_alone(index, split):
    scene = sample_scene(split, index, objects=(3, 3), combinations="held_out")
    assert {(thing.colour, thing.shape) for thing in scene.things} <= HELD_OUT


def test_every_combination_occurs_where_it_may():
    pairs = set(product(COLOURS, SHAPES))
    seen = {
        split: {tuple(sample_scene(split, i).things[0].name.split()) for i in range(1200)}
        for split in ("train", "test")
    }
    assert seen == {"train": pairs - HELD_OUT, "test": pairs}


@given(scenes)
def test_objects_are_in_full_view_and_told_apart_by_colour_and_shape(scene):
    assert len({thing.name for thing in scene.things}) == len(scene.things)
    for thing in scene.things:
        x, z, radius = projection(thing)
        assert max(abs(x), abs(z)) + radius < VIEW / 2
        assert thing.size == min(SIZES, key=lambda size: abs(SIZES[size] - thing.radius))


def test_objects_hardly_hide_each_other():
    gaps = []
    for i in range(200):
        places = [projection(thing) for thing in sample_scene("train", i, objects=(4, 4)).things]
        gaps += [hypot(a[0] - b[0], a[1] - b[1]) / (a[2] + b[2]) for a in places for b in places if a is not b]
    assert sum(gap < 0.9 for gap in gaps) < 0.05 * len(gaps)


@given(scenes)
def test_relations_hold_the_other_way_round_by_their_converse(scene):
    known = set(relations(scene))
    assert known == {(target, CONVERSE[name], subject) for subject, name, target in known}


@given(scenes)
def test_no_relation_holds_both_ways_except_near(scene):
    known = set(relations(scene))
    assert all(name == "near" or (target, name, subject) not in known for subject, name, target in known)


@given(scenes)
def test_relations_of_order_are_transitive(scene):
    known = set(relations(scene))
    for (a, name, b), (c, other, d) in product(known, known):
        if name == other != "near" and b == c and a != d:
            assert (a, name, d) in known


def test_sizes_in_words_never_contradict_the_relation():
    for i in range(300):
        scene = sample_scene("test", i, objects=(4, 4))
        order = list(SIZES)
        for subject, name, target in relations(scene):
            if name == "larger than":
                assert order.index(scene.things[subject].size) > order.index(scene.things[target].size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dev", 0), "splits train, val, test, not 'dev'"),
        (("train", 0, 0, (0, 1)), "1 to 6 objects"),
        (("train", 0, 0, (3, 2)), "the lesser number first"),
        (("train", 0, 0, (1, 1), "held_out"), "never holds the held-out"),
    ],
)
def test_impossible_scenes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_scene(*arguments)
