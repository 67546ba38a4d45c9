"""Layouts of public data sets, written here in miniature, to tables; and what of them is missing or otherwise."""

import json

import numpy as np
import pytest
import soundfile

from collimate.data import open_source
from collimate_audio.importing import import_audioset, import_esc50, import_speech_commands

RATE = 16_000


def clip(path, seconds=0.1, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * rate), np.int16), rate)


def rows(table):
    return [json.loads(line) for line in table.read_text().splitlines()]


def test_esc50(tmp_path, capsys):
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for number, (fold, name) in enumerate([(1, "dog"), (2, "sea_waves"), (2, "dog"), (3, "rain")]):
        lines.append(f"{fold}-{number}-A.wav,{fold},{number},{name},False,{number},A")
        if name != "rain":
            clip(tmp_path / "ESC-50" / "audio" / f"{fold}-{number}-A.wav")
    (tmp_path / "ESC-50" / "meta").mkdir()
    (tmp_path / "ESC-50" / "meta" / "esc50.csv").write_text("\n".join(lines))
    table = tmp_path / "tables" / "esc50.jsonl"
    import_esc50(str(tmp_path / "ESC-50"), str(table))
    assert [(row["label"], row["fold"]) for row in rows(table)] == [("dog", 1), ("sea waves", 2), ("dog", 2)]
    said = capsys.readouterr().out
    assert "1 in fold 1, 2 in fold 2" in said
    assert "Left out: 1" in said
    source = open_source(f"{table}?fold=[2,3]")
    assert source.class_names == ["dog", "sea waves"]
    assert source.read(0)["wav"][:4] == b"RIFF"


@pytest.fixture
def commands(tmp_path):
    folder = tmp_path / "commands"
    for word in ("yes", "go", "bed"):
        for number in range(3):
            clip(folder / word / f"speaker{number}_nohash_0.wav")
    clip(folder / "_background_noise_" / "hum.wav", 10.5)
    (folder / "validation_list.txt").write_text("yes/speaker1_nohash_0.wav\nbed/speaker1_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("yes/speaker2_nohash_0.wav\ngo/speaker2_nohash_0.wav\n")
    return folder


def test_all_speech_commands(tmp_path, commands):
    table = tmp_path / "all.jsonl"
    import_speech_commands(str(commands), str(table))
    assert open_source(table).class_names == ["bed", "go", "yes"]
    assert len(open_source(f"{table}?split=train")) == 5
    assert {row["label"] for row in rows(table) if row["split"] == "val"} == {"bed", "yes"}
    assert {row["speaker"] for row in rows(table)} == {"speaker0", "speaker1", "speaker2"}


def test_twelve_speech_commands(tmp_path, commands):
    table = tmp_path / "twelve.jsonl"
    import_speech_commands(str(commands), str(table), 12)
    assert open_source(table).class_names == ["go", "silence", "unknown", "yes"]
    silence = [row for row in rows(table) if row["label"] == "silence"]
    assert [row["split"] for row in silence] == ["train"] * 8 + ["val", "test"]
    assert soundfile.info(tmp_path / silence[0]["file"]).frames == RATE
    assert [row["file"] for row in rows(table) if row["label"] == "unknown"] == [
        f"commands/bed/speaker{number}_nohash_0.wav" for number in range(3)
    ]


def test_twelve_speech_commands_with_their_test_set(tmp_path, commands):
    for name in ("yes", "_unknown_", "_silence_"):
        clip(tmp_path / "official" / name / "0.wav")
    table = tmp_path / "twelve.jsonl"
    import_speech_commands(str(commands), str(table), 12, str(tmp_path / "official"))
    tested = [row for row in rows(table) if row["split"] == "test"]
    assert sorted(row["label"] for row in tested) == ["silence", "unknown", "yes"]
    assert all(row["file"].startswith("official/") for row in tested)
    with pytest.raises(ValueError, match="classes to 12"):
        import_speech_commands(str(commands), str(table), 35, str(tmp_path / "official"))


@pytest.fixture
def audioset(tmp_path):
    (tmp_path / "classes.csv").write_text('index,mid,display_name\n0,/m/0a,Speech\n1,/m/0b,"Chewing, mastication"\n')
    (tmp_path / "part.csv").write_text(
        "# Segments csv created\n# num_ytids=4\n# YTID, start_seconds, end_seconds, positive_labels\n"
        '--aaaaaaaaa, 30.000, 40.000, "/m/0a,/m/0b"\nYbbbbbbbbb_, 0.000, 10.000, "/m/0b"\n'
        'ccccccccccc, 0.000, 10.000, "/m/0a"\nddddddddddd, 0.000, 10.000, "/m/0a"\n'
    )
    for name in ("--aaaaaaaaa_30.000_40.000", "YYbbbbbbbbb_", "ccccccccccc"):
        clip(tmp_path / "clips" / "train" / f"{name}.wav")
    return tmp_path


def test_audioset(audioset, capsys):
    table = audioset / "part.jsonl"
    import_audioset(str(audioset / "clips"), str(audioset / "part.csv"), str(audioset / "classes.csv"), str(table))
    assert [(row["id"], row["labels"]) for row in rows(table)] == [
        ("--aaaaaaaaa", ["Speech", "Chewing, mastication"]),
        ("Ybbbbbbbbb_", ["Chewing, mastication"]),
        ("ccccccccccc", ["Speech"]),
    ]
    assert "Left out: 1" in capsys.readouterr().out
    assert open_source(table).peek(0, ["labels.json"])["labels.json"] == ["Speech", "Chewing, mastication"]


def test_other_files_are_refused(audioset, tmp_path):
    part, classes, table = (str(audioset / name) for name in ("part.csv", "classes.csv", "part.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="None of the 4 clips"):
        import_audioset(str(tmp_path / "empty"), part, classes, table)
    with pytest.raises(ValueError, match=r"\.jsonl"):
        import_audioset(str(audioset / "clips"), part, classes, "part.csv")
    (audioset / "few.csv").write_text("index,mid,display_name\n0,/m/0a,Speech\n")
    with pytest.raises(ValueError, match="entry 1 has the label '/m/0b'"):
        import_audioset(str(audioset / "clips"), part, str(audioset / "few.csv"), table)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        import_audioset(str(tmp_path / "nothing"), part, classes, table)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text("file,category\n")
    with pytest.raises(ValueError, match="no column 'filename'"):
        import_esc50(str(tmp_path), table)
