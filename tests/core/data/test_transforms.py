"""The training crop: in the right place, as Pillow would resize it, from no more pixels than needed."""

import io
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from collimate.data import ImageAugmentation, StrongImageAugmentation
from collimate.data.loading import seed_generators
from collimate.data.transforms import SpatialRandAugment, crop_and_resize, random_box
from collimate.processing import ImageProcessor


@pytest.fixture
def smooth() -> Image.Image:
    """A smooth colour picture of 800 x 600."""
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((800, 600), Image.Resampling.BICUBIC)


def _file(image: Image.Image, **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


@given(
    width=st.integers(4, 900),
    height=st.integers(4, 900),
    low=st.floats(0.05, 1.0),
    seed=st.integers(0, 100),
)
def test_boxes_lie_inside_with_the_area_and_shape_asked_for(width, height, low, seed):
    random.seed(seed)
    left, top, right, bottom = random_box(width, height, (low, 1.0), (3 / 4, 4 / 3))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    assert 3 / 4 * (h - 1) - 1 <= w <= 4 / 3 * (h + 1) + 1
    if 3 / 4 <= width / height <= 4 / 3:
        assert (w + 1) * (h + 1) >= low * width * height * 0.99


def test_boxes_are_drawn_as_torchvision_draws_them():
    from torchvision.transforms import RandomResizedCrop

    random.seed(0)
    torch.manual_seed(0)
    blank = torch.empty(3, 300, 400)
    ours = np.array([random_box(400, 300, (0.3, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)], float)
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], float)
    theirs = np.stack([theirs[:, 1], theirs[:, 0], theirs[:, 1] + theirs[:, 3], theirs[:, 0] + theirs[:, 2]], 1)
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 5  # pixels; the standard error is about 1.5
    assert np.abs(ours.std(0) - theirs.std(0)).max() < 5


@pytest.mark.parametrize("size", [64, 150, 500])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_agrees_with_pillow(smooth, size, interpolation):
    box = (100, 50, 700, 550)
    expected = smooth.resize((size, size), Image.Resampling[interpolation.upper()], box=box)
    found = crop_and_resize(smooth, box, size, interpolation).permute(1, 2, 0).numpy()
    difference = np.abs(found.astype(int) - np.asarray(expected, int))
    assert difference.max() <= 3
    assert difference.mean() < 0.05


@pytest.mark.parametrize("size", [16, 64, 224, 400])
def test_decoding_at_a_smaller_scale_changes_little(smooth, size):
    box = (37, 50, 731, 590)
    whole = Image.open(_file(smooth).fp).convert("RGB")
    expected = crop_and_resize(whole, box, size).int()
    found = crop_and_resize(_file(smooth), box, size).int()
    assert (
        found - expected
    ).abs().float().mean() < 3.5  # grey levels: the box may lie half a pixel of the smaller scale off
    assert found.shape == (3, size, size)


def test_a_jpeg_is_decoded_at_the_least_scale_that_will_do(smooth):
    for size, expected in ((64, (100, 75)), (140, (200, 150)), (200, (400, 300)), (400, (800, 600))):
        image = _file(smooth)
        crop_and_resize(image, (0, 0, 800, 600), size)
        assert image.size == expected


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16", "1"])
def test_every_mode_gives_rgb(smooth, mode):
    image = smooth.convert("L").convert(mode) if mode == "I;16" else smooth.convert(mode)
    pixels = ImageAugmentation()(image, ImageProcessor(32))
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), torch.uint8)


def test_further_transforms(smooth):
    processor = ImageProcessor(32)
    plain = ImageAugmentation(scale=(1, 1), ratio=(4 / 3, 4 / 3))(smooth, processor)
    flipped = ImageAugmentation(scale=(1, 1), ratio=(4 / 3, 4 / 3), horizontal_flip=1.0)(smooth, processor)
    assert torch.equal(flipped, plain.flip(-1))
    grey = ImageAugmentation(grayscale=1.0, color_jitter=(0.4, 0.4, 0.4, 0.1))(smooth, processor)
    assert torch.equal(grey[0], grey[1])
    doubled = ImageAugmentation(then=[lambda image: image // 2])(smooth, processor)
    assert doubled.max() <= 127


def test_strong_augmentation_leaves_shapes_and_repeats_with_its_seed(smooth):
    augment, processor = StrongImageAugmentation(), ImageProcessor(48)
    seed_generators(0, 1)
    first = [augment(smooth, processor) for _ in range(8)]
    seed_generators(0, 1)
    assert all(torch.equal(pixels, augment(smooth, processor)) for pixels in first)
    assert {(tuple(pixels.shape), pixels.dtype) for pixels in first} == {((3, 48, 48), torch.uint8)}
    assert len({pixels.numpy().tobytes() for pixels in first}) == 8


def test_strong_augmentation_does_each_thing_as_often_as_it_should(smooth):
    seed_generators(0, 0)
    augment, processor = StrongImageAugmentation(), ImageProcessor(16)
    drawn = [augment(smooth, processor) for _ in range(300)]
    grey = sum(bool((pixels[0] == pixels[1]).all()) for pixels in drawn) / 300
    assert 0.12 < grey < 0.28


def test_spatial_operations_change_no_hue():
    names = set(SpatialRandAugment._AUGMENTATION_SPACE)
    assert names == set(v2.RandAugment._AUGMENTATION_SPACE) - {"Color", "Contrast", "Posterize", "Solarize"}
    torch.manual_seed(0)
    augment = SpatialRandAugment(2, 7, num_magnitude_bins=11)
    grey = torch.randint(0, 256, (1, 24, 24), dtype=torch.uint8).expand(3, -1, -1).contiguous()
    for _ in range(50):
        pixels = augment(grey)
        assert torch.equal(pixels[0], pixels[1])
    shear, signed = SpatialRandAugment._AUGMENTATION_SPACE["ShearX"]
    assert signed
    assert float(shear(11, 24, 24)[7]) == pytest.approx(0.7 * 0.3)
