"""Log-sum-exps over keys that do not learn: value, gradients, masks, memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate.kernels import tiles
from collimate.kernels.fixed_keys import row_logsumexp
from collimate.kernels.logsumexp import pair_logsumexp
from collimate.testing import assert_saved_memory_below


class Mask:
    def __init__(self, kept):
        self.kept = kept

    def __call__(self, rows, columns):
        return self.kept[rows, columns]


def draw(seed, queries, keys, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(count, 4, generator=generator, dtype=dtype) for count in (queries, keys))
    return query, key, torch.rand(queries, keys, generator=generator) > 0.5


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 2**16), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans())
def test_it_is_torchs_logsumexp_whatever_the_tiles(seed, queries, keys, masked, normalize):
    query, key, kept = draw(seed, queries, keys)
    kept = kept if masked else torch.ones_like(kept)
    inputs = [query, torch.tensor(5.0, dtype=torch.float64)]

    def dense(x, s):
        unit = torch.nn.functional.normalize if normalize else lambda features: features
        logits = s * unit(x) @ unit(key).T
        rows = [row[own].logsumexp(0) if own.any() else row.sum() * 0 for row, own in zip(logits, kept, strict=True)]
        return torch.stack(rows)

    def ours(x, s):
        found = row_logsumexp(x, key, s, Mask(kept) if masked else None, normalize)
        assert torch.equal(found == -torch.inf, ~kept.any(1))
        return found

    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CPU_TILE", (2, 3))
        for run in (ours, dense):
            leaves = [each.clone().requires_grad_() for each in inputs]
            rows = run(*leaves).masked_fill(~kept.any(1), 0)
            results.append((rows.detach(), *torch.autograd.grad((rows * torch.arange(1, queries + 1)).sum(), leaves)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_keys_that_learn_after_all_get_their_gradient():
    query, key, _ = draw(0, 5, 7)
    results = []
    for run in (row_logsumexp, lambda *given: pair_logsumexp(*given, torch.ones(7), None)[0]):
        leaf = key.clone().requires_grad_()
        run(query, leaf, torch.tensor(3.0)).sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("scale", [0.01, 100.0, 1000.0])
def test_float32_keeps_the_small_shares(scale):
    query, key, _ = draw(1, 6, 50, torch.float32)
    found, wanted = (
        torch.autograd.functional.vjp(
            lambda x, run=run: run(x, key, torch.tensor(scale)).to(x.dtype), query, torch.ones(6)
        )
        for run in (row_logsumexp, lambda x, y, s: pair_logsumexp(x, y, s, s.expand(50), None)[0])
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_nothing_of_the_size_of_the_pairs_is_kept():
    query, key, _ = draw(0, 64, 2000, torch.float32)
    query.requires_grad_()
    limit = 3 * query.nbytes
    assert_saved_memory_below(limit, lambda: row_logsumexp(query, key, torch.tensor(3.0)).sum(), existing=[query])
