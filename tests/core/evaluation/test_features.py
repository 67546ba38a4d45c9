"""Features: each sample once and in order, on any number of ranks, whatever the batch and what is corrupt."""

import pytest
import torch

from collimate.evaluation.features import encode_all, encoder_of, extract
from collimate.testing import run_on_ranks

from .toys import ColourMethod, ColourPictures, TokenMethod

OPTIONS = {"device": "cpu", "also": ["label", "captions"]}


def everything(method, size, corrupt, batch_size, tokens):
    features = extract(
        method, ColourPictures(size, corrupt), ["image"], tokens=tokens, batch_size=batch_size, **OPTIONS
    )
    texts = encode_all(method, "text", ["red", "blue", "a green one"], tokens, batch_size=2, device="cpu")
    return features, texts


@pytest.mark.parametrize("method", [ColourMethod(0.1), TokenMethod()], ids=["pooled", "tokens"])
@pytest.mark.parametrize("corrupt", [(), (0, 7, 22)], ids=["whole", "corrupt"])
def test_ranks_and_batches_change_nothing(method, corrupt):
    tokens = isinstance(method, TokenMethod)
    alone, texts = everything(method, 23, corrupt, 23, tokens)
    assert alone.index.tolist() == [index for index in range(23) if index not in corrupt]
    assert alone.keys == [f"picture {index}" for index in alone.index.tolist()]
    assert [len(own) for own in alone.extras["captions"]] == [1 + index % 3 for index in alone.index.tolist()]
    assert alone.settings["unreadable"] == len(corrupt)
    runs = [everything(method, 23, corrupt, 4, tokens)]
    for ranks in (2, 3):
        runs += run_on_ranks(everything, [(method, 23, corrupt, 4, tokens)] * ranks)
    for found, found_texts in runs:
        assert found.keys == alone.keys
        assert found.extras["captions"] == alone.extras["captions"]
        assert torch.equal(found.extras["label"], alone.extras["label"])
        for one, other in ((found.encodings["image"], alone.encodings["image"]), (found_texts, texts)):
            torch.testing.assert_close(one.pooled, other.pooled)
            if tokens:
                torch.testing.assert_close(one.tokens, other.tokens)


def test_more_ranks_than_samples():
    alone, _ = everything(ColourMethod(), 2, (), 4, False)
    for found, _ in run_on_ranks(everything, [(ColourMethod(), 2, (), 4, False)] * 3):
        assert torch.equal(found.encodings["image"].pooled, alone.encodings["image"].pooled)


def test_a_limit_spreads_over_the_source():
    found = extract(ColourMethod(), ColourPictures(20), ["image"], limit=4, device="cpu")
    assert found.index.tolist() == [0, 5, 10, 15]


def test_the_model_is_left_in_its_mode():
    method = ColourMethod().train()
    extract(method, ColourPictures(3), ["image"], device="cpu")
    assert method.training


def test_what_cannot_be_encoded_is_named():
    with pytest.raises(ValueError, match="no processor for 'sound'"):
        extract(ColourMethod(), ColourPictures(3), ["sound"])
    with pytest.raises(ValueError, match="no encoder of 'image'"):
        encoder_of(ColourMethod(), "image")
    with pytest.raises(ValueError, match="no text"):
        encode_all(ColourMethod(), "text", [])
