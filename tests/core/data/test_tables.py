"""Tables: each row where it stands, nothing else in memory."""

import csv
import json
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collimate.data import Caption, CorruptSample, TableSource, open_source
from collimate.data.captions import captions_of


@pytest.fixture
def jsonl(tmp_path, jpeg):
    (tmp_path / "images").mkdir()
    for number in range(6):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(jpeg(number))
    rows = [
        {"image": f"images/{n}.jpg", "captions": [f"one {n}", f"two {n}"], "split": "train" if n < 4 else "test"}
        for n in range(6)
    ]
    path = tmp_path / "table.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_json_lines(jsonl, jpeg):
    source = TableSource(jsonl)
    assert len(source) == 6
    sample = source.read(2)
    assert sample["jpg"] == jpeg(2)
    assert sample["captions.json"] == ["one 2", "two 2"]
    assert sample["json"]["split"] == "train"
    assert sample["__key__"] == "2:images/2.jpg"


def test_conditions(jsonl):
    source = TableSource(jsonl, where={"split": "test"})
    assert [source.read(place)["json"]["image"] for place in range(len(source))] == ["images/4.jpg", "images/5.jpg"]
    with pytest.raises(ValueError, match="no row has split=val"):
        TableSource(jsonl, where={"split": "val"})
    with pytest.raises(ValueError, match="no column 'fold'; it has image, captions, split"):
        TableSource(jsonl, where={"fold": 1})


def test_pickled_tables_read_on(jsonl):
    source = TableSource(jsonl)
    source.read(0)
    assert pickle.loads(pickle.dumps(source)).read(5)["captions.json"] == ["one 5", "two 5"]


CELLS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\r\x00"), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8), suffix=st.sampled_from([".csv", ".tsv"]))
def test_csv_cells_of_any_kind(tmp_path, rows, suffix):
    path = tmp_path / f"t{suffix}"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="," if suffix == ".csv" else "\t")
        writer.writerows([("caption", "other"), *rows])
    source = TableSource(path)
    assert [(source.read(n)["txt"], source.read(n)["json"]["other"]) for n in range(len(source))] == rows


def test_byte_order_mark(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfcaption,b\r\nhello,1\r\n")
    assert TableSource(tmp_path / "t.csv").read(0)["txt"] == "hello"


def test_other_column_names(tmp_path, jpeg):
    (tmp_path / "x.png").write_bytes(jpeg(0, format="PNG"))
    (tmp_path / "t.tsv").write_text("img\talt\nx.png\ta cat\n")
    sample = TableSource(tmp_path / "t.tsv", columns={"file": "img", "txt": "alt"}).read(0)
    assert (sample["txt"], sample["png"]) == ("a cat", jpeg(0, format="PNG"))
    with pytest.raises(ValueError, match="no column 'image'"):
        TableSource(tmp_path / "t.tsv", columns={"file": "image"})


# Column names as in the CSV and the JSON that DreamLIP releases.
CSV_COLUMNS = {
    "file": "Image Path",
    "txt": "raw_caption",
    "captions.short": ["shortIB_captions", "shortSV_captions"],
    "captions.long": ["longIB_captions", "longSV_captions"],
}
JSON_COLUMNS = {
    "file": "ImagePath",
    "captions.raw": "RawCaption",
    "captions.short": "SVCaptionShort",
    "captions.long": "SVCaptionLong",
}


def test_columns_of_captions_by_kind(tmp_path, jpeg):
    (tmp_path / "x.jpg").write_bytes(jpeg(0))
    header = "Image Path,raw_caption,shortIB_captions,longIB_captions,shortSV_captions,longSV_captions"
    (tmp_path / "cc3m.csv").write_text(f'{header}\nx.jpg,dog photo,A dog.,"A dog, brown. It sits.",,A dog sits.\n')
    for source in (
        TableSource(tmp_path / "cc3m.csv", columns=CSV_COLUMNS),
        open_source(f"{tmp_path}/cc3m.csv?columns={json.dumps(CSV_COLUMNS)}"),
    ):
        sample = source.read(0)
        assert sample["jpg"] == jpeg(0)
        assert captions_of(sample) == [
            Caption("dog photo", "raw"),
            Caption("A dog.", "short"),
            Caption("A dog, brown. It sits.", "long"),
            Caption("A dog sits.", "long"),
        ]


def test_json_captions_by_kind(tmp_path, jpeg):
    (tmp_path / "x.jpg").write_bytes(jpeg(0))
    row = {"ImagePath": "x.jpg", "RawCaption": "", "SVCaptionShort": "A dog.", "SVCaptionLong": ["A dog", "It sits"]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | dict.fromkeys(list(row)[1:], "")))
    source = TableSource(tmp_path / "t.jsonl", columns=JSON_COLUMNS)
    assert captions_of(source.read(0)) == [
        Caption("A dog.", "short"),
        Caption("A dog", "long"),
        Caption("It sits", "long"),
    ]
    with pytest.raises(CorruptSample, match=r"captions\.json"):
        captions_of(source.read(1))
    with pytest.raises(ValueError, match="no column 'BLIP'"):
        TableSource(tmp_path / "t.jsonl", columns={"captions.short": ["SVCaptionShort", "BLIP"]})
    with pytest.raises(ValueError, match="txt is one column"):
        TableSource(tmp_path / "t.jsonl", columns={"txt": ["SVCaptionShort", "RawCaption"]})


def test_classes_by_number_and_by_name(tmp_path):
    (tmp_path / "t.csv").write_text("caption,label\na,dog\nb,cat\nc,dog\n")
    source = TableSource(tmp_path / "t.csv")
    assert source.class_names == ["cat", "dog"]
    assert [source.read(place)["cls"] for place in range(3)] == [1, 0, 1]
    (tmp_path / "u.csv").write_text("caption,label,label_id\na,dog,1\nb,cat,0\n")
    (tmp_path / "classes.json").write_text('["a cat", "a dog"]')
    source = TableSource(tmp_path / "u.csv")
    assert source.class_names == ["a cat", "a dog"]
    assert source.read(0)["cls"] == 1


def test_unparsable_rows_are_named(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"caption": "a"}\n{"caption": \n')
    with pytest.raises(ValueError, match=r"t\.jsonl: line 2: cannot parse"):
        TableSource(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text('["a"]\n')
    with pytest.raises(ValueError, match="line 1: expected an object"):
        TableSource(tmp_path / "t.jsonl")


@pytest.mark.parametrize("content", ["", "caption\n"])
def test_empty_tables_are_refused(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match="no rows"):
        TableSource(tmp_path / "t.csv")


def test_missing_files_are_corrupt_samples(jsonl):
    (jsonl.parent / "images" / "1.jpg").unlink()
    with pytest.raises(CorruptSample, match=r"row 1: missing file .*1\.jpg"):
        TableSource(jsonl).read(1)


def test_real_tables(shared_data):
    coco = TableSource(shared_data / "images_coco_captions" / "manifest.jsonl", where={"split": "test"})
    assert len(coco) == 115
    assert all(len(coco.read(place)["captions.json"]) == 5 for place in range(5))
    clothing = TableSource(shared_data / "images_clothing10" / "manifest.csv")
    assert len(clothing) == 1482
    assert clothing.class_names[2] == "long-sleeved top"


def test_classes_have_one_number_in_every_part_of_a_table(tmp_path):
    """A part that lacks a class would otherwise number the others differently, without an error."""
    path = tmp_path / "t.csv"
    path.write_text("file,label,fold\nx.wav,ant,1\ny.wav,bee,1\nz.wav,bee,2\nw.wav,cow,3\n")
    part = open_source(f"{path}?fold=2")
    assert part.class_names == ["ant", "bee", "cow"]
    assert part.peek(0, ["cls"])["cls"] == 1
    assert "wav" not in part.peek(0, ["cls"])
    (tmp_path / "classes.json").write_text('["bee", "ant", "dog", "cow"]')
    assert open_source(f"{path}?fold=2").peek(0, ["cls"])["cls"] == 0


def test_conditions_with_several_values(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file,fold\na.wav,1\nb.wav,2\nc.wav,3\n")
    source = open_source(f"{path}?fold=[1, 3]")
    assert [source.row(index)["file"] for index in range(len(source))] == ["a.wav", "c.wav"]
    assert source.name == f"{path}?fold=[1,3]"
    assert len(open_source(source.name)) == len(source)


def test_several_labels_in_a_column(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('file,labels\na.wav,"rain,wind"\nb.wav,"Chewing, mastication"\nc.wav,["rain\n')
    source = open_source(path)
    assert source.class_names == ["Chewing, mastication", "rain", "wind"]
    assert source.peek(0, ["labels.json"])["labels.json"] == "rain,wind"
