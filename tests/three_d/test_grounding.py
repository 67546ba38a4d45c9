"""Grounding: what counts as right, by kind of sentence; objects by their names; the pictures of reports."""

import numpy as np
import pytest
import torch

from collimate.data.referrals import Referral, referrals_of
from collimate.data.source import Source
from collimate.evaluation import Report
from collimate.testing import run_on_ranks
from collimate_3d import evaluate_grounding, evaluate_objects
from collimate_3d.evaluation.grounding import accuracy_at, box_overlap
from collimate_3d.evaluation.objects import ObjectNames, ObjectSource
from collimate_3d.evaluation.pictures import SIDE, grounding_picture, influences, show_scene
from collimate_3d.scenes import ReferralProcessor, unpacked_scenes
from collimate_3d.scenes.processing import checked_scene
from collimate_world import ROOM_CLASSES

from .scene_toys import rooms, scene_graph_vlp


class Told(Source):
    """Rooms with sentences of the tests' own."""

    def __init__(self, source, change):
        self.source, self.change, self.name = source, change, source.name

    def __len__(self):
        return len(self.source)

    def read(self, index):
        sample = self.source.read(index)
        return sample | {"referrals.json": [each.to_json() for each in self.change(sample)]}


@pytest.fixture(scope="module")
def source():
    return rooms(length=6)


def knowing(method, answer_of):
    """The method with answers that are given: for each scene's tensor, the row that it chooses for each sentence."""

    def ground(scene, referrals):
        scores = torch.full((len(scene), referrals.shape[1], scene.shape[1]), -1.0)
        for row in range(referrals.shape[1]):
            scores[0, row, answer_of(scene[0], referrals[0, row])] = 1.0
        return scores, -scores

    method.ground = ground
    return method


def target_row(scene, referral):
    found = (scene[:, 1] == referral[1]) & (scene[:, 0] > 0)
    return int(found.int().argmax())


def test_an_oracle_is_always_right(source):
    found = evaluate_grounding(knowing(scene_graph_vlp(), target_row), source, resamples=2)
    assert found.metrics["accuracy"] == found.metrics["accuracy by relation"] == found.metrics["accuracy by name"] == 1
    assert found.metrics["cosine accuracy"] == 0
    count = sum(len(source.read(place)["referrals.json"]) for place in range(6))
    assert found.protocol["sentences"] == count
    assert found.protocol["boxes"] == "ground truth"
    assert not [name for name in found.metrics if "acc@" in name]


def test_kinds_of_sentences_are_told_apart(source):
    """An answer that is right for unique objects only."""

    def change(sample):
        graph = sample["graph.json"]["objects"]
        return [Referral(f"object {each['id']}", each["id"]) for each in graph]

    def unique_only(scene, referral):
        row = target_row(scene, referral)
        alone = int(((scene[:, 2] == scene[row, 2]) & (scene[:, 0] > 0)).sum()) == 1
        return row if alone else (row + 1) % int((scene[:, 0] > 0).sum())

    found = evaluate_grounding(knowing(scene_graph_vlp(), unique_only), Told(source, change), resamples=2).metrics
    assert found["accuracy unique"] == 1
    assert found["accuracy multiple"] == found["accuracy easy"] == 0
    labels = [source.read(place)["scene.npz"]["labels"].tolist() for place in range(6)]
    alone = [own.count(label) == 1 for own in labels for label in own]
    assert found["accuracy"] == pytest.approx(np.mean(alone))
    assert "accuracy by relation" not in found


def test_a_target_that_is_not_there_counts_as_wrong(source):
    told = Told(source, lambda sample: [*referrals_of(sample["referrals.json"]), Referral("nothing", 999)])
    found = evaluate_grounding(knowing(scene_graph_vlp(), target_row), told, resamples=2)
    assert found.protocol["without a target among the objects"] == 6
    assert found.metrics["accuracy"] == pytest.approx(1 - 6 / found.protocol["sentences"])


def test_predicted_objects_are_judged_by_overlap(source):
    def change(sample):
        found = []
        for number, box in zip(sample["scene.npz"]["ids"][:2], sample["scene.npz"]["boxes"][:2], strict=True):
            box = box.copy()
            box[2] += box[5] * (0.4 if number == 0 else 0.8)  # overlaps of 0.43 and 0.11
            found.append(Referral("that", int(number), more={"box": box.tolist()}))
        return found

    found = evaluate_grounding(knowing(scene_graph_vlp(), target_row), Told(source, change), "predicted", resamples=2)
    assert found.metrics["acc@0.25"] == 0.5
    assert found.metrics["acc@0.5"] == 0
    assert found.protocol["boxes"] == "predicted"
    assert "accuracy" not in found.metrics
    with pytest.raises(ValueError, match="no `box`"):
        evaluate_grounding(knowing(scene_graph_vlp(), target_row), source, "predicted", resamples=2)
    with pytest.raises(ValueError, match="annotated ones"):
        accuracy_at(torch.ones(3), "ground truth")


def test_overlap_of_boxes():
    one = torch.tensor([[0.0, 0, 0, 2, 2, 2]] * 4)
    other = torch.tensor([[0.0, 0, 0, 2, 2, 2], [1, 0, 0, 2, 2, 2], [0, 0, 0, 1, 1, 1], [5, 0, 0, 2, 2, 2]])
    torch.testing.assert_close(box_overlap(one, other), torch.tensor([1, 1 / 3, 1 / 8, 0]))
    assert box_overlap(torch.zeros(1, 6), torch.zeros(1, 6)) == 0


def test_no_sentence_at_all(source):
    with pytest.raises(ValueError, match="no scene has a sentence"):
        evaluate_grounding(scene_graph_vlp(), Told(source, lambda _: []), resamples=2)


def test_ranks_share_the_work(source):
    method = scene_graph_vlp()
    alone = evaluate_grounding(method, source, batch_size=2, resamples=2).metrics
    found = run_on_ranks(lambda: evaluate_grounding(method, source, batch_size=2, resamples=2).metrics, [[], []])
    assert found == [alone, alone]


def test_reports_show_what_answers_rest_on(source):
    found = evaluate_grounding(scene_graph_vlp(), source, resamples=2)
    report = Report("test")
    found.add_to(report)
    assert report.html().count("data:image/jpeg") >= 3
    raw = checked_scene(source.read(0)["scene.npz"])
    plain = np.asarray(show_scene(raw).picture)
    assert plain.shape == (SIDE, SIDE, 3)
    right, wrong, none = (np.asarray(grounding_picture(raw, *ids)) for ids in ((0, 0), (0, 1), (-1, 77)))
    assert not np.array_equal(plain, right)
    assert not np.array_equal(right, wrong)
    assert np.array_equal(plain, none)


def test_influence_is_what_taking_an_object_away_changes(source):
    method = scene_graph_vlp().eval()
    scene = method.processors["scene"](source.read(0)["scene.npz"])
    told = ReferralProcessor(method.processors["referrals"].tokenizer, 1)(source.read(0)["referrals.json"])
    found = influences(method, scene, told, 0)
    assert sorted(found) == list(range(1, int((scene[:, 0] > 0).sum())))
    assert any(abs(each) > 0 for each in found.values())
    assert influences(method, scene, told, 999) == {}


# Objects by their names -------------------------------------------------------------------------------------------


def test_objects_are_samples_of_their_own(source):
    objects = ObjectSource(source, ROOM_CLASSES)
    assert len(objects) == sum(len(source.room(place).things) for place in range(6))
    last = objects.read(len(objects) - 1)
    raw = source.read(5)["scene.npz"]
    assert ROOM_CLASSES[last["cls"]] == raw["labels"][-1]
    np.testing.assert_array_equal(last["object.npz"]["xyz"], raw["xyz"][raw["instance"] == raw["ids"][-1]])
    with pytest.raises(ValueError, match="sofa"):
        ObjectSource(source, ["sofa"])


def test_objects_by_names(source):
    method = scene_graph_vlp().eval()
    found = evaluate_objects(method, source, resamples=2)
    assert 0 <= found.metrics["acc1"] <= 1
    names = ObjectNames(method)
    words = names.encode("text", ["the cube", "cube the"]).pooled
    assert words.shape == (2, 16)
    assert not torch.allclose(words[0], words[1]), "words are told in their order"
    raw = ObjectSource(source, ROOM_CLASSES).read(0)["object.npz"]
    scene = method.processors["scene"](source.read(0)["scene.npz"])[None]
    wanted = method.projections["object"](method.objects(unpacked_scenes(scene)))[0, 0]
    torch.testing.assert_close(names.encode("object", [raw]).pooled[0], wanted)
