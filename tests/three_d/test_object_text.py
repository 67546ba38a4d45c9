"""Objects in sweeps by their names: what is read of a box, its source, and zero-shot through the core."""

import numpy as np
import pytest
import torch

import collimate
from collimate.checkpoints import save
from collimate.data.preparation import TrainingPreparation, collate
from collimate.evaluation import evaluate_zero_shot
from collimate.testing import assert_same_on_ranks
from collimate_3d.detection import BoxEncoder, ObjectProcessor, ObjectText
from collimate_3d.language import GRUTextEncoder, WordTokenizer
from collimate_3d.lidar.object_source import LIDAR_OBJECT, LidarObjects, SweepObject
from collimate_3d.lidar.sweep import Sweep

from .sweep_toys import GRID, Streets, encoder

SOURCE = LidarObjects(Streets(12))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def method() -> ObjectText:
    tokenizer = WordTokenizer(["a", "car", "cyclist", "pedestrian"], 4)
    return ObjectText(BoxEncoder(encoder(8)), GRUTextEncoder(8, 8, 16), ObjectProcessor(600), tokenizer, 16)


def test_objects_are_samples():
    assert len(SOURCE) == 48
    assert SOURCE.class_names == ["car", "pedestrian", "cyclist"]
    seen = [SOURCE.read(index) for index in range(4)]
    assert [sample["txt"] for sample in seen] == [f"a {SOURCE.class_names[sample['cls']]}" for sample in seen]
    raw: SweepObject = seen[1][LIDAR_OBJECT]
    assert np.abs(raw.sweep.xyz[:, :2] - raw.box[:2]).max() < 10
    assert len({sample["__key__"] for sample in seen}) == 4
    with pytest.raises(IndexError):
        SOURCE.read(48)
    with pytest.raises(ValueError, match="tram"):
        LidarObjects(Streets(2), ["Tram"])


def test_a_box_is_what_lies_in_it():
    """Points far from a box change nothing; points in it do; a box without voxels takes the nearest."""
    encode, process = BoxEncoder(encoder()).eval(), ObjectProcessor(600)
    inside = np.random.default_rng(0).uniform((9.5, -0.5, -1.5, 0), (10.5, 0.5, -0.5, 1), (60, 4)).astype(np.float32)
    far = inside + np.float32([12, 8, 0, 0])
    box = np.array([10.0, 0, -1, 2, 1, 1, 0.4])
    clouds = [inside, np.concatenate([inside, far]), inside * np.float32([1, 1, 1, 0.5]), far]
    with torch.no_grad():
        found = encode(torch.stack([process(SweepObject(Sweep(cloud), box)) for cloud in clouds])).pooled
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - found[2]).norm() > 1e-3 * found[0].norm()
    assert found[3].norm() > 0
    nothing = process(SweepObject(Sweep(inside - 100), box))[None]
    assert (encode(nothing).pooled == 0).all()
    assert GRID.cell[0] * 4 == 1.6


def test_names_are_learned_on_a_frozen_backbone_and_asked_for(tmp_path):
    model = method()
    prepare = TrainingPreparation(model.processors)
    batch = collate([prepare(SOURCE.read(index)) for index in range(24)])
    before = {name: value.clone() for name, value in model.encoders[LIDAR_OBJECT].state_dict().items()}
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], 1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(model.total_loss(model.loss_terms(batch)))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    torch.testing.assert_close(model.encoders[LIDAR_OBJECT].state_dict(), before)
    found = evaluate_zero_shot(model, SOURCE, templates=["a {}"], device="cpu", resamples=10)
    assert found.metrics["acc1"] > 0.5
    save(model.eval(), tmp_path / "model")
    again = collimate.load(tmp_path / "model")
    example = again.processors[LIDAR_OBJECT].example()
    ours, theirs = (each.encode(LIDAR_OBJECT, [example]).pooled for each in (model, again))
    torch.testing.assert_close(ours, theirs)


def test_the_loss_on_ranks():
    model = method()
    text = torch.stack([model.processors["text"](f"a {name}") for name in ("car", "cyclist", "car", "pedestrian")])

    def loss(objects, texts, tokens):
        return model.losses({LIDAR_OBJECT: objects, "text": texts}, {"text": tokens.detach().long()})["contrast"]

    rows = {"objects": torch.randn(4, 16), "texts": torch.randn(4, 16), "tokens": text.float()}
    assert_same_on_ranks(loss, rows, ranks=(2,))
