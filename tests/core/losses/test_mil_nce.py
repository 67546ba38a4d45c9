"""MIL-NCE: the equations, missing candidates, bounds, huge logits, ranks, and what it refuses."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from collimate.losses import (
    clip_loss,
    mil_nce_loss,
    mil_nce_losses,
    symmetric_mil_nce_loss,
    symmetric_mil_nce_losses,
)
from collimate.testing import assert_same_on_ranks

SCALE = 1 / 0.07


def features(size=6, candidates=3, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(size, dim, generator=generator)
    return query, torch.randn(size, candidates, dim, generator=generator) + query[:, None]


def some_given(size=6, candidates=3):
    given = torch.rand(size, candidates, generator=torch.Generator().manual_seed(1)) < 0.6
    given[1], given[0, 0] = False, True
    return given


def dense(query, candidates, given, form):
    """The equations term by term, float64."""
    query, candidates = normalize(query.double(), dim=-1), normalize(candidates.double(), dim=-1)
    e = (SCALE * torch.einsum("id,jcd->ijc", query, candidates)).exp() * given
    found = []
    for i in range(len(query)):
        own, rows, columns = e[i, i].sum(), e[i].sum(), e[:, i].sum()
        if not given[i].any():
            found.append(torch.tensor(0.0, dtype=torch.float64))
        elif form == "symmetric":
            found.append(rows.log() + columns.log() - 2 * own.log())
        else:
            found.append((rows + columns - (own if form == "once" else 0)).log() - own.log())
    return torch.stack(found)


def losses_of(form, *features, **options):
    if form == "symmetric":
        return symmetric_mil_nce_losses(*features, SCALE, **options)
    return mil_nce_losses(*features, SCALE, positives=form, **options)


@pytest.mark.parametrize("form", ["once", "twice", "symmetric"])
@pytest.mark.parametrize("partly", [False, True])
def test_the_equations(form, partly):
    query, candidates = (each.requires_grad_() for each in features())
    given = some_given() if partly else torch.ones(6, 3, dtype=torch.bool)
    wanted = dense(query, candidates, given, form)
    found = losses_of(form, query, candidates, given=given if partly else None)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        *(torch.autograd.grad(each.sum(), (query, candidates)) for each in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_sample_without_candidates_costs_nothing_but_stays_a_negative():
    query, candidates = (each.requires_grad_() for each in features())
    losses = mil_nce_losses(query, candidates, SCALE, given=some_given())
    assert float(losses.detach()[1]) == 0
    gradient = torch.autograd.grad(losses.sum(), (query, candidates))
    assert bool(gradient[0][1].abs().sum() > 0)
    assert float(gradient[1][1].abs().sum()) == 0
    mean = mil_nce_loss(query, candidates, SCALE, given=some_given())
    torch.testing.assert_close(mean, losses.sum() / 5)


def test_without_any_candidate_all_is_zero():
    query, candidates = (each.requires_grad_() for each in features())
    none = torch.zeros(6, 3, dtype=torch.bool)
    for loss in (mil_nce_loss, symmetric_mil_nce_loss):
        value = loss(query, candidates, SCALE, given=none)
        assert float(value.detach()) == 0
        assert all(float(each.abs().sum()) == 0 for each in torch.autograd.grad(value, (query, candidates)))


def test_with_one_candidate_the_symmetric_form_is_twice_clips_loss():
    query, candidates = features(candidates=1)
    wanted = 2 * clip_loss(query, candidates[:, 0], SCALE)
    torch.testing.assert_close(symmetric_mil_nce_loss(query, candidates, SCALE), wanted)


def test_a_lone_or_perfect_sample_reaches_the_floor():
    query, candidates = features(1)
    assert float(mil_nce_loss(query, candidates, SCALE)) == pytest.approx(0, abs=1e-6)
    twice = mil_nce_loss(query, candidates, SCALE, positives="twice")
    assert float(twice) == pytest.approx(math.log(2), abs=1e-6)
    far = 40 * torch.eye(4)
    assert float(mil_nce_loss(far, far[:, None], 1.0, normalize=False)) == pytest.approx(0, abs=1e-6)


def test_one_good_candidate_is_enough():
    """Wrong candidates beside the right one cost far less than the wrong ones alone."""
    query, candidates = features(16, 4, 32)
    wrong = torch.randn(candidates.shape, generator=torch.Generator().manual_seed(5))
    one_right = torch.cat([query[:, None], wrong[:, 1:]], 1)
    assert mil_nce_loss(query, one_right, SCALE) < 0.2 * mil_nce_loss(query, wrong, SCALE)


def test_huge_logits_stay_finite():
    query, candidates = (100 * each for each in features())
    query.requires_grad_()
    loss = mil_nce_loss(query, candidates, 1.0, normalize=False)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(query.grad).all()


@pytest.mark.parametrize("form", ["once", "symmetric"])
def test_on_ranks(form):
    query, candidates = features()

    def loss(query, candidates, given, scale):
        if form == "symmetric":
            return symmetric_mil_nce_loss(query, candidates, scale, given=given)
        return mil_nce_loss(query, candidates, scale, given=given)

    rows = {"query": query, "candidates": candidates, "given": some_given()}
    assert_same_on_ranks(loss, rows, {"scale": torch.tensor(5.0)}, splits=[[3, 3], [1, 5]])


def test_what_does_not_fit_is_refused():
    query, candidates = features()
    with pytest.raises(ValueError, match=r"\(n, C, D\)"):
        mil_nce_loss(query, candidates[:, 0], SCALE)
    with pytest.raises(ValueError, match="whether it is there"):
        mil_nce_loss(query, candidates, SCALE, given=torch.ones(6, dtype=torch.bool))
    with pytest.raises(ValueError, match="'once' or 'twice'"):
        mil_nce_loss(query, candidates, SCALE, positives="thrice")  # type: ignore[arg-type]
