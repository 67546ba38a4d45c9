"""Hard negatives and the matching loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from collimate.losses.matching import draw_negatives, matching_accuracy, matching_loss, negative_weights


def logits(size, seed=0):
    return 3 * torch.randn(size, size, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(2, 9), st.integers(0, 2**16), st.booleans())
def test_no_sample_is_its_own_negative_and_none_of_its_id(size, seed, with_ids):
    ids = torch.arange(size) % 2 if with_ids else None
    weights = negative_weights(logits(size, seed), ids)
    own = torch.arange(size) if ids is None else ids
    assert (weights[own[:, None] == own] == 0).all()
    drawn = draw_negatives(weights.repeat_interleave(20, 0)).view(size, 20)
    assert (own[drawn] != own[:, None]).all()


def test_weights_are_the_softmax_of_the_others():
    found = negative_weights(logits(5))
    wanted = logits(5).softmax(1) * (1 - torch.eye(5))
    torch.testing.assert_close(found, wanted)


def test_hardness_leads_from_any_negative_to_the_published_ones() -> None:
    scores = logits(5)
    easy, half, hard = (negative_weights(scores, hardness=hardness) for hardness in (0, 0.5, 1))
    others = ~torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(easy[others], torch.full((20,), 0.2))
    assert torch.equal(hard, negative_weights(scores))
    row = scores[0, 1:].argmax() + 1
    assert easy[0, row] / easy[0, 1:].sum() < half[0, row] / half[0, 1:].sum() < hard[0, row] / hard[0, 1:].sum()


def test_draws_follow_the_weights_and_the_generator():
    weights = negative_weights(logits(4)).repeat_interleave(4000, 0)
    drawn = draw_negatives(weights, torch.Generator().manual_seed(3))
    assert torch.equal(drawn, draw_negatives(weights, torch.Generator().manual_seed(3)))
    share = torch.nn.functional.one_hot(drawn, 4).view(4, 4000, 4).double().mean(1)
    expected = weights[::4000].double() / weights[::4000].double().sum(1, keepdim=True)
    deviation = (expected * (1 - expected) / 4000).sqrt()
    assert ((share - expected).abs() <= 5 * deviation).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_where_nothing_is_left_all_others_are_equally_likely(value):
    broken = logits(4)
    broken[1] = 0.0
    broken[1, 1] = value  # at 1e6 the softmax of all others underflows
    weights = negative_weights(broken, torch.tensor([0, 1, 2, 1]))
    assert weights[1].tolist() == [1, 0, 1, 0]
    torch.testing.assert_close(weights[0], negative_weights(logits(4))[0])
    draw_negatives(weights)


def test_a_batch_without_negatives_is_refused():
    with pytest.raises(ValueError, match="at least 2 a rank"):
        negative_weights(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="all 3 of the batch share the id 7"):
        negative_weights(torch.zeros(3, 3), torch.tensor([7, 7, 7]))
    with pytest.raises(ValueError, match=r"got \(2, 3\) logits"):
        negative_weights(torch.zeros(2, 3))


def test_the_loss_is_cross_entropy_with_the_true_pairs_first():
    pairs = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(matching_loss(pairs, 3), cross_entropy(pairs, labels))
    assert matching_loss(pairs.bfloat16(), 3).dtype == torch.float32
    assert matching_accuracy(torch.tensor([[1.0, 0.0]]).expand(9, 2), 3) == pytest.approx(2 / 3)
    assert matching_accuracy(torch.tensor([[0.0, 1.0]]), 1) == 1
