"""Masked language modelling: what is chosen and hidden, the loss with soft labels, the mean over ranks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from collimate.losses.masked_tokens import (
    UNSCORED,
    choose_tokens,
    choose_words,
    hide_tokens,
    masked_token_losses,
    mean_of_chosen,
)
from collimate.testing import assert_same_on_ranks

VOCAB = 11


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def texts(seed, count, length):
    """Which tokens may be chosen, and which go on with a word."""
    eligible, continues = torch.rand(2, count, length, generator=seeded(seed)) < torch.tensor([0.8, 0.4])[:, None, None]
    return eligible, continues


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 2**16), st.integers(1, 5), st.integers(1, 9), st.floats(0, 1))
def test_words_are_chosen_whole_and_nothing_else_is(seed, count, length, rate):
    eligible, continues = texts(seed, count, length)
    chosen = choose_words(eligible, continues, rate, seeded(seed))
    assert not (chosen & ~eligible).any()
    for row in range(count):
        words: list[list[int]] = []
        for place in range(length):
            if continues[row, place] and words:
                words[-1].append(place)
            else:
                words.append([place])
        for word in words:
            asked = [bool(chosen[row, place]) for place in word if eligible[row, place]]
            assert len(set(asked)) <= 1
    assert not (choose_tokens(eligible, rate, seeded(seed)) & ~eligible).any()


@pytest.mark.parametrize("whole", [False, True])
def test_the_rate_is_that_of_tokens(whole):
    eligible, continues = texts(0, 4000, 20)
    chosen = choose_words(eligible, continues, 0.15, seeded(1)) if whole else choose_tokens(eligible, 0.15, seeded(1))
    assert abs(chosen[eligible].float().mean() - 0.15) < 0.01


def test_the_ends_of_the_rate():
    eligible, continues = texts(0, 50, 9)
    for choose in (choose_tokens, lambda e, rate: choose_words(e, continues, rate)):
        assert torch.equal(choose(eligible, 1.0), eligible)
        assert not choose(eligible, 0.0).any()


def test_draws_follow_the_generator_alone():
    eligible, continues = texts(0, 9, 9)
    ids = torch.arange(81).view(9, 9)
    for _ in range(2):
        torch.manual_seed(5)
        one = hide_tokens(ids, choose_words(eligible, continues, 0.5, seeded(3)), 4, 81, seeded(4))
        torch.manual_seed(6)
        two = hide_tokens(ids, choose_words(eligible, continues, 0.5, seeded(3)), 4, 81, seeded(4))
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.labels, two.labels)


def test_labels_are_what_was_hidden():
    ids = torch.randint(5, 50, (20, 10), generator=seeded(0))
    chosen = choose_tokens(torch.ones_like(ids, dtype=torch.bool), 0.5, seeded(1))
    masked = hide_tokens(ids, chosen, 4, 50, seeded(2))
    assert torch.equal(masked.chosen, chosen)
    assert torch.equal(torch.where(chosen, masked.labels, masked.ids), ids)
    assert (masked.labels[~chosen] == UNSCORED).all()
    assert (masked.ids[chosen] == 4).any()


# The loss ---------------------------------------------------------------------------------------------------------


def logits(seed, count=6, dtype=torch.float64):
    return 3 * torch.randn(count, VOCAB, generator=seeded(seed), dtype=dtype)


def labels(count=6):
    return torch.arange(count) * 7 % VOCAB


def test_it_is_the_equation():
    p, q = logits(0), logits(1)
    expected = [
        0.6 * cross_entropy(p[k], labels()[k]) + 0.4 * -(q[k].softmax(0) * p[k].softmax(0).log()).sum()
        for k in range(6)
    ]
    torch.testing.assert_close(masked_token_losses(p, labels(), q, 0.4), torch.stack(expected))
    hard = cross_entropy(p, labels(), reduction="none")
    torch.testing.assert_close(masked_token_losses(p, labels()), hard)
    torch.testing.assert_close(masked_token_losses(p, labels(), q, 0.0), hard)


def test_no_gradient_reaches_the_momentum_model():
    p, q = logits(0).requires_grad_(), logits(1).requires_grad_()
    masked_token_losses(p, labels(), q, 0.4).sum().backward()
    assert q.grad is None
    torch.testing.assert_close(p.grad, p.softmax(1) - (0.6 * torch.eye(VOCAB)[labels()] + 0.4 * q.softmax(1)))


def test_half_precision_is_widened():
    found = masked_token_losses(logits(0).bfloat16(), labels(), logits(1).bfloat16(), 0.4)
    assert found.dtype == torch.float32
    wide = masked_token_losses(logits(0).bfloat16().float(), labels(), logits(1).bfloat16().float(), 0.4)
    torch.testing.assert_close(found, wide)


@pytest.mark.parametrize(("alpha", "match"), [(0.4, "give them"), (1.5, "from 0 to 1"), (-0.1, "from 0 to 1")])
def test_a_share_of_nothing_is_refused(alpha, match):
    with pytest.raises(ValueError, match=match):
        masked_token_losses(logits(0), labels(), None, alpha)


def test_nothing_masked_costs_nothing_and_reaches_every_weight():
    weight = torch.randn(VOCAB, 3, requires_grad=True)
    tokens = torch.randn(4, 5, 3)
    none = torch.zeros(4, 5, dtype=torch.bool)
    losses = masked_token_losses(tokens[none] @ weight.T, torch.zeros(0, dtype=torch.int64))
    loss = mean_of_chosen(losses, none.sum(1))
    loss.backward()
    assert loss == 0
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def masked_loss(p, q, labels, weight):
    """As a method has it: each sample's sum and count, of which a rank may have none."""
    chosen = labels != UNSCORED
    losses = masked_token_losses(p[chosen] * weight, labels[chosen], q[chosen], 0.4)
    row = chosen.nonzero()[:, 0]
    return mean_of_chosen(losses.new_zeros(len(p)).index_add(0, row, losses), chosen.sum(1))


@pytest.mark.parametrize("masked", ["some", "on one rank", "none"])
def test_ranks_with_unequal_counts_are_one_process(masked):
    p, q = (logits(seed, 9 * 4).view(9, 4, VOCAB) for seed in (0, 1))
    given = torch.randint(VOCAB, (9, 4), generator=seeded(2))
    chosen = torch.rand(9, 4, generator=seeded(3)) < 0.4
    chosen[{"some": slice(0, 0), "on one rank": slice(2, None), "none": slice(None)}[masked]] = False
    rows = {"p": p, "q": q, "labels": given.masked_fill(~chosen, UNSCORED)}
    assert_same_on_ranks(masked_loss, rows, {"weight": torch.tensor(1.3, dtype=torch.float64)}, ranks=(2, 3))
