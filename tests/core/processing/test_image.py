"""ImageProcessor beyond the golden set: inputs of every kind, resizing, the device step."""

import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
    resize=st.sampled_from(["shortest", "squash"]),
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
    with pytest.raises(ValueError, match="'shortest' or 'squash'"):
        ImageProcessor(resize="pad")
