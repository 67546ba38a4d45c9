"""Detectors of rooms: votes, targets, what is kept, and scenes of found objects with their sentences."""

import numpy as np
import pytest
import torch

import collimate
from collimate.checkpoints import save
from collimate.data import open_source
from collimate.data.preparation import Preparation, collate
from collimate.data.referrals import NamedWord, Referral
from collimate_3d import evaluate_grounding
from collimate_3d.pointnet2 import VoteNetBackbone
from collimate_3d.proposals import ProposedScenes, RoomProcessor, SceneDetector, evaluate_scene_detection
from collimate_3d.proposals.detector import Found, surest
from collimate_3d.proposals.objectives import HUBER, OTHERS, POSITIVES, detection_losses
from collimate_3d.proposals.source import NOWHERE, proposed_referrals, proposed_scene
from collimate_3d.proposals.voting import Proposals
from collimate_world import ROOM_CLASSES

from .scene_toys import rooms, scene_graph_vlp

SCALES = ((48, 0.5, 8, (16, 24)), (32, 1.0, 8, (24, 24)), (16, 2.0, 8, (24, 24)), (8, 3.0, 8, (24, 24)))


def detector(seed=0, **options):
    torch.manual_seed(seed)
    encoder = VoteNetBackbone(7, SCALES, 24)
    return SceneDetector(encoder, RoomProcessor(ROOM_CLASSES, 120, 8), proposals=16, proposal_width=24, **options)


def batch_of(method, source):
    return collate([Preparation(method.processors)(source.read(place)) for place in range(len(source))])


def proposals(centers, faces, objectness, classes, votes):
    features = torch.zeros(*centers.shape[:2], 4)
    return Proposals(votes, centers, features, objectness, faces, classes)


def test_boxes_lie_between_their_faces():
    found = proposals(
        torch.tensor([[[1.0, 2, 3]]]), torch.tensor([[[1.0, 0.5, 0.2, 3.0, 0.5, 0.4]]]), *torch.zeros(3, 1, 1, 2)
    )
    torch.testing.assert_close(found.boxes, torch.tensor([[[2.0, 2.0, 3.1, 4.0, 1.0, 0.6]]]))


def test_losses_are_those_of_their_definitions():
    """One room, two proposals: one at an object, one far from it; two seeds, one on the object."""
    boxes, given = torch.tensor([[[0.0, 0, 0.5, 1, 1, 1], [9.0, 9, 9, 1, 1, 1]]]), torch.tensor([[True, False]])
    centers = torch.tensor([[[0.1, 0.0, 0.5], [3.0, 0, 0]]])
    votes = torch.tensor([[[0.0, 0.2, 0.5], [7.0, 7, 7]]])
    faces = torch.full((1, 2, 6), 0.5, requires_grad=True)
    objectness, classes = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 2.0], [5.0, 0.0]]])
    found = proposals(centers, faces, objectness, classes, votes)
    terms = detection_losses(found, torch.tensor([[0, -1]]), boxes, given, torch.tensor([[1, -1]]))
    assert float(terms["vote"]) == pytest.approx(0.2)
    right, wrong = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    assert float(terms["objectness"]) == pytest.approx((POSITIVES * right + OTHERS * wrong) / 2, rel=1e-5)
    assert float(terms["faces"].detach()) == pytest.approx(2 * 0.5 * 0.1**2, rel=1e-4)
    assert HUBER > 0.1, "else the loss would be linear"
    assert float(terms["classes"]) == pytest.approx(np.log1p(np.exp(-2)), rel=1e-5)
    terms["faces"].backward()
    assert faces.grad is not None
    assert not faces.grad[0, 1].any()


def test_rooms_without_objects_cost_nothing():
    method = detector()
    batch = batch_of(method, rooms(length=2))
    batch["room"][:, :8] = 0
    batch["room"][:, 8:, 7] = -1
    terms = method.loss_terms(batch)
    assert all(float(term.detach()) == 0 for term in terms.values())
    method.total_loss(terms).backward()
    with pytest.raises(ValueError, match="channels=7"):
        SceneDetector(VoteNetBackbone(4, SCALES, 24), RoomProcessor(ROOM_CLASSES))


def test_of_boxes_that_overlap_the_surest_stays():
    boxes = torch.tensor([[0.0, 0, 0, 1, 1, 1], [0.2, 0, 0, 1, 1, 1], [3.0, 0, 0, 1, 1, 1]])
    assert surest(boxes, 0.25).tolist() == [True, False, True]
    assert surest(boxes, 0.9).tolist() == [True, True, True]
    assert surest(boxes[:0], 0.25).tolist() == []


def test_a_detector_learns_rooms_and_finds_them_again(tmp_path):
    method, source = detector(least_score=0.1), rooms(length=6, points=20)
    batch = batch_of(method, source)
    optimizer = torch.optim.AdamW(method.parameters(), 5e-3)
    before = float(method.total_loss(method.loss_terms(batch)).detach())
    for _ in range(120):
        optimizer.zero_grad()
        loss = method.total_loss(method.loss_terms(batch))
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < before / 2
    found = evaluate_scene_detection(method, source).metrics
    assert found["recall@0.25"] > 0.15
    assert found["recall@0.5"] <= found["recall@0.25"]
    save(method, tmp_path / "detector")
    again = collimate.load(tmp_path / "detector")
    assert evaluate_scene_detection(again, source).metrics == found
    proposed = ProposedScenes(source, str(tmp_path / "detector"))
    grounded = evaluate_grounding(scene_graph_vlp().eval(), proposed, "predicted", resamples=2)
    assert {"acc@0.25", "acc@0.5"} <= grounded.metrics.keys()
    assert grounded.metrics["acc@0.5"] <= grounded.metrics["acc@0.25"]
    opened = open_source(f"proposed:world-rooms:test?detector={tmp_path / 'detector'}&length=2&objects=4-6")
    assert len(opened) == 2
    assert {"scene.npz", "referrals.json", "txt"} <= opened.read(1).keys()
    assert "graph.json" not in opened.read(1)
    save(scene_graph_vlp(), tmp_path / "other")
    with pytest.raises(ValueError, match="no SceneDetector"):
        ProposedScenes(source, str(tmp_path / "other"))


def test_sentences_move_to_what_was_found():
    scene = rooms().read(0)["scene.npz"]
    boxes = scene["boxes"].copy()
    found = Found(boxes[[1, 0]] + np.float32(0.01), np.array([2, 3]), np.array([0.9, 0.8]))
    proposed = proposed_scene(scene, found, ROOM_CLASSES)
    assert proposed["labels"].tolist() == [ROOM_CLASSES[2], ROOM_CLASSES[3]]
    own = proposed["instance"] == 0
    assert (scene["instance"][own] == scene["ids"][1]).mean() > 0.8
    ids = scene["ids"].tolist()
    told = [
        Referral("the one left of that", ids[0], (ids[1],), (NamedWord(ids[0], 4, 7), NamedWord(ids[1], 16, 20))),
        Referral("the lost one", ids[2], (), (NamedWord(ids[2], 4, 8),)),
    ]
    near, lost = proposed_referrals(told, scene, found.boxes)
    assert (near.target, near.anchors) == (1, (0,))
    assert near.more["box"] == pytest.approx(boxes[0].tolist())
    assert lost.target == NOWHERE
    assert not lost.words
    nothing = proposed_referrals(told, scene, found.boxes[:0])
    assert [each.target for each in nothing] == [NOWHERE, NOWHERE]
