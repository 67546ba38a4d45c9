import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from collimate.encoders import Encoder, Frozen
from collimate.encoding import Encoding
from collimate.testing import run_on_ranks
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


class TwoLevels(Encoder):
    """An embedding and three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.embedding = nn.Linear(2, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(3))

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> Encoding:
        hidden = self.embedding(inputs)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return Encoding(hidden)


def classifier() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"encoder": TwoLevels(), "head": nn.Linear(4, 3)})


def rates(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {names[parameter]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}


def test_layers_learn_at_their_own_rates():
    module = classifier()
    optimizer = Optimization(lr=0.1, layer_decay=0.5, weight_decay=0.3).optimizer(module)
    found = rates(module, optimizer)
    assert found.keys() == dict(module.named_parameters()).keys()
    steps = {"head": 0, "layers.2": 1, "layers.1": 2, "layers.0": 3, "embedding": 4}
    for name, rate in found.items():
        depth = next(depth for part, depth in steps.items() if part in name)
        assert rate == pytest.approx(0.1 * 0.5**depth), name
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3, 0.0}
    assert optimizer.param_groups[0]["lr"] == 0.1  # what logs show


def test_every_parameter_moves_by_its_rate_and_by_the_schedule():
    """Adam's first step is lr times a sign, so that a rate is seen in the weights; a scaled gradient would not be."""
    module = classifier()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimization = Optimization(lr=1e-3, layer_decay=0.6, weight_decay=0.0, eps=1e-12, warmup=4)
    optimizer = optimization.optimizer(module)
    scheduler = optimization.scheduler(optimizer, 100)
    generator = torch.Generator().manual_seed(1)
    module["head"](module["encoder"](torch.randn(16, 2, generator=generator)).pooled).square().sum().backward()
    optimizer.step()
    scheduler.step()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).any(), name
        moved = (parameter.detach() - before[name]).abs()[parameter.grad.abs() > 1e-6]
        depth = 0 if name.startswith("head") else module["encoder"].depths()[name.removeprefix("encoder.")]
        torch.testing.assert_close(moved, torch.full_like(moved, 1e-3 * 0.6**depth / 4), rtol=1e-3, atol=1e-8)
        assert rates(module, optimizer)[name] == pytest.approx(1e-3 * 0.6**depth * 2 / 4)


def test_rates_leave_out_what_is_frozen():
    module = classifier()
    module["encoder"] = Frozen(module["encoder"])
    optimizer = Optimization(layer_decay=0.5).optimizer(module)
    assert rates(module, optimizer).keys() == {"head.weight", "head.bias"}


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_layer_decay_outside_its_range_is_an_error(decay: float):
    with pytest.raises(ValueError, match="layer_decay"):
        Optimization(layer_decay=decay)


def _sharded(**options) -> torch.optim.Optimizer:
    from torch.distributed.device_mesh import init_device_mesh

    from collimate.training.sharding import is_sharded, shard

    module = classifier()
    shard(module, init_device_mesh("cpu", (2,)))
    assert is_sharded(module)
    return Optimization(lr=0.1, layer_decay=0.5, **options).optimizer(module)


def _sharded_rates() -> list[float]:
    optimizer = _sharded(betas=None, eps=None, name="sgd")
    return [group["lr"] for group in optimizer.param_groups]


def test_rates_are_the_same_where_the_encoder_is_sharded():
    optimizer = Optimization(lr=0.1, layer_decay=0.5, betas=None, eps=None, name="sgd").optimizer(classifier())
    rates = [group["lr"] for group in optimizer.param_groups]
    assert [sorted(set(found)) for found in run_on_ranks(_sharded_rates, [(), ()])] == [sorted(set(rates))] * 2


class Nested(Encoder):
    """Stages of layers: blocks inside of blocks."""

    width = 4

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))) for _ in range(2)
        )


def _whole_in_nested() -> list[str]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    from collimate.training.sharding import shard

    module = nn.ModuleDict({"tower": Nested()})
    shard(module, init_device_mesh("cpu", (2,)))
    return [name for name, parameter in module.named_parameters() if not isinstance(parameter, DTensor)]


def test_blocks_inside_of_blocks_are_sharded_too():
    assert run_on_ranks(_whole_in_nested, [(), ()]) == [[], []]


def _fused_step() -> bool:
    optimizer = _sharded(options={"fused": True})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return True


def test_fused_optimizers_take_what_is_sharded_and_what_is_not():
    assert run_on_ranks(_fused_step, [(), ()]) == [True, True]


def test_cycles_warm_up_and_decay_again():
    factor = Optimization(schedule="cosine_cycles", cycles=3, warmup=0.1, final_lr=0.1).lr_factor(300)
    once = Optimization(schedule="cosine", warmup=0.1, final_lr=0.1).lr_factor(100)
    assert [factor(step) for step in range(300)] == [once(step % 100) for step in range(300)]
    assert Optimization(schedule="cosine_cycles", cycles=3).lr_factor(302)(301) == pytest.approx(0, abs=1e-3)
    with pytest.raises(ValueError, match="a cycle at least"):
        Optimization(cycles=0)


def test_an_infinite_schedule_can_be_extended_before_its_decay():
    settings = {"schedule": "infinite", "warmup": 10, "cooldown": 30, "plateau": 0.4, "decay": 0.2, "final_lr": 0.01}
    short, long = (Optimization(**settings).lr_factor(steps) for steps in (100, 1000))
    assert [short(step) for step in range(80)] == [long(step) for step in range(80)]
    assert max(map(short, range(100))) == pytest.approx(1.0)
    assert short(60) == pytest.approx(0.4)
    assert long(799) == pytest.approx(0.4)
    assert short(100) == pytest.approx(0.01)
    assert all(short(step + 1) < short(step) for step in range(80, 100))
