"""The scene-graph probe: ranks by hand and by brute force, what counts as missed, and that it reads what is there."""

import json
import math

import numpy as np
import pytest
import torch

from collimate.checkpoints import save
from collimate.cli import main
from collimate.data.source import Source
from collimate.evaluation import Report
from collimate.testing import run_on_ranks
from collimate_3d import evaluate_objects, evaluate_relationships
from collimate_3d.evaluation.relation_ranking import Ranks, Said, relation_ranks
from collimate_3d.evaluation.relationships import relation_statistic

from .scene_toys import rooms, scene_graph_vlp


class Related(Source):
    """Rooms with relations of the tests' own, and scenes that are changed."""

    def __init__(self, source, relations, change=lambda scene: scene, label=None):
        self.source, self.relations, self.change, self.label, self.name = source, relations, change, label, source.name

    def __len__(self):
        return len(self.source)

    def read(self, index):
        sample = self.source.read(index)
        graph = sample["graph.json"]
        objects = [{**each, "label": self.label or each["label"]} for each in graph["objects"]]
        graph = {"objects": objects, "relations": self.relations(objects, index)}
        return sample | {"graph.json": graph, "scene.npz": self.change(sample["scene.npz"])}


def sides(objects, _=0):
    """Who lies on which side of whom, as far as it is plain."""
    return [
        [one["id"], "west of" if one["center"][0] < other["center"][0] else "east of", other["id"]]
        for one in objects
        for other in objects
        if abs(one["center"][0] - other["center"][0]) > 0.5
    ]


def probed(train, test, method=None, **options):
    method = method or scene_graph_vlp(seed=1)
    return evaluate_relationships(method, train, test, **{"resamples": 5, "device": "cpu", **options})


@pytest.fixture(scope="module")
def train():
    return Related(rooms(length=12), sides)


@pytest.fixture(scope="module")
def test():
    return Related(rooms(length=4, split="test"), sides)


# Ranks ----------------------------------------------------------------------------------------------------------


def said(predicates, classes, labels, relations):
    pairs = (~torch.eye(len(classes), dtype=torch.bool)).nonzero().T
    numbers = (torch.tensor(each, dtype=torch.float64) for each in (predicates, classes))
    return Said(*numbers, pairs, torch.tensor(labels), torch.tensor(relations, dtype=torch.int64).reshape(-1, 2))


def ranks(*args):
    return tuple(each.tolist() for each in relation_ranks(said(*args)))


PREDICATES, CLASSES = [[0.9, 0.5], [0.1, 0.3]], [[0.8, 0.2], [0.6, 0.4]]


def test_ranks_by_hand():
    # Of the first pair: .432 .288 .24 [.16] .108 ...; of the second: .144 [.096] .048 ...
    assert ranks(PREDICATES, CLASSES, [0, 1], [[0, 1], [1, 1]]) == ([2, 1], [4, 2], [4, 7])


def test_true_predicates_of_a_pair_share_its_first_ranks():
    assert ranks(PREDICATES, CLASSES, [0, 1], [[0, 0], [0, 1]]) == ([1, 1], [1, 2], [2, 4])


def test_of_equal_scores_the_false_come_first():
    nothing_known = [[0.5] * 3] * 2
    assert ranks(nothing_known, [[1.0]] * 2, [0, 0], [[0, 0]]) == ([3], [3], [6])
    assert ranks(nothing_known, [[1.0]] * 2, [0, 0], [[0, 0], [0, 2]]) == ([1, 2], [1, 2], [5, 6])
    assert ranks(nothing_known, [[0.5, 0.5]] * 2, [0, 1], [[1, 1]]) == ([3], [12], [24])


def test_a_class_that_is_not_known_is_missed_in_triplets_alone():
    found = ranks(PREDICATES, CLASSES, [0, -1], [[0, 1], [1, 1]])
    assert found == ([2, 1], [math.inf] * 2, [math.inf] * 2)


def test_a_scene_without_relations_has_no_ranks():
    assert ranks(PREDICATES, CLASSES, [0, 1], []) == ([], [], [])
    alone = Said(
        torch.zeros(0, 2), torch.ones(1, 2), torch.zeros(2, 0).long(), torch.zeros(1).long(), torch.zeros(0, 2).long()
    )
    assert [len(each) for each in relation_ranks(alone)] == [0, 0, 0]


@pytest.mark.parametrize("at_a_time", [1, 2**22])
def test_ranks_by_brute_force(at_a_time, monkeypatch):
    monkeypatch.setattr("collimate_3d.evaluation.relation_ranking.AT_A_TIME", at_a_time)
    rng = np.random.default_rng(0)
    predicates, classes = rng.choice([0.25, 0.5, 1.0], (12, 3)), rng.choice([0.25, 0.5, 1.0], (4, 3))  # exact products
    true = [(int(pair), int(name)) for pair, name in np.argwhere(rng.random((12, 3)) < 0.4)]
    labels = rng.integers(0, 3, 4)
    case = said(predicates.tolist(), classes.tolist(), labels.tolist(), true)
    every = [
        (-classes[s, a] * classes[o, b] * predicates[pair, name], holds, name, pair)
        for pair, (s, o) in enumerate(case.pairs.T.tolist())
        for a in range(3)
        for b in range(3)
        for name in range(3)
        for holds in [(pair, name) in true and a == labels[s] and b == labels[o]]
    ]
    found = relation_ranks(case)
    for place, (pair, name) in enumerate(true):
        count = sum(own == pair for own, _ in true)
        of_pair = [each[1:] for each in sorted(one for one in every if one[3] == pair)]
        assert found.of_pair[place] == math.ceil((of_pair.index((True, name, pair)) + 1) / count)
        of_names = sorted((-predicates[pair, other], (pair, other) in true, other) for other in range(3))
        assert found.predicate[place] == math.ceil(([each[2] for each in of_names].index(name) + 1) / count)
    order = [(pair, name) for _, holds, name, pair in sorted(every, key=lambda one: one[:2]) if holds]
    of_scene = sorted(found.of_scene.tolist())
    assert of_scene == [place + 1 for place, one in enumerate(sorted(every, key=lambda one: one[:2])) if one[1]]
    assert len(order) == len(true)


def test_shares_by_hand():
    judged = Ranks(
        *(torch.tensor(each).double() for each in ([1, 1, 2, math.inf], [1, 51, 100, math.inf], [1, 60, 60, 101]))
    )
    samples, numbers = torch.tensor([0, 0, 3, 3]), torch.tensor([0, 1, 1, -1])
    first = relation_statistic({"": judged, "other": judged}, samples, numbers, 4)
    found = {name: value.item() for name, value in first(torch.ones(1, 4)).items()}
    assert found["predicate/top1"] == 0.5
    assert found["predicate/top3"] == 0.75
    assert "predicate/top5" not in found, "it reaches all four"
    assert found["predicate/mean top1"] == 0.75, "of the first 1 of 1, of the second 1 of 2"
    assert found["triplet/R@50"] == 0.25
    assert found["triplet/R@100"] == 0.75
    assert found["triplet of pair/R@50"] == 0.25
    assert found["triplet of pair/R@100"] == 0.75
    assert found["other/triplet/R@100"] == 0.75
    assert found["above other/predicate/top1"] == 0
    twice = first(torch.tensor([[2.0, 2, 1, 1]]))
    assert twice["triplet/R@50"].item() == pytest.approx(1 / 3), "scenes are means of their relations"


# The probe ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(train, test):
    return probed(train, test)


def test_what_features_decide_is_found_in_full(found, test):
    for row in ("", "random/", "descriptors/"):
        assert found.metrics[f"{row}predicate/top1"] == 1
        assert found.metrics[f"{row}predicate/mean top1"] == 1
    assert found.metrics["prior/predicate/top1"] == 0.5, "of two that are as frequent, always one"
    assert found.matrix.diag().tolist() == found.matrix.sum(1).tolist()
    count = sum(len(test.read(place)["graph.json"]["relations"]) for place in range(4))
    assert found.protocol["test pairs"].endswith(f"with {count} relations")
    assert int(found.matrix.sum()) == count
    assert found.intervals["predicate/top1"] == (1, 1)


def test_what_features_do_not_decide_is_chance():
    def drawn(objects, index):
        rng = np.random.default_rng(index)
        pairs = [(one["id"], other["id"]) for one in objects for other in objects if one is not other]
        return [[one, str(rng.choice(["a", "b", "c", "d"])), other] for one, other in pairs]

    some = Related(rooms(length=12), drawn), Related(rooms(length=30, split="test"), drawn)
    metrics = probed(*some).metrics
    for row in ("", "vectors/", "random/", "random vectors/", "descriptors/", "prior/"):
        assert metrics[f"{row}predicate/top1"] == pytest.approx(0.25, abs=0.07)  # about 700 relations: four deviations


def test_vectors_of_boxes_that_lie_elsewhere_tell_less(found, train, test):
    """Rows see what they are said to see: with the places of test objects mirrored, all but the prior go wrong."""

    def mirrored(scene):
        return {**scene, "boxes": scene["boxes"] * np.array([-1, 1, 1, 1, 1, 1], np.float32)}

    metrics = probed(train, Related(test.source, sides, mirrored)).metrics
    assert metrics["descriptors/predicate/top1"] == metrics["predicate/top1"] == 0
    assert metrics["vectors/predicate/top1"] < 0.5 < found.metrics["vectors/predicate/top1"]
    assert metrics["prior/predicate/top1"] == found.metrics["prior/predicate/top1"]


def test_annotated_edges_do_not_reach_the_features(found, train, test):
    none = {"edges": np.zeros((2, 0), np.int64)}
    bare = [Related(each.source, sides, lambda scene: {**scene, **none}) for each in (train, test)]
    assert probed(*bare).metrics == found.metrics


def test_missed_relations_are_counted(found, train, test):
    """Those of a predicate that training lacks, and those of an object without points; `none` is no relation."""

    def more(objects, _=0):
        first, second = objects[0]["id"], objects[1]["id"]
        return [*sides(objects), [first, "hung upon", second], [first, "none", second]]

    unknown = probed(train, Related(test.source, more))
    count = sum(len(sides(test.read(place)["graph.json"]["objects"])) for place in range(4))
    assert unknown.protocol["relations of no known predicate"] == 4
    assert unknown.metrics["predicate/top1"] == pytest.approx(count / (count + 4))
    assert unknown.metrics["predicate/mean top1"] == 1
    assert "none" not in unknown.protocol["predicates"]

    def unseen(scene):
        return {**scene, "instance": np.where(scene["instance"] == scene["ids"][0], -1, scene["instance"])}

    hidden = probed(train, Related(test.source, sides, unseen))
    lost = sum(0 in (one, other) for place in range(4) for one, _, other in test.read(place)["graph.json"]["relations"])
    assert hidden.protocol["relations with an end that is not seen"] == lost > 0
    assert hidden.metrics["predicate/top1"] == pytest.approx((count - lost) / count)


def test_scenes_without_relations_count_in_no_mean(train, test):
    """With one class, triplets are as certain as predicates."""
    half = Related(test.source, lambda objects, index: sides(objects) if index < 2 else [], label="thing")
    metrics = probed(Related(train.source, sides, label="thing"), half).metrics
    assert metrics["triplet/R@100"] == metrics["triplet of pair/R@50"] == metrics["predicate/top1"] == 1
    assert metrics["object/top1"] == 1


def test_where_nothing_is_related(train, test):
    nothing = Related(test.source, lambda *_: [])
    for sources in ((train, nothing), (nothing, test)):
        with pytest.raises(ValueError, match="no scene has a relation"):
            probed(*sources)


def test_objects_are_told_as_by_their_names(found, test):
    method = scene_graph_vlp(seed=1)
    wanted = evaluate_objects(method, test, resamples=2, device="cpu").metrics
    assert found.metrics["object/top1"] == pytest.approx(wanted["acc1"])
    assert found.metrics["object/top5"] == pytest.approx(wanted["acc5"])
    assert "object/top10" not in found.metrics, "there are eight classes"
    assert found.metrics["random/object/top1"] != found.metrics["object/top1"]


def test_ranks_share_the_work(train, test):
    method = scene_graph_vlp(seed=1)
    alone = probed(train, test, method, batch_size=2, train_pairs=100).metrics
    shared = run_on_ranks(lambda: probed(train, test, method, batch_size=2, train_pairs=100).metrics, [[], []])
    assert shared == [alone, alone]


# Reports --------------------------------------------------------------------------------------------------------


def test_reports_compare_the_rows(found):
    report = Report("test")
    found.add_to(report)
    html = report.html()
    assert "<svg" in html
    assert all(f">{row}<" in html for row in ("model", "random vectors", "descriptors", "prior", "west of"))


def test_the_verb(tmp_path):
    save(scene_graph_vlp(seed=1), tmp_path / "model")
    source = "world-rooms:{}?length=4&objects=4-5&points=12"
    main(
        [
            "three-d",
            "relationships",
            f"--checkpoint={tmp_path / 'model'}",
            f"--train={source.format('val')}",
            f"--data={source.format('test')}",
            f"--output={tmp_path / 'out'}",
            "--resamples=5",
            "--device=cpu",
        ]
    )
    result = json.loads((tmp_path / "out" / "report.json").read_text())["Relationships"]
    assert result["metrics"]["descriptors/predicate/top1"] > 2 * result["metrics"]["prior/predicate/top1"]
    assert {each["predicate"] for each in result["per_predicate"]} >= {"left of", "right of", "behind", "in front of"}
    assert (tmp_path / "out" / "report.html").is_file()
