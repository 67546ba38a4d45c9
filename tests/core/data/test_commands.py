"""`collimate data`: shards from anything, and what is said of them."""

import json
import os
import subprocess
import sys

import pytest

from collimate.data import FolderSource, ShardSource, TableSource, class_names, commands


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setattr(commands, "console", commands.Console(width=200))


def test_shards_from_a_table_hold_what_it_says(shared_data, tmp_path, capsys):
    spec = f"{shared_data}/images_coco_captions/manifest.jsonl?split=test"
    commands.shard(spec, str(tmp_path), samples_per_shard=50)
    written, table = ShardSource(tmp_path), TableSource(spec.partition("?")[0], where={"split": "test"})
    assert written.counts.tolist() == [50, 50, 15]
    by_id = {table.row(place)["image_id"]: place for place in range(len(table))}
    for place in range(0, 115, 10):
        sample = written.read(place)
        original = table.read(by_id[json.loads(sample["json"])["image_id"]])
        assert sample["jpg"] == original["jpg"]
        assert json.loads(sample["captions.json"]) == original["captions.json"]
    assert "115 samples in 3 shards" in capsys.readouterr().out


def test_shards_from_class_folders(tmp_path, jpeg):
    for place in range(6):
        path = tmp_path / "in" / "ab"[place % 2] / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(place))
    commands.shard(str(tmp_path / "in"), str(tmp_path / "out"), shuffle=False)
    written, folder = ShardSource(tmp_path / "out"), FolderSource(tmp_path / "in")
    assert class_names(written) == ["a", "b"]
    assert [int(written.read(place)["cls"]) for place in range(6)] == [folder.read(place)["cls"] for place in range(6)]


def test_decoded_samples_are_encoded(tmp_path, monkeypatch, numbers):
    import numpy as np
    from PIL import Image

    monkeypatch.setattr(commands, "open_source", lambda spec, **_: Pictures())

    class Pictures(numbers):
        def __init__(self):
            super().__init__(3)

        def read(self, index):
            image = np.full((8, 8, 3), index, np.uint8)
            return {
                "__key__": "k",
                "png": image,
                "jpg": Image.fromarray(image),
                "txt": "é",
                "json": {"n": index},
                "cls": 4,
            }

    commands.shard("pictures", str(tmp_path), shuffle=False)
    sample = ShardSource(tmp_path).read(2)
    assert sample["txt"] == "é".encode()
    assert json.loads(sample["json"]) == {"n": 2}
    from collimate.data.decoding import decode

    assert decode("png", sample["png"]).getpixel((0, 0)) == (2, 2, 2)
    assert decode("jpg", sample["jpg"]).size == (8, 8)
    assert decode("cls", sample["cls"]) == 4


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(shards, tmp_path, monkeypatch):
    shards(23)
    spec = str(tmp_path / "shards")
    commands.shard(spec, str(tmp_path / "whole"), samples_per_shard=5)
    write, calls = commands.write_shard, []

    def dies(path, *rest):
        calls.append(path.name)
        if len(calls) == 3:
            path.with_name(f".{path.name}.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        return write(path, *rest)

    monkeypatch.setattr(commands, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        commands.shard(spec, str(tmp_path / "again"), samples_per_shard=5)
    commands.shard(spec, str(tmp_path / "again"), samples_per_shard=5)
    assert calls == [f"{place:06d}.tar" for place in (0, 1, 2, 2, 3, 4)]
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.tar"))
    assert sorted(path.name for path in (tmp_path / "again").iterdir() if path.suffix == ".tar") == names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    commands.shard(spec, str(tmp_path / "again"), samples_per_shard=5)
    assert len(calls) == 6
    with pytest.raises(ValueError, match="samples_per_shard was 5, now it is 6"):
        commands.shard(spec, str(tmp_path / "again"), samples_per_shard=6)
    with pytest.raises(ValueError, match="holds shards already"):
        commands.shard(spec, spec)


def test_shards_are_bounded_in_bytes_and_leave_out_what_cannot_be_read(tmp_path, numbers, monkeypatch, capsys):
    monkeypatch.setattr(commands, "open_source", lambda spec, **_: numbers(20, bad=[0, 1, 2, 3, 7]))
    commands.shard("numbers", str(tmp_path), samples_per_shard=4, max_bytes=3, shuffle=False)
    source = ShardSource(tmp_path)
    assert [int(source.read(place)["txt"]) for place in range(len(source))] == [4, 5, 6, *range(8, 20)]
    assert source.counts.max() <= 3
    assert "Left out: 5 x spoilt" in capsys.readouterr().out


def test_index(shards, tmp_path, capsys):
    shards(3, 4)
    commands.index(str(tmp_path / "shards"))
    out = capsys.readouterr().out
    assert "7 samples" in out
    assert "2 shards, of which 0 are bad" in out
    os.truncate(tmp_path / "shards" / "000001.tar", 0)
    with pytest.raises(SystemExit):
        commands.index(str(tmp_path / "shards"))
    assert "empty file" in capsys.readouterr().out


def test_inspect(shards, tmp_path, capsys):
    shards(6, 6)
    commands.inspect(str(tmp_path / "shards"), show=1)
    out = capsys.readouterr().out
    for expected in (
        "12 samples",
        "2 shards of 6 to 6",
        "100.0%",
        "40-40 pixels wide",
        "words a caption: median 2",
        "txt: caption 0",
    ):
        assert expected in out


def test_verify(shards, tmp_path, jpeg, capsys):
    paths = shards(6, 6)
    commands.verify(str(tmp_path / "shards"))
    assert "12 samples checked: 0 are corrupt" in capsys.readouterr().out
    shards(6, 6, replace={2: b"", 4: jpeg(4, (200, 200))[:900], 8: b"no picture"})
    os.truncate(paths[1], paths[1].stat().st_size // 2)
    report = tmp_path / "report.json"
    with pytest.raises(SystemExit) as stopped:
        commands.verify(str(tmp_path / "shards"), report=str(report))
    assert stopped.value.code == 1
    found = json.loads(report.read_text())
    assert list(found["shards"].values()) == ["truncated"]
    assert [(each["where"].split()[-1], each["reason"]) for each in found["samples"]] == [
        ("00002.jpg", "empty file"),
        ("00004.jpg", "truncated file"),
        ("00008.jpg", "not an image"),
    ]


def test_balance(shards, tmp_path, capsys):
    shards(*[20] * 6)
    commands.balance(f"{tmp_path}/shards?lanes=3", ranks=3, workers=2, batch_size=8)
    out = capsys.readouterr().out
    assert out.count("2 of 6") == 3
    assert "120 samples; 24 a step; 5 whole steps" in out
    commands.balance(f"{tmp_path}/shards", ranks=3, batch_size=8)
    assert "lanes=3" in capsys.readouterr().out


def test_the_commands_import_no_torch():
    code = "import sys, collimate.data.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
