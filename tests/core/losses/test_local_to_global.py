"""The contrast of global with local vectors: the equation, the masks, the memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from collimate.kernels import tiles
from collimate.losses import local_to_global_loss
from collimate.testing import assert_close, assert_saved_memory_below


def draw(seed, samples, locals_, width=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(samples, width, generator=generator, dtype=dtype), dim=1)
    local_features = torch.randn(samples, locals_, width, generator=generator, dtype=dtype)
    mask = torch.rand(samples, locals_, generator=generator) > 0.3
    return features, local_features, mask


def dense(features, local_features, scale, mask):
    """The equation, term by term."""
    samples, count, _ = local_features.shape
    total = features.new_zeros(())
    for n in range(samples):
        exps = {
            (j, k): (scale * features[n] @ local_features[j, k]).exp()
            for j in range(samples)
            for k in range(count)
            if mask[j, k]
        }
        negatives = sum(value for (j, _), value in exps.items() if j != n)
        own = [value for (j, _), value in exps.items() if j == n]
        if own:
            total = total + sum(-(value / (value + negatives)).log() for value in own) / len(own)
    return total / samples


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 2**16), st.integers(1, 7), st.integers(1, 4), st.booleans())
def test_it_is_the_equation_whatever_the_tiles(seed, samples, count, masked):
    features, local_features, mask = draw(seed, samples, count)
    mask = mask if masked else torch.ones_like(mask)
    inputs = [features, torch.tensor(6.0, dtype=torch.float64)]
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CPU_TILE", (2, 3))
        for loss in (
            lambda g, s: local_to_global_loss(g, local_features, s, mask if masked else None),
            lambda g, s: dense(g, local_features, s, mask),
        ):
            leaves = [each.clone().requires_grad_() for each in inputs]
            value = loss(*leaves)
            gradients = torch.autograd.grad(value, leaves, materialize_grads=True) if value.requires_grad else ()
            results.append({"loss": value, **dict(zip(("features", "scale"), gradients, strict=False))})
    assert_close(results[0], results[1], 1e-9, "tiled against dense")


def test_locals_get_gradients_too():
    features, local_features, mask = draw(0, 4, 3)
    results = []
    for loss in (local_to_global_loss, dense):
        leaf = local_features.clone().requires_grad_()
        loss(features, leaf, 6.0, mask).backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results)
    assert (results[0][~mask] == 0).all()


def test_what_is_masked_moves_nothing():
    features, local_features, mask = draw(1, 5, 4)
    mask[2] = False  # a sample without locals
    other = torch.where(mask[..., None], local_features, 100.0)
    assert local_to_global_loss(features, local_features, 9.0, mask) == local_to_global_loss(features, other, 9.0, mask)


def test_the_start_is_the_logarithm_of_the_negatives():
    zeros = torch.zeros(6, 8, 5)
    expected = torch.tensor(1.0 + 5 * 8).log()
    torch.testing.assert_close(local_to_global_loss(zeros[:, 0], zeros, 10.0), expected)


def test_a_lone_sample_has_no_loss_and_no_gradient():
    features, local_features, _ = draw(0, 1, 4)
    features.requires_grad_()
    loss = local_to_global_loss(features, local_features, 9.0)
    loss.backward()
    assert loss == 0
    assert (features.grad == 0).all()


def test_large_scales_stay_finite():
    features, local_features, mask = draw(0, 6, 4, dtype=torch.float32)
    loss = local_to_global_loss(features.requires_grad_(), local_features, 1000.0, mask)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()


def test_no_logits_are_kept():
    features, local_features, mask = draw(0, 64, 16, dtype=torch.float32)
    features.requires_grad_()
    logits = 64 * 64 * 16 * 4  # bytes of one matrix of global with local vectors
    run = lambda: local_to_global_loss(features, local_features, 9.0, mask)  # noqa: E731
    assert_saved_memory_below(logits // 4, run, existing=[features, local_features, mask])


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="of the same samples"):
        local_to_global_loss(torch.zeros(3, 5), torch.zeros(2, 4, 5), 1.0)
    with pytest.raises(ValueError, match=r"mask is \(3, 3\)"):
        local_to_global_loss(torch.zeros(3, 5), torch.zeros(3, 4, 5), 1.0, torch.ones(3, 3, dtype=torch.bool))
