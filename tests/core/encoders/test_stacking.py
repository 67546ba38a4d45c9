"""Stacked towers: the composition of the small one's blocks, any adapter, folders, and depths that do not fit."""

import pytest
import torch

from collimate.configurable import build
from collimate.encoders import Bert, OpenClipTextEncoder, Stacked, TimmImageEncoder
from collimate.encoders.base import strides
from collimate.encoders.stacking import stack_into


def text(layers, **given):
    settings = {"width": 8, "heads": 2, "context_length": 6, "vocab_size": 11} | given
    return OpenClipTextEncoder(layers=layers, **settings).eval()


def picture(depth):
    sizes = {"embed_dim": 16, "depth": depth, "num_heads": 2, "patch_size": 16}
    return TimmImageEncoder("vit_tiny_patch16_224", 32, model_args=sizes).eval()


def test_the_grown_tower_runs_the_small_ones_blocks_over_and_over():
    torch.manual_seed(0)
    small, deep = text(2), text(6)
    stack_into(deep, small)
    blocks = small.tower.transformer.resblocks
    inputs = strides(3, 6, below=11)
    found = deep(inputs).tokens
    small.tower.transformer.resblocks = torch.nn.ModuleList([*blocks, *blocks, *blocks])
    torch.testing.assert_close(found, small(inputs).tokens)


@pytest.mark.parametrize(
    "make", [picture, lambda depth: Bert(vocab_size=11, width=8, heads=2, layers=depth, context_length=6)]
)
def test_any_adapter_can_grow(make):
    small, deep = make(2), make(4)
    stack_into(deep, small)
    given = small.state_dict()
    block = next(name for name in given if ".1." in name and name.endswith("weight"))
    for number in (1, 3):
        assert torch.equal(deep.state_dict()[block.replace(".1.", f".{number}.", 1)], given[block])


def test_a_recipe_grows_from_a_folder(tmp_path):
    small = text(2)
    small.save_pretrained(tmp_path / "small")
    grown = Stacked(text(4), pretrained=tmp_path / "small")
    assert grown.config()["init_args"].keys() == {"encoder"}
    assert build(grown.config()).config() == grown.config()
    assert set(grown.depths().values()) == {1, 2, 3, 4, 5}
    expected = text(4)
    stack_into(expected, small)
    inputs = strides(3, 6, below=11)
    torch.testing.assert_close(grown.eval()(inputs).pooled, expected(inputs).pooled)


def test_depths_and_sizes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match=r"3 layers .* cannot be stacked from 2"):
        stack_into(text(3), text(2))
    with pytest.raises(ValueError, match="the shallow encoder has"):
        stack_into(text(4), text(2, width=16))
