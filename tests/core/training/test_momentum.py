"""Momentum encoders: what they are, when they move, and that nothing else touches them."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from collimate.training import Optimization, follow, momentum_copy
from collimate.training.callbacks import GradientCache

from .toy import Toy, ToyLoader

MOMENTUM = 0.9


class Following(Toy):
    """The toy with momentum towers, whose features take part in the loss."""

    def __init__(self) -> None:
        super().__init__(dropout=0.2)
        self.followers = momentum_copy(self.towers)

    def embed(self, batch):
        with torch.no_grad():
            keys = {f"{name}_key": tower(batch[name]) for name, tower in self.followers.items()}
        return {**super().embed(batch), **keys}

    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        follow(self.followers, self.towers, MOMENTUM)


class Record(Callback):
    """The towers after every optimizer step."""

    def __init__(self, method) -> None:
        self.towers = [[p.detach().clone() for p in method.towers.parameters()]]

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == len(self.towers):
            self.towers.append([p.detach().clone() for p in pl_module.towers.parameters()])


def fit(method, folder: Path, steps: int, *callbacks, checkpoint=None, batches=None, **options):
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, callbacks=list(callbacks), **options,
    )  # fmt: skip
    method.optimization = Optimization(lr=1e-2, warmup=0, schedule="constant")
    trainer.fit(method, ToyLoader(batches or steps), ckpt_path=checkpoint, weights_only=True)
    return trainer


@pytest.mark.parametrize(
    ("accumulate", "callbacks"), [(1, []), (3, []), (1, [GradientCache(2)]), (2, [GradientCache(3)])]
)
def test_they_follow_once_every_optimizer_step(tmp_path, accumulate, callbacks):
    torch.manual_seed(0)
    method, steps = Following(), 4
    record = Record(method)
    batches = steps * accumulate
    fit(method, tmp_path, steps, record, *callbacks, batches=batches, accumulate_grad_batches=accumulate)
    expected = record.towers[0]
    for towers in record.towers[1:]:
        expected = [MOMENTUM * old + (1 - MOMENTUM) * new for old, new in zip(expected, towers, strict=True)]
    assert len(record.towers) == steps + 1
    torch.testing.assert_close([p.detach() for p in method.followers.parameters()], expected)


def test_they_ask_for_no_gradient_and_the_optimizer_passes_over_them():
    method = Following()
    assert not any(parameter.requires_grad for parameter in method.followers.parameters())
    held = {id(p) for group in Optimization().optimizer(method).param_groups for p in group["params"]}
    assert held == {id(p) for name, p in method.named_parameters() if not name.startswith("followers.")}
    assert torch.equal(method.followers["image"][0].weight, method.towers["image"][0].weight)
    assert method.followers["image"][0].weight.data_ptr() != method.towers["image"][0].weight.data_ptr()


def test_they_are_in_checkpoints(tmp_path):
    method = Following()
    trainer = fit(method, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "step.ckpt")
    again = Following()
    fit(again, tmp_path, 2, checkpoint=tmp_path / "step.ckpt")  # nothing is left to do but to load
    for name, value in method.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert not torch.equal(method.followers["image"][0].weight, method.towers["image"][0].weight)


def test_shared_parameters_stay_shared_and_move_once():
    tied = nn.ModuleDict({"words": nn.Embedding(5, 3), "decoder": nn.Linear(3, 5, bias=False)})
    tied["decoder"].weight = tied["words"].weight
    copied = momentum_copy(tied)
    assert copied["decoder"].weight is copied["words"].weight
    before = copied["words"].weight.clone()
    with torch.no_grad():
        tied["words"].weight += 1
    follow(copied, tied, 0.75)
    torch.testing.assert_close(copied["words"].weight, before + 0.25)


def test_buffers_are_their_own():
    norm = nn.BatchNorm1d(3)
    copied = momentum_copy(norm)
    norm(torch.randn(8, 3) + 5)
    follow(copied, norm, 0.0)
    assert (copied.running_mean == 0).all()


def test_a_changed_module_is_named():
    layers = nn.Sequential(nn.Linear(2, 2))
    copied = momentum_copy(layers)
    layers.append(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"only one of the two has '1\.bias'"):
        follow(copied, layers, 0.9)
