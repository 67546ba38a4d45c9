"""Labels as targets: by name, by number, several; lists of class names; sources that number otherwise."""

import json

import pytest
import torch

from collimate.configurable import build
from collimate.data import open_source
from collimate.data.classes import labels_of, read_class_list
from collimate.data.decoding import Undecodable
from collimate.processing import ClassLabels

AUDIOSET = 'index,mid,display_name\n1,/m/0b,"Chewing, mastication"\n0,/m/0a,Speech\n2,/m/0c,Rain\n'


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (3, [3]),
        ("Speech", ["Speech"]),
        ("Speech,Rain", ["Speech", "Rain"]),
        ("Speech; Rain", ["Speech", "Rain"]),
        ("Chewing, mastication,Speech", ["Chewing, mastication", "Speech"]),
        ('["Rain", "Speech"]', ["Rain", "Speech"]),
        (["Rain", 2], ["Rain", 2]),
        ("", []),
        ([], []),
    ],
)
def test_a_value_says_its_labels(raw, expected):
    assert labels_of(raw) == expected


@pytest.mark.parametrize(("raw", "reason"), [('["Rain"', "damaged list"), (2.5, "neither"), ([None], "neither")])
def test_other_values_are_refused(raw, reason):
    with pytest.raises(Undecodable, match=reason):
        labels_of(raw)


def test_targets_by_name_second_name_and_number(tmp_path):
    path = tmp_path / "class_labels_indices.csv"
    path.write_text(AUDIOSET)
    assert read_class_list(path) == (["Speech", "Chewing, mastication", "Rain"], ["/m/0a", "/m/0b", "/m/0c"])
    labels = ClassLabels(str(path))
    for raw in ("Chewing, mastication,Rain", "/m/0b,/m/0c", [1, 2], "1,2", ["Rain", "/m/0b", "Rain"]):
        assert labels(raw).tolist() == [0, 1, 1]
    assert labels([]).tolist() == [0, 0, 0]
    with pytest.raises(Undecodable, match=r"unknown label \('Thunder'\)"):
        labels("Thunder")
    with pytest.raises(Undecodable, match="beyond"):
        labels(3)


def test_the_configuration_holds_the_names_and_not_their_file(tmp_path):
    path = tmp_path / "class_labels_indices.csv"
    path.write_text(AUDIOSET)
    config = ClassLabels(str(path)).config()
    path.unlink()
    rebuilt = build(json.loads(json.dumps(config)))
    assert rebuilt.names == ["Speech", "Chewing, mastication", "Rain"]
    assert rebuilt.number("/m/0c") == 2
    assert rebuilt.config() == config


@pytest.mark.parametrize(
    ("name", "content"), [("classes.json", '{"classes": ["a", "b"]}'), ("classes.txt", "a\n\nb\n"), ("t.csv", None)]
)
def test_names_from_files_and_data(tmp_path, name, content):
    (tmp_path / name).write_text(content or "file,label\nx.wav,b\ny.wav,a\n")
    assert ClassLabels(str(tmp_path / name)).names == ["a", "b"]


def test_bad_lists_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="called 'a'"):
        ClassLabels(["a", "a"])
    with pytest.raises(ValueError, match="second names"):
        ClassLabels(["a", "b"], ["x"])
    (tmp_path / "numbers.csv").write_text("file,label\nx.wav,1\n")
    with pytest.raises(ValueError, match=r"classes\.json"):
        ClassLabels(str(tmp_path / "numbers.csv"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="no class names"):
        ClassLabels(str(tmp_path / "empty.txt"))


def test_sources_that_number_otherwise_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("file,label\nx.wav,b\ny.wav,a\n")
    source = open_source(tmp_path / "t.csv")
    ClassLabels(["a", "b"]).check_source(source)
    with pytest.raises(ValueError, match="otherwise"):
        ClassLabels(["b", "a"]).check_source(source)
    with pytest.raises(ValueError, match="does not know"):
        ClassLabels(["a", "c"]).check_source(source)
    (tmp_path / "m.csv").write_text("file,labels\nx.wav,b\ny.wav,a\n")
    ClassLabels(["b", "a", "c"]).check_source(open_source(tmp_path / "m.csv"))  # by name, there is no order to be wrong
    assert torch.equal(
        ClassLabels(["b", "a", "c"])(open_source(tmp_path / "m.csv").peek(1, ["labels.json"])["labels.json"]),
        torch.tensor([0.0, 1, 0]),
    )
