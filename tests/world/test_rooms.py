"""Rooms: solids that do not reach into each other, points on them, and sentences that are true of one object."""

import math
from collections import Counter

import numpy as np
import pytest

from collimate.data import open_source
from collimate.data.referrals import referrals_of
from collimate.data.scene_graphs import scene_graph_of
from collimate_world import FURNITURE, PAINTS, ROOM_CLASSES, RoomSource, sample_room


def rooms(count=60):
    return [sample_room("train", index) for index in range(count)]


def test_things_do_not_reach_into_each_other():
    for room in rooms():
        centers, sizes = room.graph().centers, room.graph().sizes
        overlap = (sizes[:, None] + sizes) / 2 - np.abs(centers[:, None] - centers)
        inside = (overlap > 1e-3).all(2) & ~np.eye(len(sizes), dtype=bool)
        assert not inside.any()
        assert (centers[:, 2] - sizes[:, 2] / 2 > -1e-3).all()
        assert (np.abs(centers[:, :2]) + sizes[:, :2] / 2 < 3.001).all()


def test_rooms_are_furnished_so_that_relations_are_needed():
    found = rooms(200)
    assert {len(room.things) for room in found} == set(range(6, 13))
    counts = [Counter(each.label for each in room.things) for room in found]
    assert np.mean([max(count.values()) >= 2 for count in counts]) > 0.99
    assert {label for count in counts for label in count} == set(FURNITURE)
    assert {each.colour for room in found for each in room.things} == set(PAINTS)
    names = Counter(relation.predicate for room in found for relation in room.graph().relations)
    assert min(names[name] for name in ("left of", "behind", "near", "standing on")) > 100


def test_points_lie_on_the_surfaces():
    room = sample_room("val", 3)
    xyz, rgb, instance = room.points(200)
    assert (xyz.dtype, rgb.dtype, len(xyz)) == (np.float32, np.uint8, 200 * len(room.things))
    for number, each in enumerate(room.things):
        from_center = np.abs(xyz[instance == number] - each.center)
        below = np.array(each.size) / 2 - from_center  # the faces of its box
        assert below.min() > -0.03
        if each.solid == "ball":
            np.testing.assert_allclose(np.linalg.norm(from_center, axis=1), each.size[0] / 2, atol=0.03)
        elif each.solid == "box":
            np.testing.assert_allclose(below.min(1), 0, atol=0.03)
        red, green, _ = rgb[instance == number].mean(0)
        assert (red > green) == (each.colour in ("red", "orange", "purple", "yellow"))


def test_sentences_single_out_their_targets():
    source, needs, predicates = RoomSource(length=100), [], []
    for index in range(100):
        sample = source.read(index)
        graph = scene_graph_of(sample["graph.json"])
        relations = {(r.subject, r.predicate, r.object) for r in graph.relations}
        for each in referrals_of(sample["referrals.json"]):
            first = each.words[0]
            said = each.text[4 : first.stop]  # between `the ` and the end of the noun
            called = [one.id for one in graph.objects if said in (one.name, one.label)]
            if each.needs_relation:
                assert len(called) > 1
                predicate = each.text[first.stop + 1 :].split(" the ")[0]
                predicates.append(predicate)
                if predicate in ("closest to", "farthest from"):
                    reach = {
                        one: math.dist(graph.object(one).center, graph.object(each.anchors[0]).center) for one in called
                    }
                    assert (min if predicate == "closest to" else max)(reach, key=reach.__getitem__) == each.target
                else:
                    assert [one for one in called if (one, predicate, each.anchors[0]) in relations] == [each.target]
            else:
                assert called == [each.target]
            needs.append(each.needs_relation)
    assert 0.4 < np.mean(needs) < 0.6
    assert len(needs) > 700
    assert 0.3 < np.mean([name in ("closest to", "farthest from") for name in predicates]) < 0.7
    assert {"left of", "behind", "near", "standing on"} <= set(predicates)


def test_the_source():
    source = open_source("world-rooms:train?length=50&points=16")
    assert isinstance(source, RoomSource)
    sample, again = source.read(7), RoomSource(length=50, points=16).read(7)
    assert sample["json"] == {"synthetic": True, "split": "train", "seed": 0, "index": 7}
    assert sample["scene.npz"]["labels"].tolist() == [each.label for each in source.room(7).things]
    assert set(sample["scene.npz"]["labels"]) <= set(ROOM_CLASSES)
    for name, value in sample["scene.npz"].items():
        assert np.array_equal(value, again["scene.npz"][name])
    assert {key: sample[key] for key in ("txt", "referrals.json")} == {
        key: again[key] for key in ("txt", "referrals.json")
    }
    assert sample["txt"].startswith("a room with")
    assert sample["captions.json"][0]["text"] != sample["txt"]
    assert RoomSource(length=50, seed=1).read(7)["txt"] != sample["txt"]
    assert RoomSource("val", length=50).read(7)["txt"] != sample["txt"]
    with pytest.raises(IndexError, match="no sample 50"):
        source.read(50)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"text": "noisy"}, "short, long"),
        ({"objects": "many"}, "range"),
        ({"objects": 40}, "2 to 12"),
        ({"split": "x"}, "train"),
        ({"sentences": 0}, "sentences"),
    ],
)
def test_what_cannot_be_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        RoomSource(**wrong)
