"""Hard negatives: false, and different by just what their kind says."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collimate.data import open_source
from collimate_world import COLOURS, NEGATIVE_KINDS, SHAPES, caption, negatives, sample_scene

scenes = st.builds(
    sample_scene,
    st.sampled_from(["train", "test"]),
    st.integers(0, 2**31),
    st.just(0),
    st.sampled_from([(1, 1), (2, 4), (6, 6)]),
)
variants = st.integers(0, 20)


def names_in(text: str) -> list[tuple[str, str]]:
    words = text.replace(",", "").split()
    return [(a, b) for a, b in pairwise(words) if a in COLOURS and b in SHAPES]


@given(scenes, variants)
def test_each_kind_changes_what_it_says_and_nothing_else(scene, variant):
    for found in negatives(scene, variant):
        assert found.caption == caption(scene, "short", variant).text
        right, wrong = names_in(found.caption), names_in(found.negative)
        changed = [(a, b) for a, b in zip(right, wrong, strict=True) if a != b]
        colours, shapes = (sum(a[place] != b[place] for a, b in changed) for place in (0, 1))
        assert (colours, shapes) == {"replace_colour": (1, 0), "replace_shape": (0, 1), "swap_colour": (2, 0)}[
            found.kind
        ]
        if found.kind == "swap_colour":
            assert sorted(colour for colour, _ in right) == sorted(colour for colour, _ in wrong)
        rest = [
            [w for w in text.replace(",", "").split() if w not in {*COLOURS, *SHAPES, "a", "an"}]
            for text in (found.caption, found.negative)
        ]
        assert rest[0] == rest[1]


@given(scenes, variants)
def test_negatives_are_false_and_name_nothing_twice(scene, variant):
    here = {(thing.colour, thing.shape) for thing in scene.things}
    for found in negatives(scene, variant):
        named = names_in(found.negative)
        assert set(named) != here
        assert len(set(named)) == len(named)


@given(scenes)
def test_a_single_object_has_nobody_to_swap_with(scene):
    kinds = [found.kind for found in negatives(scene)]
    assert kinds[:2] == ["replace_colour", "replace_shape"]
    if len(scene.things) == 1:
        assert "swap_colour" not in kinds


def test_negatives_are_the_same_each_time_and_vary_with_the_variant():
    scene = sample_scene("test", 3, objects=(3, 3))
    assert negatives(scene, 1) == negatives(scene, 1)
    assert len({found.negative for variant in range(20) for found in negatives(scene, variant)}) > 30


def test_samples_have_them_where_they_are_asked_for():
    plain = open_source("world:test?objects=3&length=4")
    asked = open_source("world:test?objects=3&length=4&negatives=true&masks=true")
    assert not {"compositional.json", "instances.png"} & set(plain.read(0))
    kinds = set()
    for index in range(4):
        sample = asked.read(index)
        kinds |= {found["kind"] for found in sample["compositional.json"]}
        assert all(found["caption"] == sample["txt"] for found in sample["compositional.json"])
        sample.pop("instances.png")
        sample.pop("compositional.json")
        assert sample.keys() == plain.read(index).keys()
    assert kinds == set(NEGATIVE_KINDS)


@pytest.mark.parametrize("size", [48, 64])
def test_instances_number_the_regions(size):
    sample = open_source(f"world:test?objects=4&size={size}&length=3&masks=true").read(1)
    instances, regions = sample["instances.png"], sample["regions.json"]
    assert instances.shape == (size, size)
    assert set(instances.flatten().tolist()) <= set(range(len(regions) + 1))
    for number, region in enumerate(regions, 1):
        x0, y0, x1, y1 = map(int, region["box"])
        outside = instances.copy()
        outside[y0:y1, x0:x1] = 0
        assert number not in outside
        assert (instances[y0:y1, x0:x1] == number).any()
