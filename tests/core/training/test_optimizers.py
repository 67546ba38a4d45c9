"""Sophia and FRUGAL against their formulas on toys, and in a method's training."""

from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from collimate.encoders import Encoder
from collimate.training import Optimization
from collimate.training.frugal import Frugal
from collimate.training.sophia import Sophia

from .toy import Toy, ToyLoader


def quadratic(optimizer_of, steps, curvature, start=1.0):
    """The weights and the optimizer after so many steps on 1/2 Σ c w²."""
    weight = nn.Parameter(torch.full((len(curvature),), start, dtype=torch.float64))
    optimizer = optimizer_of([weight])

    def closure():
        weight.grad = None
        loss = (curvature * weight**2).sum() / 2
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return weight, optimizer


CURVATURE = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)


def test_sophia_estimates_the_hessians_diagonal():
    weight, optimizer = quadratic(
        lambda p: Sophia(p, lr=0.0, betas=(0.9, 0.999), every=1, weight_decay=0.0), 3000, CURVATURE
    )
    h = optimizer.state[weight]["h"] / (1 - 0.999**3000)
    torch.testing.assert_close(h, CURVATURE, rtol=0.15, atol=0)


def test_sophia_steps_are_the_papers():
    weight, _ = quadratic(lambda p: Sophia(p, lr=0.1, gamma=1.0, every=1, weight_decay=0.5), 1, CURVATURE)
    direction = torch.randn(3, generator=torch.Generator().manual_seed(0)).double()
    h = 0.01 * direction**2 * CURVATURE
    move = (0.04 * CURVATURE / h.clamp_min(1e-12)).clamp(-1, 1)
    torch.testing.assert_close(weight.detach(), 1 - 0.1 * 0.5 - 0.1 * move, rtol=1e-5, atol=1e-6)


def test_sophia_goes_down_flat_and_steep_directions_alike():
    weight, _ = quadratic(lambda p: Sophia(p, lr=0.02, gamma=1.0, weight_decay=0.0), 400, CURVATURE)
    assert weight.abs().max() < 0.05


def test_sophia_draws_dropout_alike_in_both_passes():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(200))
    optimizer = Sophia([weight], lr=0.0, every=1)
    seen = []

    def closure():
        weight.grad = None
        seen.append(torch.rand(3))
        loss = weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])


class Layers(Encoder):
    """Linear layers, as an encoder has them, and what always keeps a state."""

    def __init__(self, *sizes):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
        self.words, self.width = nn.Embedding(5, sizes[0]), sizes[-1]

    def forward(self, inputs, mask=None):
        return self.layers(inputs) + 0 * self.words.weight.sum()


def test_frugal_is_adamw_where_all_have_a_state():
    def end(make):
        torch.manual_seed(0)
        module = Layers(4, 3, 2)
        optimizer = make(module)
        inputs = torch.randn(8, 4)
        for _ in range(5):
            optimizer.zero_grad()
            module(inputs).square().mean().backward()
            optimizer.step()
        return [value.detach() for value in module.parameters()]

    settings = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    ours = end(lambda module: Frugal(module.parameters(), module, density=1.0, **settings))
    torchs = end(lambda module: torch.optim.AdamW(module.parameters(), **settings))
    torch.testing.assert_close(ours, torchs)


def test_frugal_keeps_a_state_for_its_share_and_changes_it():
    module = Layers(*[4] * 9)
    head = nn.Parameter(torch.randn(4, 4))
    weights = [layer.weight for layer in module.layers] + [module.words.weight, module.layers[0].bias, head]
    optimizer = Frugal(weights, module, lr=0.01, density=0.25, every=2)
    held = []
    for _ in range(8):
        before = [each.detach().clone() for each in weights]
        for each in weights:
            each.grad = torch.randn_like(each)
        optimizer.step()
        held.append(frozenset(place for place, each in enumerate(weights) if optimizer.state.get(each)))
        for place, each in enumerate(weights):
            if place not in held[-1]:
                torch.testing.assert_close(each.detach(), before[place] - 0.01 * each.grad.sign())
    assert all(len(places) == 5 and {8, 9, 10} < places for places in held), "two of eight matrices, and all else"
    assert held[0] == held[1]
    assert len(set(held)) > 1


@pytest.mark.parametrize("name", ["sophia", "frugal"])
def test_a_method_trains_with_them(name):
    torch.manual_seed(0)
    method = Toy(dropout=0.1, batch_norm=True)
    method.layers = Layers(2, 2)  # frugal asks for an encoder
    method.optimization = Optimization(name=name, lr=0.003, eps=None, betas=(0.9, 0.99), warmup=0)
    trainer = Trainer(
        max_steps=30,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = ToyLoader(1)
    loader.batches = loader.batches * 30
    before = method.eval().loss_terms(loader.batches[0])["clip"].item()
    trainer.fit(method, loader)
    assert method.eval().loss_terms(loader.batches[0])["clip"].item() < before - 0.05
    assert method.towers["image"][1].num_batches_tracked == 30


def test_bad_settings_are_told():
    weight = [nn.Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match="every step at most"):
        Sophia(weight, every=0)
    with pytest.raises(ValueError, match="runs some batches twice"):
        Sophia(weight).step()
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Frugal(weight, Layers(2, 2), density=2)
    with pytest.raises(ValueError, match="no encoder with linear layers"):
        Frugal(weight, nn.Linear(2, 2))
