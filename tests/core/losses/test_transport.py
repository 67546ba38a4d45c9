"""The Sinkhorn divergence against the equations sample by sample in float64, and CTC against all alignments."""

import math
from itertools import groupby, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate.losses.transport import ctc_losses, is_alignable, sinkhorn_divergences
from collimate.testing import assert_saved_memory_below


def softmin(epsilon, costs, h):
    return -epsilon * (h[None] - costs / epsilon).logsumexp(1)


def dense(x, y, p=2, blur=0.05, scaling=0.5, position_weight=0.0, normalize=False):
    """W of one sample in float64 by the written-out schedule; differentiable by autograd through the last step."""
    x, y = (torch.nn.functional.normalize(each, dim=1) if normalize else each for each in (x.double(), y.double()))
    if position_weight and len(x) > 1 and len(y) > 1:
        x, y = (torch.cat([e, position_weight * torch.linspace(0, 1, len(e)).double()[:, None]], 1) for e in (x, y))

    def cost(one, other):
        squares = (one[:, None] - other.detach()[None]).square().sum(2)
        return squares / 2 if p == 2 else squares.clamp_min(1e-8).sqrt()

    every = torch.cat([x, y]).detach()
    d = float((every.amax(0) - every.amin(0)).norm())
    between = np.arange(p * math.log(d), p * math.log(blur), p * math.log(scaling))
    temperatures = [d**p, *np.exp(between).tolist(), blur**p]
    a, b = (torch.full((len(e),), -math.log(len(e)), dtype=torch.float64) for e in (x, y))
    xy, yx, xx, yy = cost(x, y), cost(y, x), cost(x, x), cost(y, y)
    with torch.no_grad():
        f, g, f_x, g_y = (softmin(d**p, c, h) for c, h in ((xy, b), (yx, a), (xx, a), (yy, b)))
        for e in temperatures:
            new = (
                softmin(e, xy, b + g / e),
                softmin(e, yx, a + f / e),
                softmin(e, xx, a + f_x / e),
                softmin(e, yy, b + g_y / e),
            )
            f, g, f_x, g_y = ((old + step) / 2 for old, step in zip((f, g, f_x, g_y), new, strict=True))
    e = blur**p
    f, g, f_x, g_y = (
        softmin(e, xy, b + g / e),
        softmin(e, yx, a + f / e),
        softmin(e, xx, a + f_x / e),
        softmin(e, yy, b + g_y / e),
    )
    return (f - f_x).mean() + (g - g_y).mean()


def clouds(sizes, width=5, seed=0, scale=1.0, dtype=torch.float32):
    """Padded clouds of (S, T) points for each sample, garbage where there is padding, and their masks."""
    generator = torch.Generator().manual_seed(seed)
    padded = []
    for lengths in zip(*sizes, strict=True):
        mask = torch.arange(max(lengths) + 2) < torch.tensor(lengths)[:, None]
        points = scale * torch.randn(len(sizes), max(lengths) + 2, width, generator=generator, dtype=dtype)
        padded.append((points.masked_fill(~mask[..., None], 1e6).requires_grad_(), mask))
    (x, x_mask), (y, y_mask) = padded
    return x, y, x_mask, y_mask


SIZES = [(9, 4), (1, 5), (6, 1), (12, 12), (2, 2)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position_weight": 1.0},
        {"position_weight": 0.3, "normalize": True},
        {"blur": 0.2, "scaling": 0.8},
        {"blur": 50.0},  # wider than the clouds: two steps
        {"p": 1, "blur": 0.1},
    ],
)
def test_each_sample_of_a_batch_is_as_the_equations_have_it_alone(options):
    x, y, x_mask, y_mask = clouds(SIZES, dtype=torch.float64)
    found = sinkhorn_divergences(x, y, x_mask, y_mask, **options)
    weights = torch.arange(1.0, len(SIZES) + 1, dtype=torch.float64)
    gradients = torch.autograd.grad((weights * found).sum(), (x, y))
    alone = torch.stack([dense(x[n, :s], y[n, :t], **options) for n, (s, t) in enumerate(SIZES)])
    wanted = torch.autograd.grad((weights * alone).sum(), (x, y))
    torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-9)
    for got, right in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("costs", [1, 500, 2000])
def test_fewer_costs_at_a_time_change_nothing(costs):
    x, y, x_mask, y_mask = clouds(SIZES, dtype=torch.float64)
    for p in (1, 2):
        whole, parts = (sinkhorn_divergences(x, y, x_mask, y_mask, p=p, costs=each) for each in (2**24, costs))
        torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)
        for one, other in zip(*(torch.autograd.grad(each.sum(), (x, y)) for each in (whole, parts)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_the_gradient_is_nearly_that_of_the_value():
    """It is that of the last step alone; with a schedule near convergence, finite differences agree."""
    x, y, *_ = clouds([(5, 4)], width=3, dtype=torch.float64)
    options = {"blur": 2.0, "scaling": 0.98}
    x, y = x.detach()[:, :5], y.detach()[:, :4]
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(sinkhorn_divergences(x, y, **options).sum(), x)
    with torch.no_grad():
        one, other = (sinkhorn_divergences(x + step * direction, y, **options).sum() for step in (1e-4, -1e-4))
    assert float((gradient * direction).sum()) == pytest.approx(float(one - other) / 2e-4, rel=2e-3)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 2**16), st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 20), st.sampled_from([0.0, 1.0]))
def test_it_behaves_as_a_divergence(seed, size, other, scale, weight):
    x, y, x_mask, y_mask = clouds([(size, other)], seed=seed, scale=scale)
    options = {"position_weight": weight}
    found = sinkhorn_divergences(x, y, x_mask, y_mask, **options)
    torch.testing.assert_close(found, sinkhorn_divergences(y, x, y_mask, x_mask, **options), rtol=1e-3, atol=1e-3)
    assert found > -1e-3 * scale**2
    same = sinkhorn_divergences(x, x, x_mask, x_mask, **options)
    assert same.abs() < 1e-4 * scale**2
    moved = sinkhorn_divergences(x + 3.0, y + 3.0, x_mask, y_mask, **options)
    torch.testing.assert_close(moved, found, rtol=1e-3, atol=1e-3 * scale**2)


def test_positions_make_crossing_dear():
    x = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0))
    reversed_x = x.flip(1)
    assert sinkhorn_divergences(x, reversed_x).abs() < 1e-4
    assert sinkhorn_divergences(x, reversed_x, position_weight=1.0) > 0.05
    assert sinkhorn_divergences(x, x, position_weight=1.0).abs() < 1e-4


@pytest.mark.parametrize("scale", [1.0, 32.0])
def test_float32_is_near_float64_for_layer_normed_states(scale):
    x, y, x_mask, y_mask = clouds([(40, 12), (25, 7)], width=256, scale=scale)
    single = sinkhorn_divergences(x, y, x_mask, y_mask, position_weight=1.0)
    double = sinkhorn_divergences(x.double(), y.double(), x_mask, y_mask, position_weight=1.0)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=0)


def test_half_precision_points_and_autocast_give_float32():
    x, y, x_mask, y_mask = clouds([(7, 3)])
    with torch.autocast("cpu", torch.bfloat16):
        found = sinkhorn_divergences(x.bfloat16(), y.bfloat16(), x_mask, y_mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sinkhorn_divergences(x.bfloat16().float(), y.bfloat16().float(), x_mask, y_mask))


def test_a_side_without_points_counts_nothing_and_coinciding_points_are_no_danger():
    x, y, x_mask, y_mask = clouds([(4, 3), (4, 3)])
    y_mask[1] = False
    found = sinkhorn_divergences(x, y, x_mask, y_mask, position_weight=1.0)
    gradients = torch.autograd.grad(found.sum(), (x, y))
    assert found[1] == 0
    assert all(torch.isfinite(each).all() and (each[1] == 0).all() for each in gradients)
    assert (gradients[0][0, 4:] == 0).all()
    point = torch.ones(1, 1, 3, requires_grad=True)
    same = sinkhorn_divergences(point, point.detach().expand(1, 5, 3))
    same.backward()
    assert same.abs() < 1e-6
    assert torch.isfinite(point.grad).all()


def test_nothing_of_the_iterations_is_kept():
    x, y = (torch.randn(4, size, 16).requires_grad_() for size in (300, 200))
    points = 4 * 500 * 16 * 4
    assert_saved_memory_below(3 * points, lambda: sinkhorn_divergences(x, y, scaling=0.9).sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.zeros(2, 3, 4)}, "of one width"),
        ({"y": torch.zeros(1, 3, 5)}, "equally many samples"),
        ({"x_mask": torch.ones(2, 3, dtype=torch.bool)}, "x_mask is"),
        ({"p": 3}, "p is 1 or 2"),
        ({"blur": 0.0}, "blur must be positive"),
        ({"scaling": 1.0}, "scaling between"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"x": torch.zeros(2, 6, 5), "y": torch.zeros(2, 3, 5), **change}
    with pytest.raises(ValueError, match=message):
        sinkhorn_divergences(**arguments)


# CTC ------------------------------------------------------------------------------------------------------------


def by_all_paths(scores, labels, blank):
    """-log Σ over all sequences of ids that collapse to the labels."""
    frames, ids = scores.shape
    total = [
        sum(scores[place, each] for place, each in enumerate(path))
        for path in product(range(ids), repeat=frames)
        if [each for each, _ in groupby(path) if each != blank] == labels
    ]
    return -torch.stack(total).logsumexp(0)


def test_ctc_sums_over_all_alignments():
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[0, 1, 9], [2, 2, 9], [1, 9, 9]])
    mask = torch.arange(5) < torch.tensor([5, 4, 2])[:, None]
    label_mask = labels != 9
    found = ctc_losses(logits, labels.masked_fill(~label_mask, 0), mask, label_mask, blank=3)
    for number in range(3):
        scores = logits[number, : mask[number].sum()].log_softmax(-1)
        wanted = by_all_paths(scores, labels[number, : label_mask[number].sum()].tolist(), 3)
        torch.testing.assert_close(found[number], wanted)


def test_more_labels_than_frames_count_nothing_and_are_told():
    logits = torch.randn(3, 4, 5, requires_grad=True)
    labels = torch.tensor([[1, 2, 3, 4], [1, 1, 1, 0], [1, 2, 0, 0]])
    label_mask = labels > 0
    mask = torch.arange(4) < torch.tensor([3, 4, 4])[:, None]
    found = ctc_losses(logits, labels, mask, label_mask, blank=0)
    assert is_alignable(labels, mask, label_mask).tolist() == [False, False, True]
    found.sum().backward()
    assert found.tolist()[:2] == [0, 0]
    assert found[2] > 0
    assert (logits.grad[:2] == 0).all()
