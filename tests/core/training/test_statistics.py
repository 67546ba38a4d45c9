import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from collimate.training.statistics import effective_rank, similarity_gap


@settings(deadline=None, max_examples=25)
@given(size=st.integers(2, 20), seed=st.integers(0, 100))
def test_gap_equals_the_dense_form(size: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, size, 5, generator=generator)
    cosines = normalize(first, dim=-1) @ normalize(second, dim=-1).T
    diagonal = torch.eye(size, dtype=torch.bool)
    expected = cosines[diagonal].mean() - cosines[~diagonal].mean()
    torch.testing.assert_close(similarity_gap(first, second), expected, atol=1e-5, rtol=1e-5)


def test_effective_rank_counts_dimensions_in_use():
    torch.manual_seed(0)
    axes = torch.cat([torch.eye(8), -torch.eye(8)])
    torch.testing.assert_close(effective_rank(axes), torch.tensor(8.0), atol=1e-3, rtol=0)
    line = torch.randn(50, 1) * torch.randn(1, 8)
    assert effective_rank(line) < 1.01
    assert torch.isfinite(effective_rank(torch.zeros(4, 3)))
