"""ImageProcessor beyond the golden set: inputs of every kind, resizing, the device step."""

import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import v2

from collimate.configurable import build
from collimate.processing import ImageProcessor


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def test_every_way_to_hand_over_a_picture_gives_the_same(picture, tmp_path):
    processor = ImageProcessor(24)
    expected = processor(picture)
    file = io.BytesIO()
    picture.save(file, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(file.getvalue())
    for raw in (np.asarray(picture), file.getvalue(), path, str(path)):
        assert torch.equal(processor(raw), expected)


def test_what_is_no_picture_is_named():
    with pytest.raises(TypeError, match="got a int"):
        ImageProcessor()(3)


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    mode=st.sampled_from(["RGB", "L", "RGBA", "1", "P", "CMYK", "LA"]),
    resize=st.sampled_from(["shortest", "squash", "longest"]),
)
def test_any_picture_becomes_a_square_of_bytes(width, height, mode, resize):
    pixels = ImageProcessor(16, resize=resize)(Image.new("RGB", (width, height), (9, 99, 200)).convert(mode))
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.uint8


def test_squash_keeps_the_whole_picture_and_shortest_its_centre():
    half = Image.new("RGB", (64, 16))
    half.paste((255, 255, 255), (0, 0, 8, 16))  # white only at the far left
    assert ImageProcessor(16, resize="squash")(half)[:, 8, 0].min() > 200
    assert ImageProcessor(16, resize="shortest")(half).max() == 0


def test_longest_keeps_the_whole_picture_and_its_shape():
    white = Image.new("RGB", (64, 16), (255, 255, 255))
    pixels = ImageProcessor(16, resize="longest")(white)
    assert pixels[:, 6:10].min() == 255
    assert pixels[:, :6].max() == pixels[:, 10:].max() == 0
    palette = Image.new("P", (8, 4))
    palette.putpalette([250, 250, 250, 0, 0, 0])
    assert ImageProcessor(8, resize="longest")(palette)[:, 0].max() == 0, "padding is black, not the first colour"


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 150), height=st.integers(1, 150), size=st.sampled_from([16, 31, 64]))
def test_longest_pads_as_open_clip_does(width, height, size):
    assume(min(width, height) / max(width, height) * size >= 1)  # it resizes longer pictures to nothing
    picture = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))
    theirs = image_transform(size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode="longest")(picture)
    ours = ImageProcessor(size, resize="longest")(picture)
    assert torch.equal(ours, (theirs * 255).round().to(torch.uint8))


def test_finish_normalises_bytes_and_leaves_floats():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    processor = ImageProcessor(4, mean, std)
    batch = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = v2.functional.normalize(batch.float() / 255, list(mean), list(std))
    torch.testing.assert_close(processor.finish(batch), expected, atol=1e-6, rtol=0)
    assert processor.finish(expected) is expected


def test_configuration_and_pickle_give_the_same_processor(picture):
    processor = ImageProcessor(20, interpolation="bilinear", resize="squash")
    for again in (build(processor.config()), pickle.loads(pickle.dumps(processor))):
        assert torch.equal(again(picture), processor(picture))


def test_unknown_resize_is_refused():
    with pytest.raises(ValueError, match="'shortest', 'squash' or 'longest'"):
        ImageProcessor(resize="pad")
