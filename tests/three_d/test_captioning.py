"""Sentences written of objects: learned, written as they are told, and judged by overlap where boxes are predicted."""

import numpy as np
import pytest
import torch

import collimate
from collimate.checkpoints import save
from collimate.data.preparation import Preparation, collate
from collimate.data.source import Source
from collimate_3d import SceneCaptions, evaluate_captions
from collimate_3d.scenes.processing import unpacked_scenes

from .scene_toys import rooms, scene_graph_vlp


class Named(Source):
    """Rooms of which only the names of their objects are told; predicted, if asked for, a little beside them."""

    def __init__(self, length, shift=None):
        self.rooms, self.shift, self.name = rooms(length=length), shift, "named"

    def __len__(self):
        return len(self.rooms)

    def read(self, index):
        sample = self.rooms.read(index)
        things = self.rooms.room(index).things
        boxes = sample["scene.npz"]["boxes"].tolist()
        told = [
            {"text": f"the {each.colour} {each.label}", "target": place, "words": []}
            | ({} if self.shift is None else {"box": (np.array(boxes[place]) + self.shift).tolist()})
            for place, each in enumerate(things)
        ]
        return {**sample, "referrals.json": told}


def writer(**options):
    torch.manual_seed(1)
    return SceneCaptions(scene_graph_vlp(sentences=6, sentence_length=6), 48, 16, 0.0, **options)


def batch_of(method, source):
    return collate([Preparation(method.processors)(source.read(place)) for place in range(len(source))])


@pytest.fixture(scope="module")
def trained():
    method, source = writer(), Named(5)
    batch = batch_of(method, source)
    optimizer = torch.optim.AdamW(method.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        method.total_loss(method.loss_terms(batch)).backward()
        optimizer.step()
    return method.eval(), source, batch


def test_what_is_learned_is_written_again(trained, tmp_path):
    method, source, batch = trained
    found = evaluate_captions(method, source)
    assert found.metrics["BLEU-4"] >= 0
    assert found.metrics["CIDEr"] > max(5, 2 * evaluate_captions(writer(), source).metrics["CIDEr"])
    said = method.describe(batch["scene"])
    assert [len(each) for each in said] == unpacked_scenes(batch["scene"]).given.sum(1).tolist()
    assert all(text.startswith("the ") for each in said for text in each)
    save(method, tmp_path / "captions")
    assert evaluate_captions(collimate.load(tmp_path / "captions"), source).metrics == found.metrics


def test_writing_agrees_with_reading(trained):
    """The likeliest word after what was written is what was written next."""
    method, _, batch = trained
    scene = unpacked_scenes(batch["scene"])
    with torch.no_grad():
        nodes = method.model.nodes(scene, method.model.objects(scene))
        scenes, places = scene.given.nonzero(as_tuple=True)
        ids = method.writer.write(nodes, scene.given, scenes, places, 6, method.model.tokenizer.end_id)
        assert torch.equal(method.writer(nodes, scene.given, scenes, places, ids).argmax(-1), ids)


def test_captions_elsewhere_count_as_empty(trained):
    method = trained[0]
    near = evaluate_captions(method, Named(5, np.array([0.05, 0, 0, 0, 0, 0])), "predicted").metrics
    far = evaluate_captions(method, Named(5, np.array([99.0, 0, 0, 0, 0, 0])), "predicted").metrics
    assert near["CIDEr@0.25"] >= near["CIDEr@0.5"] > far["CIDEr@0.25"] == 0
    with pytest.raises(ValueError, match="has no `box`"):
        evaluate_captions(method, Named(2), "predicted")


def test_scenes_without_sentences_cost_nothing():
    method = writer()
    batch = batch_of(method, Named(2))
    batch["referrals"][..., 0] = 0
    terms = method.loss_terms(batch)
    assert float(terms["caption"].detach()) == 0
    terms["caption"].backward()


def test_padding_is_not_looked_at(trained):
    method, _, batch = trained
    there = batch["scene"][..., :1] > 0
    other = torch.where(there, batch["scene"], torch.randn_like(batch["scene"]))
    other[..., 0] = batch["scene"][..., 0]
    assert method.describe(other) == method.describe(batch["scene"])


def test_it_begins_with_trained_weights(tmp_path):
    base = scene_graph_vlp(seed=3, sentences=6)
    save(base, tmp_path / "model")
    method = writer(pretrained=str(tmp_path / "model"))
    assert torch.equal(method.model.position_clues.weight, base.position_clues.weight)
    assert "pretrained" not in method.config()["init_args"]
