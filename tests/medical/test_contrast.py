"""Equalised contrast: what it must do to any picture; released numbers are in the golden tests."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate_medical import XRayProcessor
from collimate_medical.contrast import BINS, _clipped, equalized


def picture(seed, height=90, width=70, span=40):
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(height) / 9)[:, None] + np.cos(np.arange(width) / 7)
    return (100 + span / 4 * waves + rng.normal(0, 2, (height, width))).clip(0, 255).astype(np.uint8)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), height=st.integers(4, 150), width=st.integers(4, 150))
def test_any_size_fills_the_range(seed, height, width):
    found = equalized(picture(seed, height, width))
    assert (found.shape, found.dtype) == ((height, width), np.uint8)
    assert (found.min(), found.max()) == (0, 255)


def test_exposure_changes_nothing_and_local_contrast_grows():
    """What depends on the range of the values alone is the same of a darker and of a flatter picture."""
    original = picture(1)
    darker = original - 30
    assert np.array_equal(equalized(darker), equalized(original))
    faint = original.astype(float)
    faint[:, :35] = 100 + (faint[:, :35] - 100) / 6  # one half has hardly any contrast
    faint[0, 0], faint[-1, -1] = 0, 255
    found = equalized(faint.astype(np.uint8)).astype(float)
    before = faint[10:80, 4:30].std() / faint[10:80, 40:66].std()
    assert found[10:80, 4:30].std() / found[10:80, 40:66].std() > 1.5 * before


def test_a_picture_of_one_value_is_black():
    assert (equalized(np.full((20, 30), 77, np.uint8)) == 0).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), peaks=st.integers(1, 40))
def test_clipping_loses_no_pixel_and_keeps_the_limit(seed, peaks):
    rng = np.random.default_rng(seed)
    histogram = np.bincount(rng.choice(rng.integers(0, BINS, peaks), 784), minlength=BINS)
    found = _clipped(histogram, 7)
    assert found.max() <= 7
    assert found.sum() >= 784  # what raises to the limit may add some, as released code does


@pytest.mark.parametrize("equalize", [False, True])
def test_the_processor_gives_three_equal_channels(equalize):
    found = XRayProcessor(64, equalize=equalize)(picture(2))
    assert (found.shape, found.dtype) == ((3, 64, 64), torch.uint8)
    assert torch.equal(found[0], found[1])
    assert (int(found.max()) == 255) is equalize
