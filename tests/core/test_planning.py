"""What `plan` counts and predicts: arithmetic by hand, growth in larger batches, time by rooflines."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.kernels.threads import for_each
from collimate.losses import clip_loss
from collimate.planning import MACHINES, count_step, measure_this_machine, predict
from collimate.planning.command import named_machine
from collimate.planning.counting import Count, Counter, StepCount, one_thread
from collimate.planning.prediction import flops_a_call, largest_batch
from collimate.training import Method

WIDTH = 24


class Tower(Encoder):
    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, inputs, mask=None) -> Encoding:
        return Encoding(self.layer(inputs))


class Pairs(Method):
    modalities = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"a": Tower(), "b": Tower()})

    def forward(self, modality, inputs, mask=None) -> Encoding:
        return self.encoders[modality](inputs, mask)

    def losses(self, embeddings, batch):
        return {"contrast": clip_loss(embeddings["a"], embeddings["b"], 10.0)}


def batch(size: int) -> dict[str, torch.Tensor]:
    return {"a": torch.randn(size, WIDTH), "b": torch.randn(size, WIDTH)}


@pytest.fixture(scope="module")
def counted():
    return count_step(Pairs(), batch)


def flops(step: StepCount) -> float:
    return sum(found.flops for found in step.operations.values())


def test_towers_and_loss_are_counted(counted):
    """Towers: forward and the weight's gradient, 2 x 2 B D^2 each. The loss: B^2 D for each product of the pairs."""
    ends = {size: flops(counted(size)) for size in (64, 128)}
    towers = {size: 2 * 2 * 2 * size * WIDTH**2 for size in ends}
    pairs = {size: (ends[size] - towers[size]) / (2 * size**2 * WIDTH) for size in ends}
    assert pairs[64] == pytest.approx(pairs[128], rel=1e-3)
    assert 3 <= pairs[64] <= 6  # forward, backward to both sides, and what tiles compute again


def test_growth_is_that_of_larger_batches(counted):
    from collimate.planning.counting import _run

    operations, saved, _ = _run(Pairs(), batch(40), None)
    assert flops(counted(40)) == pytest.approx(sum(found[1] for found in operations.values()))
    assert counted(40).saved == pytest.approx(saved)


def test_weights_and_state(counted):
    step = counted(2)
    assert step.parameters == step.trained == 2 * WIDTH**2
    assert 2 * 4 * step.trained <= step.state <= 2 * 4 * step.trained + 100  # AdamW's two moments
    assert step.features == 2 * WIDTH


def made(size: int, flops: float = 0.0, moved: float = 0.0) -> StepCount:
    return StepCount({"mm": Count(1, flops * size, moved * size)}, 10**6, 10**6, 8 * 10**6, 1e6 * size, 512)


def test_the_slower_side_of_the_roofline_counts():
    gpu = MACHINES["a100-80"]
    computed = predict(lambda size: made(size, 1e12, 1e6), gpu, 8, precision=torch.bfloat16)
    assert computed.bound == "arithmetic"
    assert computed.parts["arithmetic"] == pytest.approx(8e12 / (0.6 * 312e12))
    moved = predict(lambda size: made(size, 1e6, 1e12), gpu, 8)
    assert moved.bound == "memory bandwidth"


def test_real_steps_take_longer_than_their_operations(counted):
    machine = MACHINES["h100"]
    step = counted(64)
    size = flops_a_call(step)
    slowed = replace(machine, slowdown=((size / 4, 1.0), (size * 4, 4.0)))
    apart, real = (predict(counted, each, 64) for each in (machine, slowed))
    assert real.seconds == pytest.approx(2 * apart.seconds)
    assert real.memory == apart.memory


def test_this_machine_is_measured_by_whole_steps_too():
    machine = measure_this_machine(0.005)
    sizes, ratios = zip(*machine.slowdown, strict=True)
    assert list(sizes) == sorted(sizes)
    assert all(0 < ratio < math.inf for ratio in ratios)


def test_what_other_threads_compute_is_counted():
    def work(row: int) -> None:
        torch.mm(torch.ones(8, 8), torch.ones(8, 8))

    with Counter() as counter, one_thread():
        for_each(work, range(3), torch.device("cpu"))
    assert counter.found["mm"][:2] == (3, 3 * 2 * 8**3)


def test_memory_decides_the_largest_batch():
    small = replace(MACHINES["t4"], memory=2e9)
    fits = largest_batch(made, small)
    assert predict(made, small, fits).memory <= 0.9 * 2e9 < predict(made, small, 2 * fits).memory
    assert largest_batch(made, replace(small, memory=1e6)) == 0


def test_ranks_exchange_and_share():
    gpu = MACHINES["h100"]
    alone, many = (predict(made, gpu, 64, ranks=ranks) for ranks in (1, 8))
    assert alone.parts["communication"] == 0 < many.parts["communication"]
    assert predict(made, gpu, 64, ranks=8, sharded=True).weights == pytest.approx(alone.weights / 8)
    slower = predict(made, gpu, 64, ranks=16, nodes=2).parts["communication"]
    assert slower > many.parts["communication"]


def test_the_gradient_cache_holds_a_chunk_and_computes_more():
    gpu = MACHINES["h100"]
    whole, cut = (predict(lambda size: made(size, 1e12), gpu, 64, chunk=chunk) for chunk in (None, 8))
    assert cut.memory < whole.memory
    assert cut.seconds > whole.seconds


def test_unknown_machines_are_refused():
    with pytest.raises(ValueError, match="h100"):
        named_machine("abacus")


def test_the_command(tmp_path, capsys):
    from collimate.app import installed_apps
    from collimate.planning.command import plan

    cache = '{"class_path": "collimate.training.callbacks.GradientCache", "init_args": {"chunk_size": 16}}'
    arguments = ["--machine=l4", f"--output={tmp_path}", "--price=0.8", "--trainer.devices=2"]
    arguments.append(f"--trainer.callbacks+={cache}")
    plan(arguments, "collimate vision-language plan", installed_apps()["vision-language"])
    told = " ".join(capsys.readouterr().out.split())
    assert "2 x l4" in told
    assert "bf16-mixed" in told
    assert "without the gradient cache" not in told, "it is on"
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["ranks"] == 2
    assert record["seconds"] == pytest.approx(sum(record["parts"].values()))


def test_data_that_are_not_there_ask_for_a_stand_in(tmp_path):
    from collimate.app import installed_apps
    from collimate.planning.command import plan

    with pytest.raises(ValueError, match="--stand_in"):
        plan([f"--data.train={tmp_path}/none.jsonl", f"--output={tmp_path}"], "x", installed_apps()["vision-language"])
