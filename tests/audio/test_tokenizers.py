"""Tokenizers: labels that depend on nothing else, padding, and distillation on ranks."""

import pytest
import torch

from collimate.checkpoints.files import CheckpointError
from collimate.losses.masked_tokens import UNSCORED
from collimate.testing import assert_same_on_ranks
from collimate_audio import BEATs, BeatsHead, BeatsTokenizer, Estimator, RandomTokenizer, distillation_loss
from collimate_audio.codebook import code_counts, perplexity

from .beats_toys import ENCODER
from .test_beats import CONFIG, banks


def tokenizer(**changes):
    torch.manual_seed(0)
    return BeatsTokenizer(BEATs(**ENCODER), 8, 5, **changes)


def frames():
    return torch.arange(70) < torch.tensor([[70], [40]])


@pytest.mark.parametrize("normalisation", ["layer_norm", "l2"])
def test_random_labels(normalisation):
    made = RandomTokenizer(32, 8, 16, normalisation=normalisation, seed=1)
    labels = made.labels(banks(8))
    assert labels.shape == (8, 12)
    assert float(perplexity(code_counts(labels, 32))) > 8
    again, other = (RandomTokenizer(32, 8, 16, normalisation=normalisation, seed=seed) for seed in (1, 2))
    assert torch.equal(again.labels(banks(8)), labels)
    assert not torch.equal(other.labels(banks(8)), labels)
    assert not list(made.parameters())


@pytest.mark.parametrize("make", [lambda: RandomTokenizer(32, 8, 16), lambda: tokenizer()], ids=["random", "trained"])
def test_labels_of_padding(make):
    made = make()
    if isinstance(made, BeatsTokenizer):
        made.quantized(banks())
    made.eval()
    labels = made.labels(banks(), frames())
    assert (labels[1, 6:] == UNSCORED).all()
    assert (labels[1, :6] >= 0).all()
    assert torch.equal(labels[0], made.labels(banks())[0])
    cut = made.labels(banks()[1:, :40])
    assert torch.equal(labels[1, :6], cut[0])


def test_labels_do_not_depend_on_precision():
    made = RandomTokenizer(32, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = made.labels(banks(8))
    assert torch.equal(half, made.labels(banks(8)))


def test_labels_have_the_order_of_patches():
    """Time steps one after the other, bands within each."""
    made, bank = RandomTokenizer(64, 8, 16), banks(1)
    moved = bank.clone()
    moved[:, 16:32, 32:48] += 5 * torch.randn(16, 16)
    changed = (made.patches(bank) - made.patches(moved)).abs().amax(-1)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [3 * 1 + 2]


def test_distillation_learns():
    made, estimator = tokenizer(), Estimator(5, 12, 1, 2, 24, target_width=7, buckets=16, max_distance=12)
    teacher, head = BEATs(**ENCODER).eval(), BeatsHead(24, 7)
    bank = banks(4)
    with torch.no_grad():
        target = head.token_logits(teacher(bank).tokens)
    optimizer = torch.optim.Adam([*made.parameters(), *estimator.parameters()], 3e-3)
    losses = []
    for _ in range(25):
        quantized, real = made.quantized(bank)
        loss = distillation_loss(estimator(quantized.vectors, real), target, real) + quantized.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_distillation_loss_on_ranks():
    generator = torch.Generator().manual_seed(0)
    estimated, teacher = (torch.randn(6, 5, 4, generator=generator) for _ in range(2))
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 0, 4, 2])[:, None]

    def loss(estimated, teacher, mask):
        return distillation_loss(estimated, teacher.detach(), mask)

    assert_same_on_ranks(loss, {"estimated": estimated, "teacher": teacher, "mask": mask}, ranks=(1, 2))
    cosines = torch.nn.functional.cosine_similarity(estimated, teacher, dim=-1)[mask]
    torch.testing.assert_close(distillation_loss(estimated, teacher, mask), 1 - cosines.mean())


def test_no_gradient_reaches_the_teacher():
    estimated, teacher = (torch.randn(2, 3, 4, requires_grad=True) for _ in range(2))
    distillation_loss(estimated, teacher).backward()
    assert teacher.grad is None
    assert estimated.grad is not None


def test_state_is_complete():
    made, other = tokenizer(), tokenizer()
    made.quantized(banks())
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.eval().labels(banks()), made.eval().labels(banks()))


def test_an_encoder_is_no_tokenizer():
    with pytest.raises(CheckpointError, match="no tokenizer"):
        BeatsTokenizer.from_official({"cfg": CONFIG, "model": BEATs(**ENCODER).state_dict()})


def test_bad_normalisation():
    with pytest.raises(ValueError, match="'batch'"):
        RandomTokenizer(normalisation="batch")
