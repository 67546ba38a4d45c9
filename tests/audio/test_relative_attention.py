"""Attention with a gated relative bias: the plain formula, in both directions, without its memory."""

import pytest
import torch

from collimate.testing import saved_memory
from collimate_audio.relative_attention import relative_attention

CLIPS, HEADS, TOKENS, WIDTH = 2, 3, 11, 4


def inputs(gated=True, biased=True, per_clip=False, masked=True, tokens=TOKENS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    query, key, value = (draw(CLIPS, HEADS, tokens, WIDTH) for _ in range(3))
    gate = draw(CLIPS, HEADS, tokens, 1) if gated else None
    bias = draw(*([CLIPS] if per_clip else []), HEADS, tokens, tokens) if biased else None
    mask = torch.arange(tokens) < torch.tensor([[tokens], [tokens - 4]]) if masked else None
    return query, key, value, gate, bias, mask


def formula(query, key, value, gate, bias, mask):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + (bias if gate is None else gate * bias)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return scores.softmax(-1) @ value


def gradients(function, arguments):
    leaves = [argument for argument in arguments if argument is not None and argument.requires_grad]
    found = function(*arguments)
    upper = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [found, *torch.autograd.grad(found, leaves, upper.to(found.dtype))]


@pytest.mark.parametrize(("block", "kept"), [(33, 0), (33, 512), (2**17, 512)])
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"gated": False},
        {"masked": False},
        {"per_clip": True},
        {"gated": False, "biased": False},
    ],
)
def test_value_and_gradients_are_the_formulas(choice, block, kept, monkeypatch):
    monkeypatch.setattr("collimate_audio.relative_attention.BLOCK", block)
    monkeypatch.setattr("collimate_audio.relative_attention.KEPT", kept)
    arguments = inputs(**choice)
    for ours, exact in zip(gradients(relative_attention, arguments), gradients(formula, arguments), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-12)


def test_threads_change_nothing(monkeypatch):
    arguments = inputs(tokens=40)
    alone = gradients(relative_attention, arguments)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for one, other in zip(gradients(relative_attention, arguments), alone, strict=True):
        assert torch.equal(one, other)


def test_no_more_than_the_weights_is_kept_for_backward(monkeypatch):
    """And of long clips nothing but the output, as if there were no attention."""
    arguments = inputs(tokens=128, dtype=torch.float32)
    scores = CLIPS * HEADS * 128 * 128 * 4
    given = [each for each in arguments if each is not None]
    with saved_memory(given) as ours:
        found = relative_attention(*arguments)
    monkeypatch.setattr("collimate_audio.relative_attention.KEPT", 127)
    with saved_memory(given) as long:
        relative_attention(*arguments)
    with saved_memory(given) as theirs:
        formula(*arguments)
    assert ours.bytes == found.nbytes + scores
    assert long.bytes == found.nbytes
    assert theirs.bytes > scores


def test_what_does_not_learn_costs_nothing_and_changes_nothing():
    arguments = inputs()
    exact = gradients(formula, arguments)
    frozen = [argument if i in (0, 3) else argument.detach() for i, argument in enumerate(arguments)]
    found, query, gate = gradients(relative_attention, frozen)
    torch.testing.assert_close((found, query, gate), (exact[0], exact[1], exact[4]))


def test_half_precision_is_in_and_out_alone():
    half = inputs(dtype=torch.bfloat16)
    whole = [None if each is None else each.detach().to(torch.float64) for each in half[:5]]
    exact = gradients(formula, [*(each.requires_grad_() for each in whole), half[5]])
    for ours, right in zip(gradients(relative_attention, half), exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - right).norm() < 0.01 * right.norm()


def test_evaluation_is_training_without_gradients():
    arguments = inputs(dtype=torch.float32)
    with torch.no_grad():
        found = relative_attention(*arguments)
    torch.testing.assert_close(found, relative_attention(*arguments).detach())


def test_a_clip_of_padding_alone_attends_to_all_of_it():
    query, key, value, gate, bias, _ = inputs(dtype=torch.float32)
    mask = torch.zeros(CLIPS, TOKENS, dtype=torch.bool)
    found = relative_attention(query, key, value, gate, bias, mask)
    torch.testing.assert_close(found, value.mean(2, keepdim=True).expand_as(value))
    assert all(torch.isfinite(one).all() for one in torch.autograd.grad(found.sum(), (query, key, value, gate, bias)))


def test_dropout_drops_and_has_gradients():
    arguments = inputs(dtype=torch.float32)
    torch.manual_seed(0)
    found, *learnt = gradients(lambda *given: relative_attention(*given, dropout=0.5), arguments)
    assert not torch.allclose(found, relative_attention(*arguments))
    assert all(gradient.isfinite().all() and gradient.norm() > 0 for gradient in learnt)
