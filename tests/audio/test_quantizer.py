"""The quantizer: ranks, padding, evaluation, the first batch, dead codes."""

import pytest
import torch
from torch.nn.functional import normalize

from collimate.losses.masked_tokens import UNSCORED
from collimate.testing import run_on_ranks
from collimate_audio import EMAQuantizer
from collimate_audio.codebook import code_counts, nearest_codes, perplexity, spherical_kmeans

CODES, WIDTH = 6, 4


def vectors(clips=4, length=10, seed=0):
    return torch.randn(clips, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def quantizer(started=True, **changes):
    torch.manual_seed(3)
    made = EMAQuantizer(CODES, WIDTH, **changes)
    if started:
        made.codebook.copy_(normalize(torch.randn(CODES, WIDTH), dim=1))
        made.started.fill_(True)
    return made


def test_nearest_codes_are_the_nearest():
    found = nearest_codes(vectors(), vectors(1, CODES, 1)[0] * 3)
    distances = torch.cdist(vectors().flatten(0, 1), vectors(1, CODES, 1)[0] * 3)
    assert torch.equal(found.flatten(), distances.argmin(1))


def test_kmeans_finds_clusters():
    centres = torch.eye(WIDTH)
    points = normalize(centres.repeat_interleave(30, 0) + 0.1 * torch.randn(120, WIDTH), dim=1)
    means = spherical_kmeans(points, torch.tensor([0, 31, 62, 93]))
    assert (means * centres).sum(1).min() > 0.99


def test_perplexity_counts_codes_in_use():
    assert float(perplexity(torch.tensor([5.0, 5.0, 5.0, 0.0]))) == pytest.approx(3)
    assert float(perplexity(torch.zeros(4))) == pytest.approx(1)
    assert code_counts(torch.tensor([[0, 2], [2, UNSCORED]]), 3).tolist() == [1, 0, 2]


@pytest.mark.parametrize("split", [(2, 2), (1, 3), (0, 4), (1, 2, 1)], ids=str)
def test_the_same_on_ranks(split):
    """Codes, usage and loss are those of one process with all clips, whatever clips and padding each rank has."""
    encodings = torch.stack([vectors(), vectors(seed=1)])
    masks = torch.arange(10) < torch.tensor([[10], [3], [7], [5]])
    masks = torch.stack([masks, masks.flip(0)])
    codebook, usage, losses = step_on_rank(encodings, masks)
    parts = list(zip(encodings.split(split, 1), masks.split(split, 1), strict=True))
    results = run_on_ranks(step_on_rank, parts)
    for own_codebook, own_usage, _ in results:
        torch.testing.assert_close(own_codebook, codebook, rtol=0, atol=1e-6)
        torch.testing.assert_close(own_usage, usage)
    torch.testing.assert_close(torch.stack([own for *_, own in results]).mean(0), losses)


def step_on_rank(encodings, masks):
    made = quantizer()
    losses = [made(part, mask).loss.detach() for part, mask in zip(encodings, masks, strict=True)]
    return made.codebook, made.usage, torch.stack(losses)


def begin_on_rank(encodings, seed):
    made = quantizer(started=False, restart_below=0.9, decay=0.5)
    torch.manual_seed(seed)
    for part in encodings:
        made(part)
    return made.codebook, made.usage


def test_every_rank_begins_and_restarts_alike():
    """Each rank draws for itself, and has other clips; the codes are the same all the same."""
    parts = [(vectors(3, seed=seed)[:, None], seed) for seed in (5, 6)]
    (first, used), (second, used_too) = run_on_ranks(begin_on_rank, parts)
    assert torch.equal(first, second)
    assert torch.equal(used, used_too)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(CODES))


def test_padding_changes_nothing():
    encodings, mask = vectors(), torch.arange(10) < torch.tensor([[10], [3], [7], [0]])
    spoiled = torch.where(mask[..., None], encodings, 100.0)
    results = []
    for given in (encodings, spoiled):
        made = quantizer()
        found = made(given, mask)
        results.append((found.loss, made.codebook, made.usage, found.codes))
        assert (found.codes[~mask] == UNSCORED).all()
        assert (found.codes[mask] >= 0).all()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert float(results[0][2].sum()) == pytest.approx(0.01 * int(mask.sum()))


def test_evaluation_changes_nothing():
    made = quantizer().eval()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    found = made(vectors())
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert torch.equal(found.codes, made.codes(vectors()))


def test_codes_are_looked_up_before_they_move():
    made = quantizer(decay=0.0)
    before = made.codebook.clone()
    found = made(vectors())
    torch.testing.assert_close(found.vectors, before[found.codes])
    assert not torch.equal(made.codebook, before)


def test_the_first_batch_begins_with_kmeans():
    made = quantizer(started=False)
    made(vectors(8, 40))
    assert bool(made.started)
    torch.testing.assert_close(made.codebook.norm(dim=1), torch.ones(CODES))
    assert (code_counts(made.codes(vectors(8, 40)), CODES) > 0).all()


def test_fewer_vectors_than_codes():
    made = quantizer(started=False)
    made(vectors(1, 3))
    assert made.codebook.isfinite().all()


def test_no_codes_in_evaluation():
    with pytest.raises(RuntimeError, match="codebook is empty"):
        quantizer(started=False).eval()(vectors())
    with pytest.raises(RuntimeError, match="nothing but padding"):
        quantizer(started=False)(vectors(), torch.zeros(4, 10, dtype=torch.bool))


def test_dead_codes_are_restarted():
    used = []
    for restart_below in (0.0, 0.1):
        made = quantizer(restart_below=restart_below, decay=0.8)
        made.codebook[3:] = -normalize(torch.ones(WIDTH), dim=0)  # no vector is near these
        for seed in range(20):
            made(vectors(8, 20, seed).abs())
        used.append(float(perplexity(made.usage)))
        torch.testing.assert_close(made.codebook.norm(dim=1), torch.ones(CODES))
    assert used[0] < 3.5 < 4.5 < used[1]


def test_gradients_pass_through():
    encodings = vectors().requires_grad_()
    found = quantizer(beta=2.0)(encodings)
    cotangent = torch.randn(4, 10, WIDTH)
    straight = torch.autograd.grad((found.vectors * cotangent).sum(), encodings, retain_graph=True)[0]
    plain = torch.autograd.grad((normalize(encodings, dim=-1) * cotangent).sum(), encodings)[0]
    torch.testing.assert_close(straight, plain)
    assert torch.autograd.grad(found.loss, encodings)[0].abs().sum() > 0


@pytest.mark.parametrize("changes", [{"restart_below": 1.0}, {"restart_below": -0.1}, {"decay": 1.0}], ids=str)
def test_bad_arguments(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        EMAQuantizer(CODES, WIDTH, **changes)
