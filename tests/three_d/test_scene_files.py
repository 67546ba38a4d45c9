"""Readers of 3RScan with 3DSSG, of ScanNet, and of sentences on it; on files of their layouts that are made here."""

import json
import pickle

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from collimate.data import CorruptSample, open_source
from collimate.data.referrals import Referral, referrals_of
from collimate.data.scene_graphs import GraphRelation, scene_graph_of
from collimate_3d.scenes.processing import checked_scene
from collimate_3d.scenes.referral_files import named_words, read_referrals
from collimate_3d.scenes.scannet import aligned, instances_of
from collimate_3d.scenes.three_dssg import relations_of

CENTERS = np.array([[0, 0, 0.0], [2, 0, 0.5], [0, 3, 0.5]])


def write_ply(path, objects, **fields):
    """Eight points around each center, as vertices with an `objectId`."""
    rng = np.random.default_rng(0)
    xyz = (CENTERS[: len(objects), None] + rng.uniform(-0.5, 0.5, (len(objects), 8, 3))).reshape(-1, 3)
    columns = {name: (xyz[:, axis], "f4") for axis, name in enumerate("xyz")}
    columns |= {name: (rng.integers(0, 256, len(xyz)), "u1") for name in ("red", "green", "blue")}
    columns |= {"objectId": (np.repeat(objects, 8), "u2")} | fields
    rows = np.empty(len(xyz), [(name, kind) for name, (_, kind) in columns.items()])
    for name, (values, _) in columns.items():
        rows[name] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(path))
    return xyz


@pytest.fixture
def rscan(tmp_path):
    write_ply(tmp_path / "scan-a" / "labels.instances.annotated.v2.ply", [1, 6, 9])
    relationships = [
        [6, 1, 15, "standing on"],
        [6, 9, 2, "left"],
        [6, 9, 7, "bigger than"],
        [6, 6, 0, "none"],
        [6, 77, 2, "left"],
    ]
    (tmp_path / "relationships.json").write_text(
        json.dumps(
            {
                "scans": [
                    {"scan": "scan-a", "relationships": relationships},
                    {"scan": "scan-b", "relationships": []},
                ]
            }
        )
    )
    objects = [
        {"id": "1", "label": "floor", "attributes": {}},
        {"id": "6", "label": "toilet", "attributes": {"color": ["white", "grey"], "state": ["open"]}},
        {"id": "9", "label": "Waschtisch-Schränkchen", "attributes": {"color": ["brown"]}},
        {"id": "50", "label": "never seen", "attributes": {}},
    ]
    (tmp_path / "objects.json").write_text(json.dumps({"scans": [{"scan": "scan-a", "objects": objects}]}))
    return tmp_path


def test_3rscan_with_its_graph(rscan):
    source = open_source(f"scenes-3rscan:{rscan}?objects=objects.json&attributes=true")
    assert (len(source), source.missing) == (1, 1)
    sample = source.read(0)
    graph = scene_graph_of(sample["graph.json"])
    assert [each.name for each in graph.objects] == ["floor", "white toilet", "brown Waschtisch-Schränkchen"]
    assert graph.relations == (
        GraphRelation(6, "standing on", 1),
        GraphRelation(6, "left", 9),
        GraphRelation(6, "bigger than", 9),
    ), "of the others one leads nowhere, and one to itself"
    told = referrals_of(sample["referrals.json"])
    assert told[0].text == "the white toilet is standing on the floor"
    assert [told[0].text[word.start : word.stop] for word in told[0].words] == ["toilet", "floor"]
    scene = checked_scene(sample["scene.npz"])
    assert scene["edges"].T.tolist() == [[1, 0], [1, 2]], "each pair once"
    for number, own in enumerate(scene["ids"]):
        points = scene["xyz"][scene["instance"] == own]
        np.testing.assert_allclose(scene["boxes"][number, :3], (points.min(0) + points.max(0)) / 2, atol=1e-5)
        np.testing.assert_allclose(scene["boxes"][number, 3:], points.max(0) - points.min(0), atol=1e-5)


def test_the_subset_has_parts_and_labels_of_its_own(rscan, tmp_path):
    parts = [
        {
            "scan": "scan-a",
            "split": 0,
            "objects": {"6": "toilet", "1": "floor"},
            "relationships": [[6, 1, 15, "standing on"]],
        },
        {"scan": "scan-a", "split": 1, "objects": {"9": "sink"}, "relationships": []},
    ]
    (tmp_path / "relationships_train.json").write_text(json.dumps({"scans": parts}))
    source = open_source(f"scenes-3rscan:{rscan}?relationships=relationships_train.json")
    assert [source.read(place)["__key__"] for place in range(2)] == ["scan-a-0", "scan-a-1"]
    assert source.read(0)["txt"] == "a room with a toilet and a floor"
    alone = source.read(1)
    assert alone["referrals.json"] == []
    assert alone["scene.npz"]["edges"].shape == (2, 0)


def test_labels_may_come_from_the_segmentation(rscan):
    groups = [{"objectId": number, "label": name} for number, name in ((1, "floor"), (6, "toilet"), (9, "sink"))]
    (rscan / "scan-a" / "semseg.v2.json").write_text(json.dumps({"segGroups": groups}))
    assert open_source(f"scenes-3rscan:{rscan}").read(0)["txt"] == "a room with a floor, a toilet and a sink"


def test_what_3rscan_lacks_is_named(rscan):
    with pytest.raises(CorruptSample, match="semseg"):
        open_source(f"scenes-3rscan:{rscan}").read(0)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        open_source(f"scenes-3rscan:{rscan}?relationships=none.json")
    (rscan / "only_b.txt").write_text("scan-b\n")
    with pytest.raises(FileNotFoundError, match="none of the 1 scans"):
        open_source(f"scenes-3rscan:{rscan}?scans={rscan / 'only_b.txt'}")
    (rscan / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match="no list `scans`"):
        open_source(f"scenes-3rscan:{rscan}?relationships=bad.json")
    (rscan / "scan-a" / "labels.instances.annotated.v2.ply").write_bytes(b"ply?")
    with pytest.raises(CorruptSample, match="PLY"):
        open_source(f"scenes-3rscan:{rscan}?objects=objects.json").read(0)
    with pytest.raises(ValueError, match="subject, object"):
        relations_of({"scan": "x", "relationships": [[1, 2, 3]]})


# ScanNet --------------------------------------------------------------------------------------------------------


@pytest.fixture
def scannet(tmp_path):
    folder = tmp_path / "scene0000_00"
    xyz = write_ply(folder / "scene0000_00_vh_clean_2.ply", [0, 1, 2])
    segments = np.repeat([5, 5, 17, 17, 40, 41], 4)
    (folder / "scene0000_00_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": segments.tolist()}))
    groups = [
        {"id": 0, "objectId": 0, "label": "office chair", "segments": [5, 40]},
        {"id": 1, "objectId": 1, "label": "desk", "segments": [17]},
        {"id": 2, "objectId": 2, "label": "office chair", "segments": [40]},
    ]
    (folder / "scene0000_00.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    turn = "0 -1 0 1 1 0 0 2 0 0 1 0 0 0 0 1"
    (folder / "scene0000_00.txt").write_text(f"axisAlignment = {turn} \ncolorHeight = 968\n")
    rows = [
        {"scene_id": "scene0000_00", "object_id": "0", "object_name": "office_chair", "ann_id": "0",
         "description": "The Office chairs' one next to the desk."},
        {"scene_id": "scene0000_00", "object_id": "1", "object_name": "desk", "ann_id": "1", "description": "a table"},
        {"scene_id": "scene9999_00", "object_id": "1", "object_name": "desk", "ann_id": "1", "description": "x"},
    ]  # fmt: skip
    (tmp_path / "scanrefer.json").write_text(json.dumps(rows))
    return tmp_path, xyz


def test_scannet_with_scanrefer(scannet):
    root, xyz = scannet
    source = open_source(f"scenes-scannet:{root}?referrals={root / 'scanrefer.json'}")
    assert (len(source), source.missing) == (1, 1)
    sample = source.read(0)
    scene = checked_scene(sample["scene.npz"])
    assert scene["instance"].tolist() == [0] * 8 + [1] * 8 + [2] * 4 + [-1] * 4, "a shared segment is the last one's"
    np.testing.assert_allclose(scene["xyz"][:, 0], 1 - xyz[:, 1], atol=1e-5)
    np.testing.assert_allclose(scene["xyz"][:, 1], 2 + xyz[:, 0], atol=1e-5)
    assert scene["edges"].shape == (2, 0)
    assert scene_graph_of(sample["graph.json"]).relations
    first, second = referrals_of(sample["referrals.json"])
    assert first.text[first.words[0].start : first.words[0].stop] == "Office chairs"
    assert (first.target, second.target, second.words) == (0, 1, ())
    assert first.more["object_name"] == "office_chair"


def test_classes_of_the_benchmark(scannet):
    root, _ = scannet
    (root / "labels.tsv").write_text("id\traw_category\tnyu40class\n1\toffice chair\tchair\n")
    sample = open_source(f"scenes-scannet:{root}?labels={root / 'labels.tsv'}").read(0)
    assert sample["scene.npz"]["labels"].tolist() == ["chair", "desk", "chair"]
    assert sample["graph.json"]["objects"][0]["label"] == "office chair"
    (root / "labels.tsv").write_text("id\traw_category\n")
    with pytest.raises(ValueError, match="nyu40class"):
        open_source(f"scenes-scannet:{root}?labels={root / 'labels.tsv'}")


def test_damaged_scannet_is_named(scannet):
    root, _ = scannet
    folder = root / "scene0000_00"
    (folder / "scene0000_00_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": [1, 2]}))
    with pytest.raises(CorruptSample, match="another mesh"):
        open_source(f"scenes-scannet:{root}").read(0)
    (folder / "scene0000_00.aggregation.json").unlink()
    with pytest.raises(CorruptSample, match="aggregation"):
        open_source(f"scenes-scannet:{root}").read(0)
    with pytest.raises(FileNotFoundError, match="vh_clean_2"):
        open_source(f"scenes-scannet:{root / 'nowhere'}")
    (folder / "scene0000_00.txt").write_text("axisAlignment = 1 2 3")
    with pytest.raises(ValueError, match="3 numbers"):
        aligned(np.zeros((1, 3)), folder / "scene0000_00.txt")
    assert instances_of(np.array([3, 9]), [{"objectId": 4, "segments": [9]}]).tolist() == [-1, 4]


# Sentences ------------------------------------------------------------------------------------------------------


def test_nr3d_and_sr3d(tmp_path):
    path = tmp_path / "sr3d.csv"
    path.write_text(
        "scan_id,target_id,instance_type,utterance,anchor_ids,distractor_ids,reference_type,mentions_target_class\n"
        'scene1,4,chair,the chair near the desk,"[7]","[5, 6, 9]",horizontal,True\n'
        "scene1,5,chair,that chair,[],[],allocentric,True\n"
    )
    (scene, first), (_, second) = read_referrals(path)
    assert (scene, first.target, first.anchors, first.more["distractors"]) == ("scene1", 4, (7,), 3)
    assert second.more == {"distractors": 0, "reference_type": "allocentric", "mentions_target_class": "True"}
    named = named_words(first, {4: "chair", 7: "desk"})
    assert [(word.object, named.text[word.start : word.stop]) for word in named.words] == [(4, "chair"), (7, "desk")]
    (tmp_path / "bad.csv").write_text("scan_id,utterance\nscene1,x\n")
    with pytest.raises(ValueError, match=r"row 0.*target_id"):
        read_referrals(tmp_path / "bad.csv")
    with pytest.raises(ValueError, match="neither"):
        read_referrals(tmp_path / "bad.txt")


def test_words_are_whole_and_named_once():
    told = named_words(
        Referral("the armchair and a chair, chairs, boxes", 1, (2, 3)), {1: "chair", 2: "box", 3: "chair"}
    )
    assert [told.text[word.start : word.stop] for word in told.words] == ["chair", "boxes"]
    assert named_words(told, {1: "chair"}) == told
    assert named_words(Referral("it", 1), {1: ""}).words == ()


def test_scanqa(scannet):
    root, _ = scannet
    rows = [
        {
            "scene_id": "scene0000_00",
            "question_id": "q1",
            "question": "What is by the desk?",
            "answers": ["chair"],
        },
        {"scene_id": "scene0000_00", "question_id": "q2", "question": "How many desks?"},
        {"scene_id": "scene8888_00", "question_id": "q3", "question": "Where?", "answers": ["there"]},
    ]
    (root / "scanqa.json").write_text(json.dumps(rows))
    source = open_source(f"scanqa:{root / 'scanqa.json'}?scans={root}")
    assert (len(source), source.missing) == (2, 1)
    first, second = (pickle.loads(pickle.dumps(source)).read(place) for place in range(2))
    assert (first["__key__"], first["txt"], first["labels.json"]) == ("q1", "What is by the desk?", ["chair"])
    assert "labels.json" not in second
    assert checked_scene(second["scene.npz"])["ids"].tolist() == [0, 1, 2]
    (root / "scanqa.json").write_text(json.dumps([{"scene_id": "x", "question_id": "q"}]))
    with pytest.raises(ValueError, match="'question'"):
        open_source(f"scanqa:{root / 'scanqa.json'}?scans={root}")
