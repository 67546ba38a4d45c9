"""Sparse weights stay zero, in the same places, until the run becomes dense."""

import pytest
import torch
from lightning.pytorch import Trainer

from collimate.encoders import OpenClipTextEncoder
from collimate.encoders.linear_weights import linear_weights
from collimate.encoding import Encoding
from collimate.training import Method
from collimate.training.callbacks import SparseWeights

from .toy import Toy, ToyLoader


class Small(Method):
    """One text tower that is drawn to zero."""

    modalities = ("text",)

    def __init__(self):
        super().__init__()
        self.encoders = torch.nn.ModuleDict(
            {"text": OpenClipTextEncoder(width=8, heads=2, layers=2, context_length=6, vocab_size=11)}
        )

    def forward(self, modality, inputs, mask=None) -> Encoding:
        return self.encoders[modality](inputs, mask)

    def losses(self, embeddings, batch):
        return {"size": embeddings["text"].square().mean()}


class Texts(ToyLoader):
    def __init__(self, steps):
        self.batches = [{"text": torch.randint(1, 11, (4, 6)), "position": torch.arange(4)} for _ in range(steps)]


def train(callback, steps=3):
    torch.manual_seed(0)
    method = Small()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(method, Texts(steps))
    return {name: weight.detach() for name, weight in linear_weights(method).items()}, method


def test_the_wanted_share_of_each_matrix_is_zero():
    weights, method = train(SparseWeights(0.75))
    assert len(weights) == 8, "in, out, and two of the MLP, of two layers"
    for name, weight in weights.items():
        assert (weight == 0).float().mean().item() == pytest.approx(0.75, abs=0.01), name
    embeddings = method.encoders["text"].tower.token_embedding.weight
    assert (embeddings != 0).all()


def test_masks_are_those_of_seed_and_name():
    first, again, other = (train(SparseWeights(0.5, seed), steps=1)[0] for seed in (0, 0, 1))
    assert all(torch.equal(first[name] == 0, again[name] == 0) for name in first)
    assert not all(torch.equal(first[name] == 0, other[name] == 0) for name in first)


def test_a_run_may_go_on_dense():
    weights, _ = train(SparseWeights(0.5, dense_from=2), steps=4)
    assert all((weight == 0).float().mean() < 0.1 for weight in weights.values())


def test_what_cannot_be_sparse_is_told():
    with pytest.raises(ValueError, match="between 0 and 1"):
        SparseWeights(1.0)
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[SparseWeights()]
    )
    with pytest.raises(ValueError, match="no encoder with linear layers"):
        trainer.fit(Toy(), ToyLoader(1))
