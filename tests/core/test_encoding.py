import pytest
import torch

from collimate.encoding import Encoding


def test_says_what_does_not_fit():
    pooled, tokens = torch.zeros(2, 4), torch.zeros(2, 6, 4)
    with pytest.raises(ValueError, match="without tokens"):
        Encoding(pooled, mask=torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="6 tokens"):
        Encoding(pooled, tokens, grid=(2, 2))
    with pytest.raises(ValueError, match="mask"):
        Encoding(pooled, tokens, mask=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="no tokens"):
        _ = Encoding(pooled).token_mask


def test_tokens_may_lie_in_front_of_the_grid():
    encoding = Encoding(torch.zeros(2, 4), torch.zeros(2, 7, 4), grid=(2, 3), prefix=1)
    assert encoding.to(torch.float16).prefix == encoding.replace(pooled=torch.ones(2, 4)).prefix == 1
    joined = Encoding.cat([encoding, encoding])
    assert (joined.grid, joined.prefix) == ((2, 3), 1)
    with pytest.raises(ValueError, match="6 cells for 7 tokens, of which 0 lie in front"):
        Encoding(torch.zeros(2, 4), torch.zeros(2, 7, 4), grid=(2, 3))


def test_no_mask_means_all_real():
    assert Encoding(torch.zeros(2, 4), torch.zeros(2, 6, 4)).token_mask.all()


def test_cat_pads_unequal_lengths_and_masks_them():
    long = Encoding(torch.zeros(1, 4), torch.ones(1, 3, 4), grid=(1, 3))
    short = Encoding(torch.ones(2, 4), torch.ones(2, 2, 4), mask=torch.tensor([[True, False], [True, True]]))
    joined = Encoding.cat([long, short])
    assert joined.pooled.shape == (3, 4)
    assert joined.tokens.shape == (3, 3, 4)
    assert joined.mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert joined.grid is None
    even = Encoding.cat([long, long])
    assert even.mask is None
    assert even.grid == (1, 3)
    assert Encoding.cat([long, Encoding(torch.zeros(1, 4))]).tokens is None


def test_to_keeps_the_mask_boolean():
    encoding = Encoding(torch.zeros(1, 4), torch.ones(1, 3, 4), torch.ones(1, 3, dtype=torch.bool)).to(torch.float16)
    assert encoding.tokens.dtype == torch.float16
    assert encoding.mask.dtype == torch.bool


def test_is_frozen_but_replaceable():
    encoding = Encoding(torch.zeros(1, 4))
    with pytest.raises(AttributeError):
        encoding.pooled = torch.ones(1, 4)
    assert encoding.replace(pooled=torch.ones(1, 4)).pooled.sum() == 4


def test_the_pooled_vector_can_stand_before_a_grid():
    first = Encoding(torch.ones(2, 3), torch.zeros(2, 4, 3), grid=(2, 2)).pooled_first()
    assert first.tokens.shape == (2, 5, 3)
    assert (first.grid, first.prefix) == ((2, 2), 1)
    assert torch.equal(first.tokens[:, 0], first.pooled)
    with pytest.raises(ValueError, match="masked"):
        Encoding(torch.ones(2, 3), torch.zeros(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)).pooled_first()
