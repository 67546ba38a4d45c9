"""Layouts of public data sets, written here in miniature, to tables; and the nouns of captions."""

import json

import numpy as np
import pytest

from collimate.data import open_source
from collimate_video.alpro.entities import read_entities
from collimate_video.alpro.vocabulary import entities, nouns
from collimate_video.importing import import_didemo, import_msrvtt, import_msvd
from collimate_video.transcoding import transcode


def film(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(transcode(np.zeros((2, 32, 32, 3), np.uint8)))


def rows(table):
    return [json.loads(line) for line in table.read_text().splitlines()]


def test_msrvtt(tmp_path, capsys):
    for name in ("video0", "video1", "video7"):
        film(tmp_path / "videos" / "all" / f"{name}.mp4")
    told = [{"video_id": f"video{n}", "caption": f"text {n} {k}"} for n in (0, 1, 2, 7) for k in range(2)]
    (tmp_path / "data.json").write_text(json.dumps({"videos": [], "sentences": told}))
    (tmp_path / "test.csv").write_text("key,vid_key,video_id,sentence\nret0,msr7,video7,text 7 1\n")
    given = {"videos": str(tmp_path / "videos"), "annotations": str(tmp_path / "data.json")}
    table = tmp_path / "tables" / "msrvtt.jsonl"
    import_msrvtt(**given, test=str(tmp_path / "test.csv"), output=str(table))
    assert [(row["id"], row["split"], row["captions"]) for row in rows(table)] == [
        ("video0", "train", ["text 0 0", "text 0 1"]),
        ("video1", "train", ["text 1 0", "text 1 1"]),
        ("video7", "test", ["text 7 1"]),
    ]
    assert "2 train, 1 test" in (said := capsys.readouterr().out)
    assert "Left out: 1" in said
    sample = open_source(f"{table}?split=test").read(0)
    assert json.loads(json.dumps(sample["captions.json"])) == ["text 7 1"]
    assert sample["mp4"]
    (tmp_path / "train.csv").write_text("video_id\nvideo1\n")
    import_msrvtt(**given, test=str(tmp_path / "test.csv"), output=str(table), train=str(tmp_path / "train.csv"))
    assert [row["id"] for row in rows(table)] == ["video1", "video7"]
    with pytest.raises(ValueError, match="no column 'sentence'"):
        import_msrvtt(**given, test=str(tmp_path / "train.csv"), output=str(table))


def test_didemo(tmp_path):
    film(tmp_path / "one.mp4")
    told = [{"video": "one.mov", "description": text} for text in ("A dog runs.", "it stops")]
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}_data.json").write_text(json.dumps(told if split == "test" else []))
    import_didemo(str(tmp_path), str(tmp_path), str(tmp_path / "didemo.jsonl"))
    (row,) = rows(tmp_path / "didemo.jsonl")
    assert (row["captions"], row["split"]) == (["A dog runs. it stops."], "test")


def test_msvd(tmp_path):
    film(tmp_path / "ab_1_5.mp4")
    (tmp_path / "AllVideoDescriptions.txt").write_text("# lines\n\nab_1_5 a man runs\nab_1_5 someone runs\ncd_0_2 x\n")
    for split, names in (("train", "ab_1_5\ncd_0_2\n"), ("val", ""), ("test", "")):
        (tmp_path / f"{split}_list.txt").write_text(names)
    import_msvd(str(tmp_path), str(tmp_path), str(tmp_path / "msvd.jsonl"))
    assert [row["captions"] for row in rows(tmp_path / "msvd.jsonl")] == [["a man runs", "someone runs"]]


def test_what_cannot_be_imported(tmp_path):
    (tmp_path / "AllVideoDescriptions.txt").write_text("ab_1_5 a man runs\n")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}_list.txt").write_text("ab_1_5\n")
    with pytest.raises(FileNotFoundError, match="None of the 3 videos"):
        import_msvd(str(tmp_path), str(tmp_path), str(tmp_path / "msvd.jsonl"))
    with pytest.raises(ValueError, match=r"\.jsonl"):
        import_msvd(str(tmp_path), str(tmp_path), str(tmp_path / "msvd.csv"))
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(ValueError, match="no annotation of MSR-VTT"):
        import_msrvtt(str(tmp_path), str(tmp_path / "data.json"), "none", str(tmp_path / "x.jsonl"))


def test_nouns_are_the_last_words_of_noun_phrases_counted_once_a_text():
    pytest.importorskip("nltk")
    parts = {"dog": "NN", "house": "NN", "red": "JJ", "runs": "VBZ", "a": "DT", "3": "NN"}
    found = nouns(["a red dog runs a dog", "a dog house", "a 3"], lambda words: [(word, parts[word]) for word in words])
    assert found == {"dog": 1, "house": 1}


def test_entities_of_a_corpus(tmp_path, capsys):
    pytest.importorskip("textblob")
    table = tmp_path / "captions.jsonl"
    texts = ["a girl on a horse", "a horse runs", "the girl walks his dog", "", "a horse"]
    table.write_text("".join(json.dumps({"file": "none.mp4", "caption": text}) + "\n" for text in texts))
    entities(str(table), str(tmp_path / "entities.txt"), count=2, tagger="textblob")
    assert (tmp_path / "entities.txt").read_text() == "horse 3\ngirl 2\n"
    assert "Left out: 1" in capsys.readouterr().out
    assert read_entities(str(tmp_path / "entities.txt")) == ["horse", "girl"]
