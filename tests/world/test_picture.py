"""The camera: boxes and masks against the pixels themselves."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate_world import COLOURS, SHAPES, TEXTURES, Light, Picture, Scene, Thing, sample_scene

scenes = st.builds(sample_scene, st.just("test"), st.integers(0, 2**31), st.just(0), st.sampled_from([(1, 1), (2, 4)]))
sizes = st.sampled_from([32, 64, 97])


def lone(shape: str, colour: str = "red", texture: str = "plain", **changes) -> Scene:
    thing = Thing(colour, shape, "large", texture, (0.3, 0.0, 2.2), 0.8)
    return Scene((0,), (replace(thing, **changes),), "black", Light(1.0, 0.0))


@settings(max_examples=40, deadline=None)
@given(scenes, sizes)
def test_boxes_fit_the_pixels_that_an_object_changes(scene, size):
    """Against a picture without the object: the box ends where its pixels do, but for tips thinner than half of one."""
    boxes = Picture(scene, size).boxes
    for i, box in enumerate(boxes):
        alone = replace(scene, things=(scene.things[i],), background="white")
        empty = replace(alone, things=())
        changed = np.any(Picture(alone, size).pixels != Picture(empty, size).pixels, axis=-1)
        y, x = np.nonzero(changed)
        x0, y0, x1, y1 = box
        assert 0 <= x0 < x1 <= size
        assert 0 <= y0 < y1 <= size
        tip = 5 if scene.things[i].shape == "crescent" else 3
        assert np.all(np.abs([x.min() - x0, y.min() - y0, x.max() + 1 - x1, y.max() + 1 - y1]) <= tip)


@settings(max_examples=40, deadline=None)
@given(scenes, sizes)
def test_masks_lie_in_their_boxes_and_apart(scene, size):
    picture = Picture(scene, size)
    assert picture.masks.sum(axis=0).max() <= 1
    for mask, (x0, y0, x1, y1) in zip(picture.masks, picture.boxes.astype(int), strict=True):
        outside = mask.copy()
        outside[y0:y1, x0:x1] = False
        assert not outside.any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), sizes)
def test_the_box_of_an_object_that_nothing_hides_is_that_of_its_mask(index, size):
    picture = Picture(sample_scene("test", index), size)
    y, x = np.nonzero(picture.masks[0])
    assert picture.boxes[0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_look_alike_at_any_size(shape):
    small, large = Picture(lone(shape), 48), Picture(lone(shape), 192)
    means = large.pixels.reshape(48, 4, 48, 4, 3).mean(axis=(1, 3))
    assert np.abs(means - small.pixels).mean() < 1.0
    assert small.masks.sum() * 16 == pytest.approx(large.masks.sum(), rel=0.08)


def test_shapes_colours_and_textures_are_told_apart():
    pictures = [
        Picture(lone(shape, colour, texture), 64).pixels
        for shape in SHAPES
        for colour in COLOURS
        for texture in TEXTURES
    ]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_up_is_up_and_right_is_right():
    column, row = 40, 12  # of the middle of an object a little right of and well above the middle
    x, z = ((column + 0.5) / 64 - 0.5) * 4, (0.5 - (row + 0.5) / 64) * 4 + 2
    box = Picture(lone("circle", position=(x, 0.0, z), radius=0.4), 64).boxes[0]
    assert ((box[:2] + box[2:]) / 2).tolist() == pytest.approx([column + 0.5, row + 0.5], abs=0.51)


def test_farther_is_smaller_and_nearer_hides():
    near, far = lone("square").things[0], replace(lone("square", "blue").things[0], position=(0.3, 1.5, 2.2))
    picture = Picture(replace(lone("square"), things=(near, far)), 64)
    (ax0, _, ax1, _), (bx0, _, bx1, _) = picture.boxes
    assert ax1 - ax0 > bx1 - bx0
    assert not picture.masks[1].any()
    assert Picture(replace(lone("square"), things=(far, near)), 64).pixels.tobytes() == picture.pixels.tobytes()


def test_a_scene_looks_the_same_each_time():
    scene = sample_scene("test", 5, objects=(3, 3))
    assert np.array_equal(Picture(scene).pixels, Picture(scene).pixels)
    assert Picture(scene).pixels.shape == (64, 64, 3)
    assert Picture(scene).pixels.dtype == np.uint8


def test_too_small_pictures_are_refused():
    with pytest.raises(ValueError, match="at least 8 pixels"):
        Picture(sample_scene("test", 0), 4)
