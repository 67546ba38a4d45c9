import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from collimate.training import Optimization, parameter_groups


def model() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    module.register_parameter("logit_scale", nn.Parameter(torch.tensor(2.0)))
    return module


def test_only_matrices_decay():
    groups = parameter_groups(model(), 0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert [parameter.ndim for parameter in groups[0]["params"]] == [2]
    assert len(groups[1]["params"]) == 4  # bias, norm weight and bias, logit_scale


def test_frozen_parameters_are_left_out():
    module = model()
    module[0].weight.requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(module, 0.1)) == 4
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(module, 0.1)


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "adafactor"])
def test_optimizers_by_name(name: str):
    betas = (0.9, 0.98) if name != "adafactor" else None
    optimizer = Optimization(name=name, lr=1e-3, betas=betas, eps=None).optimizer(model())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2, 0.0}


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(ValueError, match="nearest: adam"):
        Optimization(name="adamv").optimizer(model())


def test_cosine_is_the_published_one():
    factor = Optimization(schedule="cosine", warmup=10).lr_factor(100)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(55) == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert factor(100) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("schedule", "end"), [("cosine", 0.1), ("linear", 0.1), ("warmup_stable_decay", 0.1), ("constant", 1.0)]
)
def test_schedules_start_at_the_peak_and_end_where_they_should(schedule: str, end: float):
    factor = Optimization(schedule=schedule, warmup=0.1, final_lr=0.1).lr_factor(1000)
    assert factor(100) == pytest.approx(1.0)
    assert factor(1000) == pytest.approx(end)
    values = [factor(step) for step in range(100, 1001)]
    assert all(a >= b - 1e-12 for a, b in pairwise(values))


def test_rsqrt_falls_with_the_root():
    factor = Optimization(schedule="rsqrt", warmup=100).lr_factor(10_000)
    assert factor(400) == pytest.approx(0.5)


def test_an_unknown_loss_weight_is_an_error():
    from .toy import Toy, toy_batch

    method = Toy()
    terms = method.loss_terms(toy_batch(4))
    method.optimization = Optimization(loss_weights={"clip": 0.5})
    assert method.total_loss(terms).item() == pytest.approx(0.5 * terms["clip"].item())
    method.optimization = Optimization(loss_weights={"clop": 0.5})
    with pytest.raises(ValueError, match="clop"):
        method.total_loss(terms)
