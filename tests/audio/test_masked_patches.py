"""Masked label prediction: what is hidden, that nothing of it leaks, and the loss on ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collimate.testing import assert_same_on_ranks
from collimate_audio import BEATs, LabelPredictor, hide_patches, label_accuracy, masked_label_loss

from .beats_toys import ENCODER
from .test_beats import banks


@given(
    lengths=st.lists(st.integers(0, 24), min_size=1, max_size=5),
    ratio=st.sampled_from([0.0, 0.5, 0.75, 0.99]),
    seed=st.integers(0, 99),
)
def test_what_is_hidden(lengths, ratio, seed):
    noise = torch.rand(len(lengths), 24, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(24) < torch.tensor(lengths)[:, None]
    visible = hide_patches(noise, mask, ratio)
    for row, length in enumerate(lengths):
        count = min(max(round(length * (1 - ratio)), 1), length)
        indices = visible.indices[row][visible.mask[row]]
        assert len(indices) == count
        assert (indices.diff() > 0).all()
        smallest = noise[row, :length].argsort()[:count].sort().values
        assert torch.equal(indices, smallest)
        assert int(visible.hidden[row].sum()) == length - count
        assert not visible.hidden[row][indices].any()
    assert not visible.hidden[~mask].any()


def test_bad_ratio():
    with pytest.raises(ValueError, match="share that is hidden"):
        hide_patches(torch.rand(1, 4), ratio=1.0)


@pytest.fixture(params=["zeros", "learned"])
def model(request):
    torch.manual_seed(0)
    return BEATs(**ENCODER).eval(), LabelPredictor(24, 9, 12, 1, 2, 24, request.param, 16, 12).eval()


def logits_of(model, bank, visible, frames=None, in_place=True):
    beats, predictor = model
    return predictor(
        beats.visible(bank, visible.indices, visible.mask, in_place), visible, beats.token_mask(bank, frames)
    )


@pytest.mark.parametrize("in_place", [True, False])
def test_hidden_patches_do_not_leak(model, in_place):
    bank, frames = banks(), torch.arange(70) < torch.tensor([[70], [40]])
    visible = hide_patches(torch.rand(2, 12), model[0].token_mask(bank, frames))
    squares = visible.hidden.view(2, 4, 3).repeat_interleave(16, 1).repeat_interleave(16, 2)
    spoiled = bank.clone()
    spoiled[:, :64][squares] += torch.randn(int(squares.sum()))
    found, other = (logits_of(model, given, visible, frames, in_place) for given in (bank, spoiled))
    assert torch.equal(found, other)
    shown = bank.clone()
    shown[0, :64][~squares[0]] += 1
    assert not torch.equal(logits_of(model, shown, visible, frames, in_place)[0], found[0])


def test_a_clip_is_predicted_alike_in_any_batch(model):
    bank, frames = banks(), torch.arange(70) < torch.tensor([[70], [40]])
    noise = torch.rand(2, 12)
    together = logits_of(model, bank, hide_patches(noise, model[0].token_mask(bank, frames)), frames)
    alone = logits_of(model, bank[1:, :40], hide_patches(noise[1:, :6]))
    torch.testing.assert_close(together[1:, :6], alone, rtol=0, atol=1e-5)


def test_only_hidden_patches_are_scored():
    logits, labels = torch.randn(2, 5, 4, requires_grad=True), torch.randint(4, (2, 5))
    hidden = torch.tensor([[True, False, True, False, False], [False] * 5])
    loss = masked_label_loss(logits, labels.masked_fill(~hidden, -100), hidden)
    loss.backward()
    assert (logits.grad[~hidden] == 0).all()
    expected = -logits.log_softmax(-1)[hidden].gather(1, labels[hidden][:, None]).mean()
    torch.testing.assert_close(loss, expected)


def test_nothing_hidden():
    logits = torch.randn(2, 5, 4, requires_grad=True)
    loss = masked_label_loss(logits, torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_on_ranks(label_smoothing):
    generator = torch.Generator().manual_seed(0)
    rows = {
        "logits": torch.randn(6, 5, 4, generator=generator),
        "labels": torch.randint(4, (6, 5), generator=generator),
        "hidden": torch.arange(5) < torch.tensor([5, 3, 1, 0, 4, 2])[:, None],
    }

    def loss(logits, labels, hidden):
        return masked_label_loss(logits, labels, hidden, label_smoothing)

    assert_same_on_ranks(loss, rows, ranks=(1, 2))


def test_accuracy_stands_beside_that_of_the_commonest_label():
    labels = torch.tensor([[1, 1, 1, 2]])
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 0, 1, 2]]), 3).float()
    found = label_accuracy(logits, labels, torch.ones(1, 4, dtype=torch.bool))
    assert (float(found.accuracy), float(found.majority)) == (0.75, 0.75)


def test_learning(model):
    """Labels that follow from the neighbours are learned from them."""
    beats, predictor = (part.train() for part in model)
    bank = torch.randn(6, 16, 16).repeat(1, 4, 3) + 0.1 * torch.randn(6, 64, 48)
    labels = torch.arange(6)[:, None].expand(6, 12)
    optimizer = torch.optim.Adam([*beats.parameters(), *predictor.parameters()], 1e-2)
    for _ in range(40):
        visible = hide_patches(torch.rand(6, 12))
        logits = logits_of(model, bank, visible)
        loss = masked_label_loss(logits, labels, visible.hidden)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = label_accuracy(logits, labels, visible.hidden)
    assert float(found.accuracy) > 0.6 > 2 * float(found.majority)


def test_bad_filling():
    with pytest.raises(ValueError, match="'mean'"):
        LabelPredictor(empty="mean")
