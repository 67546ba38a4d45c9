"""One line of text names any source."""

import json
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from collimate.data import FolderSource, HuggingFaceSource, ShardSource, TableSource, class_names, open_source


@pytest.fixture
def pictures(tmp_path, jpeg):
    for name in ("cat/1.jpg", "cat/2.png", "dog/deep/3.JPG", ".hidden/4.jpg"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(1, format="PNG" if "png" in name else "JPEG"))
    return tmp_path / "pictures"


def test_class_folders(pictures):
    source = open_source(str(pictures))
    assert isinstance(source, FolderSource)
    assert [(source.read(n)["__key__"], source.read(n)["cls"]) for n in range(len(source))] == [
        ("cat/1", 0),
        ("cat/2", 0),
        ("dog/deep/3", 1),
    ]
    assert class_names(source) == ["cat", "dog"]
    (pictures.parent / "classes.json").write_text('["a cat", "a dog"]')
    assert class_names(open_source(pictures)) == ["a cat", "a dog"]


def test_pictures_with_captions(tmp_path, jpeg):
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(0))
        (tmp_path / f"{name}.txt").write_text(f"caption {name}")
    source = FolderSource(tmp_path)
    assert [source.read(n)["txt"] for n in range(2)] == [b"caption a", b"caption b"]
    assert class_names(source) is None


def test_shards_by_pattern_folder_and_options(shards, tmp_path):
    shards(2, 3)
    for spec in (f"{tmp_path}/shards", f"{tmp_path}/shards/*.tar", f"{tmp_path}/shards/{{000000..000001}}.tar"):
        assert isinstance(open_source(spec), ShardSource)
        assert len(open_source(spec)) == 5
    source = open_source(f"{tmp_path}/shards?lanes=2&shuffle_window=7", max_bad_rate=0.5)
    assert (source.lanes, source.shuffle_window) == (2, 7)


def test_tables_with_conditions(tmp_path):
    rows = [{"caption": "a", "split": "train", "fold": 1}, {"caption": "b", "split": "test", "fold": 2}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert isinstance(open_source(f"{tmp_path}/t.jsonl"), TableSource)
    assert open_source(f"{tmp_path}/t.jsonl?split=test").read(0)["txt"] == "b"
    assert open_source(f"{tmp_path}/t.jsonl?fold=1&split=train").read(0)["txt"] == "a"
    assert open_source(f"{tmp_path}/t.jsonl", where={"fold": 2}).read(0)["txt"] == "b"


def test_a_source_is_returned(numbers):
    source = numbers(3)
    assert open_source(source) is source


def test_packages_offer_sources(monkeypatch):
    entry = EntryPoint("toys", "collections:Counter", "collimate.sources")
    monkeypatch.setattr("collimate.data.opening.entry_points", lambda **wanted: EntryPoints([entry]).select(**wanted))
    assert open_source("toys:abba") == {"a": 2, "b": 2}
    with pytest.raises(ValueError, match=r"'nothing' sources.*toys:"):
        open_source("nothing:train")


def test_hugging_face(tmp_path, jpeg):
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": jpeg(n), "path": None} for n in range(3)],
        "caption": ["a", "b", "c"],
        "label": [1, 0, 1],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    source = open_source(f"hf:{tmp_path}/set")
    assert isinstance(source, HuggingFaceSource)
    sample = source.read(2)
    assert (sample["jpg"], sample["txt"], sample["cls"]) == (jpeg(2), "c", 1)
    assert class_names(source) == ["x", "y"]


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*nowhere.*a folder of pictures"):
        open_source(f"{tmp_path}/nowhere")
    with pytest.raises(FileNotFoundError, match="no files that end in"):
        open_source(tmp_path)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(ValueError, match="Cannot tell what"):
        open_source(tmp_path / "x.parquet")


def test_a_folder_without_pictures_is_one_of_sounds(tmp_path):
    for name in ("bark/a.wav", "song/b.flac", "song/notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"sound")
    source = open_source(tmp_path)
    assert [source.read(index)["__key__"] for index in range(len(source))] == ["bark/a", "song/b"]
    assert class_names(source) == ["bark", "song"]
    assert source.read(1)["flac"] == b"sound"
    (tmp_path / "song/cover.png").write_bytes(b"picture")
    assert [open_source(tmp_path).read(0)["__key__"]] == ["song/cover"]


def test_options_that_a_source_has_not_are_refused_with_those_it_has(tmp_path):
    with pytest.raises(ValueError, match=r"world:test has no option lenght; it has .*length"):
        open_source("world:test?lenght=3")
    with pytest.raises(ValueError, match=r"length is -3, where 0 or more"):
        open_source("world:test?length=-3")
    (tmp_path / "one").mkdir()
    with pytest.raises(ValueError, match=r"has no option splt; it has .*extensions"):
        open_source(f"{tmp_path}?splt=train")
