"""Scene graphs and the sentences on them: what is read, what is refused, what follows from boxes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collimate.data.decoding import Undecodable
from collimate.data.referrals import (
    Referral,
    attribute_referrals,
    proximity_referrals,
    referrals_of,
    relation_referrals,
    scene_caption,
    statement,
)
from collimate.data.scene_graphs import (
    CONVERSE,
    GraphObject,
    GraphRelation,
    SceneGraph,
    scene_arrays,
    scene_graph_of,
    spatial_relations,
)


def thing(number, label, center, size=(0.5, 0.5, 0.5), *attributes):
    return GraphObject(number, label, center, size, attributes)


TABLE, BALL, CHAIR, OTHER = (
    thing(1, "table", (0, 0, 0.4), (1.2, 0.8, 0.8)),
    thing(2, "ball", (0.1, 0, 1.0), (0.4, 0.4, 0.4), "red"),
    thing(5, "chair", (-2, 0.1, 0.5), (0.5, 0.5, 1.0), "red"),
    thing(7, "chair", (2, -0.1, 0.5), (0.5, 0.5, 1.0), "red"),
)
ROOM = SceneGraph((TABLE, BALL, CHAIR, OTHER)).with_spatial_relations()


def boxes(count=6):
    number = st.integers(-30, 30).map(lambda tenth: tenth / 10)
    center = st.tuples(number, number, number)
    size = st.tuples(*[st.integers(1, 20).map(lambda tenth: tenth / 10)] * 3)
    return st.lists(st.tuples(center, size), min_size=0, max_size=count)


# Relations from geometry ----------------------------------------------------------------------------------------


def test_a_room_has_the_relations_that_one_would_tell():
    told = set(ROOM.relations)
    assert GraphRelation(2, "standing on", 1) in told
    assert GraphRelation(1, "supporting", 2) in told
    assert {GraphRelation(5, "left of", 1), GraphRelation(7, "right of", 1), GraphRelation(7, "right of", 5)} <= told
    assert GraphRelation(2, "near", 1) not in told, "it stands on it"
    assert not [each for each in told if each.subject == 5 and each.object == 7 and each.predicate == "near"]


@given(boxes())
def test_every_relation_has_its_converse_and_no_two_contradict(found):
    centers, sizes = (np.array([each[part] for each in found], float).reshape(-1, 3) for part in (0, 1))
    relations = set(spatial_relations(centers, sizes))
    for i, name, j in relations:
        assert i != j
        assert (j, CONVERSE[name], i) in relations
        if name != "near":
            assert (i, CONVERSE[name], j) not in relations
    for i in range(len(found)):
        for j in range(len(found)):
            sides = {"left of", "right of", "in front of", "behind"}
            assert len([name for name in sides if (i, name, j) in relations]) <= 1


@given(boxes())
def test_a_mirrored_room_has_left_and_right_exchanged(found):
    centers, sizes = (np.array([each[part] for each in found], float).reshape(-1, 3) for part in (0, 1))
    mirrored = set(spatial_relations(centers * (-1, 1, 1), sizes))
    swap = {"left of": "right of", "right of": "left of"}
    assert mirrored == {(i, swap.get(name, name), j) for i, name, j in spatial_relations(centers, sizes)}


@pytest.mark.parametrize(("gap", "wanted"), [(-0.04, "standing on"), (0.04, "standing on"), (0.3, "above")])
def test_contact_has_a_tolerance(gap, wanted):
    found = spatial_relations(np.array([[0, 0, 0.5], [0, 0, 1.25 + gap]]), np.array([[1, 1, 1], [0.5, 0.5, 0.5]]))
    assert (1, wanted, 0) in found
    assert (1, "near", 0) in found if wanted == "above" else (1, "near", 0) not in found


def test_no_objects_and_one_have_no_relations():
    assert spatial_relations(np.zeros((0, 3)), np.zeros((0, 3))) == []
    assert spatial_relations(np.zeros((1, 3)), np.ones((1, 3))) == []


# The field ------------------------------------------------------------------------------------------------------


def test_a_graph_comes_back_from_json():
    assert scene_graph_of(json.loads(json.dumps(ROOM.to_json()))) == ROOM
    assert scene_graph_of(json.dumps(ROOM.to_json())) == ROOM
    odd = SceneGraph((thing(0, "Stühle 椅子", (0, 0, 0), (1, 1, 1), "grün"),))
    assert scene_graph_of(json.loads(json.dumps(odd.to_json()))) == odd
    assert scene_graph_of({"objects": []}) == SceneGraph(())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"relations": [[1, "near", 1]]}, "itself"),
        ({"relations": [[1, "near", 9]]}, "dangling.*9"),
        ({"relations": [[1, "beside", 2]]}, "unknown predicate.*beside"),
        ({"relations": [[1, 2]]}, "subject, predicate, object"),
        ({"objects": 3}, "not a scene graph"),
        ({"objects": [{"id": 1}]}, "expected id, label"),
        ({"objects": [{"id": -1, "label": "a", "center": [0, 0, 0], "size": [1, 1, 1]}]}, "whole number"),
        ({"objects": [{"id": 1, "label": "a", "center": [0, 0, float("nan")], "size": [1, 1, 1]}]}, "center"),
        ({"objects": [{"id": 1, "label": "a", "center": [0, 0], "size": [1, 1, 1]}]}, "three numbers"),
        ({"objects": [{"id": 1, "label": "a", "center": [0, 0, 0], "size": [1, -1, 1]}]}, "inverted"),
        ({"objects": [{"id": 1, "label": " ", "center": [0, 0, 0], "size": [1, 1, 1]}]}, "empty text"),
        ({"objects": [TABLE.__dict__, TABLE.__dict__]}, "id 1"),
    ],
)
def test_what_is_no_graph_is_refused(change, told):
    with pytest.raises(Undecodable, match=told):
        scene_graph_of(ROOM.to_json() | change, predicates=tuple(CONVERSE))


def test_the_table_of_a_scene():
    found = scene_arrays(ROOM, np.zeros((3, 3)), np.zeros((3, 3)), np.array([1, 5, -1]))
    assert found["ids"].tolist() == [1, 2, 5, 7]
    assert found["labels"].tolist() == ["table", "ball", "chair", "chair"]
    assert found["edges"].shape[0] == 2
    assert [2, 3] in found["edges"].T.tolist(), "edges go by place"
    np.testing.assert_allclose(found["boxes"][1], [0.1, 0, 1.0, 0.4, 0.4, 0.4])
    assert scene_arrays(SceneGraph((TABLE,)), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))["edges"].shape == (2, 0)
    with pytest.raises(ValueError, match="3, 2"):
        scene_arrays(ROOM, np.zeros((3, 3)), np.zeros((2, 3)), np.zeros(3))


# Sentences ------------------------------------------------------------------------------------------------------


def test_sentences_say_which_words_name_which_object():
    sentences = [*attribute_referrals(ROOM), *relation_referrals(ROOM), statement(ROOM, ROOM.relations[0])]
    for each in sentences:
        for word in each.words:
            assert each.text[word.start : word.stop] == ROOM.object(word.object).label
        assert each.words[0].object == each.target
        assert tuple(word.object for word in each.words[1:]) == each.anchors
    assert [each.text for each in attribute_referrals(ROOM)] == ["the table", "the red ball"]


def test_a_relation_tells_its_subject_from_others_of_its_class():
    texts = {each.text: each.target for each in relation_referrals(ROOM)}
    assert texts["the chair left of the table"] == 5
    assert texts["the chair right of the ball"] == 7
    assert all(each.needs_relation for each in relation_referrals(ROOM))
    assert not [text for text in texts if text.startswith(("the table", "the ball"))], "they are the only ones"
    both = SceneGraph((TABLE, CHAIR, thing(7, "chair", (-2, 1.5, 0.5)))).with_spatial_relations()
    assert "the chair left of the table" not in [each.text for each in relation_referrals(both)]


def test_the_closest_is_told_where_it_is_clear():
    texts = {each.text: each for each in proximity_referrals(ROOM)}
    assert set(texts) == set(), "both chairs are as far from the table and from the ball"
    moved = SceneGraph((TABLE, BALL, CHAIR, thing(7, "chair", (3, -0.1, 0.5))))
    texts = {each.text: each.target for each in proximity_referrals(moved)}
    assert texts == {
        "the chair closest to the table": 5,
        "the chair farthest from the table": 7,
        "the chair closest to the ball": 5,
        "the chair farthest from the ball": 7,
    }


def test_captions_count_what_is_there():
    assert scene_caption(ROOM) == "a room with a table, a red ball and two red chairs"
    assert scene_caption(SceneGraph(())) == "an empty room"
    assert scene_caption(SceneGraph((thing(0, "bench", (0, 0, 0)), thing(1, "bench", (3, 0, 0))))) == (
        "a room with two benches"
    )


def test_referrals_come_back_from_json():
    sentences = [*relation_referrals(ROOM), Referral("that one", 5, more={"type": "Sr3D"})]
    assert referrals_of(json.loads(json.dumps([each.to_json() for each in sentences]))) == sentences
    assert referrals_of(None) == []


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"text": "a"}, "no list"),
        ([{"text": "the ball"}], "id of its target"),
        ([{"text": "the ball", "target": "that"}], "whole numbers"),
        ([{"text": "the ball", "target": 1, "words": [[1, 4, 12]]}], "outside"),
        ([{"text": "the ball", "target": 1, "words": [[1, 4]]}], "whole numbers"),
        ([{"text": "", "target": 1}], "empty"),
    ],
)
def test_what_is_no_referral_is_refused(value, told):
    with pytest.raises(Undecodable, match=told):
        referrals_of(value)
