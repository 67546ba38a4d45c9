"""Regions in the processed picture: boxes that follow it through any resize, crop and padding, and their pixels."""

import json

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from collimate.data import open_source
from collimate.data.regions import Region
from collimate.evaluation.regions import inside, moved, numbered, placed
from collimate.processing import ImageProcessor

sides = st.integers(20, 150)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.sampled_from(["shortest", "squash", "longest"]), st.data())
def test_boxes_and_masks_follow_the_pixels(width, height, resize, data):
    """Against the picture itself: a white box on black, through the processor."""
    x0, y0 = data.draw(st.integers(0, width - 5)), data.draw(st.integers(0, height - 5))
    x1, y1 = data.draw(st.integers(x0 + 4, width)), data.draw(st.integers(y0 + 4, height))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    processor = ImageProcessor(32, interpolation="bilinear", resize=resize)
    shown = processor(Image.fromarray(pixels))[0].float() / 255
    placement = processor.placement(width, height)
    box = placed([Region((x0, y0, x1, y1), "it")], placement)
    within = inside(box, 32, 32)
    # Only pixels at an edge are neither; antialiasing spreads it over two.
    edge = (
        torch.nn.functional.max_pool2d(within.float()[None], 5, 1, 2)[0]
        + torch.nn.functional.max_pool2d(1 - within.float()[None], 5, 1, 2)[0]
        == 2
    )
    assert (within == (shown > 0.5))[~edge].all()

    mask = moved(torch.from_numpy(pixels[..., 0] // 255).long(), placement, 32, 32)
    assert (mask.bool() == within)[~edge].all()


def test_of_several_boxes_the_smallest_is_on_top():
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 1, 3, 3], [2, 2, 4, 4]])
    assert numbered(boxes, 4, 5).tolist() == [
        [1, 1, 1, 1, 0],
        [1, 2, 2, 1, 0],
        [1, 2, 3, 3, 0],
        [1, 1, 3, 3, 0],
    ]
    assert numbered(torch.empty(0, 4), 2, 2).tolist() == [[0, 0], [0, 0]]


def test_tables_have_regions_and_negatives_in_columns(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    boxes = [{"bbox": [1, 2, 3, 4], "category": "dog"}]
    pairs = [{"kind": "swap", "caption": "a", "negative": "b"}]
    row = {"file": "a.png", "captions": ["x"], "boxes": boxes, "compositional": pairs}
    (tmp_path / "table.jsonl").write_text(json.dumps(row) + "\n")
    sample = open_source(tmp_path / "table.jsonl").read(0)
    assert sample["regions.json"] == boxes
    assert sample["compositional.json"] == pairs
