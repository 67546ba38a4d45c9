"""Sharpness-aware steps: by hand, with the gradient cache, batch norms, resuming, and what they refuse."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from collimate.training import Optimization
from collimate.training.callbacks import GradientCache
from collimate.training.sharpness import SharpnessAware

from .toy import Toy, ToyLoader


def train(steps=3, sharpness=0.3, callbacks=(), **given):
    torch.manual_seed(0)
    method = Toy(**given)
    method.optimization = Optimization(name="sgd", lr=0.1, betas=None, eps=None, warmup=0, sharpness=sharpness)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(method, ToyLoader(steps))
    return method


def test_a_step_goes_by_the_gradient_at_the_worst_point_nearby():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = SharpnessAware(torch.optim.SGD([weight], lr=0.1), 0.5, nn.Module())

    def closure():
        weight.grad = None
        loss = (weight**4).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    start = torch.tensor([1.0, 2.0])
    gradient = 4 * start**3
    worst = start + 0.5 * gradient / gradient.norm()
    torch.testing.assert_close(weight.detach(), start - 0.1 * 4 * worst**3)
    assert loss.item() == 17.0, "the loss is that of the weights themselves"


def test_the_gradient_cache_changes_nothing():
    plain, cached = train(), train(callbacks=[GradientCache(3)])
    torch.testing.assert_close(dict(cached.named_parameters()), dict(plain.named_parameters()), rtol=1e-4, atol=1e-6)
    other = train(sharpness=0.0)
    assert not torch.allclose(other.towers["image"][0].weight, plain.towers["image"][0].weight)


def test_batch_norms_see_each_batch_once():
    counted = train(batch_norm=True).towers["image"][1].num_batches_tracked
    assert counted.item() == 3


def test_state_and_rates_are_the_inner_optimizers():
    weight = nn.Parameter(torch.ones(2))
    outer = Optimization(sharpness=0.1).optimizer(nn.ParameterList([weight]))
    assert isinstance(outer, SharpnessAware)

    def closure():
        weight.grad = torch.ones(2)
        return torch.tensor(0.0)

    outer.step(closure)
    saved = outer.state_dict()
    again = Optimization(sharpness=0.1).optimizer(nn.ParameterList([weight]))
    again.load_state_dict(saved)
    assert again.state[weight]["step"] == outer.state[weight]["step"]
    again.param_groups[0]["lr"] = 7.0
    assert again.base.param_groups[0]["lr"] == 7.0


def test_what_cannot_be_run_twice_is_told():
    with pytest.raises(ValueError, match="run the batch twice"):
        SharpnessAware(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), 0.1, nn.Module()).step()
    with pytest.raises(ValueError, match="above 0"):
        SharpnessAware(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), -0.1, nn.Module())
    method = Toy()
    method.optimization = Optimization(sharpness=0.1)
    trainer = Trainer(
        max_steps=1, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False
    )
    with pytest.raises(ValueError, match="accumulate_grad_batches to 1"):
        trainer.fit(method, ToyLoader(2))
