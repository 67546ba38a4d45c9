"""TCL on several ranks: its step is the mean of the ranks' own, and all ranks keep one queue."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from collimate.testing import run_on_ranks
from collimate.training.sharding import shard, unsharded

from .test_tcl import batch, drawn, tcl, tuning, words  # noqa: F401 - fixtures

STEPS, RATE = 3, 0.1


class Whole(nn.Module):
    """The loss of a method as one forward pass, for DDP."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, rows):
        return self.method.total_loss(self.method.loss_terms(rows))


def descend(method, loss, batches):
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=RATE)
    for rows in batches:
        optimizer.zero_grad()
        loss(rows).backward()
        optimizer.step()
        method.after_optimizer_step()


def with_ddp(method, batches):
    descend(method, DistributedDataParallel(Whole(method), broadcast_buffers=False), batches)
    return method.state_dict()


def with_fsdp2(method, batches):
    shard(method, init_device_mesh("cpu", (2,)))
    descend(method, Whole(method), batches)
    return unsharded(method).state_dict()


def alone(method, batches_of_ranks):
    """The same in one process: the mean of the ranks' losses, all against the same queue."""

    def loss(batches):
        start = copy.deepcopy(method.queue)
        losses, keys, ids = [], {"image": [], "text": []}, []
        for rows in batches:
            method.queue = copy.deepcopy(start)
            losses.append(Whole(method)(rows))
            places = (start.added + torch.arange(len(rows["text"]))) % start.size
            ids.append(method.queue.ids[places])
            for name, parts in keys.items():
                parts.append(method.queue[name][places])
        method.queue = start
        start.add(torch.cat(ids), **{name: torch.cat(parts) for name, parts in keys.items()})
        return torch.stack(losses).mean()

    descend(method, loss, list(zip(*batches_of_ranks, strict=True)))
    return method.state_dict()


@pytest.fixture
def batches(drawn):  # noqa: F811
    """Of each rank, those of its steps: three samples each, others at every step."""
    found = []
    for rank in range(2):
        rows = [(torch.arange(3) * 2 + rank + step) % 6 for step in range(STEPS)]
        found.append([_some(drawn, chosen) for chosen in rows])
    return found


def _some(drawn, chosen):  # noqa: F811
    others = {"negative_image": torch.tensor([1, 2, 0]), "negative_text": torch.tensor([2, 0, 1])}
    return {name: rows[chosen] for name, rows in drawn.items()} | others | {"id": chosen % 5}


@pytest.mark.parametrize("make", [tcl, tuning])
@pytest.mark.parametrize("strategy", [with_ddp, with_fsdp2])
def test_a_step_is_the_mean_of_the_ranks_steps(batches, make, strategy):
    method = make(momentum=0.9)
    expected = alone(copy.deepcopy(method), batches)
    first, second = run_on_ranks(strategy, [(method, rows) for rows in batches], timeout=400)
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)
        assert torch.equal(first[name], second[name]), name
    assert expected["queue.added"] == 2 * STEPS * 3
    start = make(momentum=0.9).state_dict()
    moved = [name for name in start if name.startswith("momentum_") and not torch.equal(start[name], first[name])]
    assert any("encoders.text" in name for name in moved)
    assert any("encoders.image" in name for name in moved)
