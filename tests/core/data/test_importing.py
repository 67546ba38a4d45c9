"""`collimate data import-regions`: small files in the forms that the data sets are published in."""

import json
import pickle
import random

import pytest
import torch

from collimate.cli import main
from collimate.data import Preparation, RegionChoice, open_source, regions_of
from collimate.data.importing import import_regions
from collimate.processing import ClipTokenizer, ImageProcessor

IMAGES = [
    {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
    {"id": 8, "file_name": "b.jpg", "width": 40, "height": 30},
    {"id": 9, "file_name": "gone.jpg", "width": 40, "height": 30},
]
INSTANCES = {
    "images": IMAGES,
    "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "traffic_light"}],
    "annotations": [
        {"id": 11, "image_id": 7, "category_id": 1, "bbox": [1, 2, 10, 20], "iscrowd": 0},
        {"id": 12, "image_id": 7, "category_id": 3, "bbox": [20.5, 2, 5, 5.25], "iscrowd": 0},
        {"id": 13, "image_id": 7, "category_id": 1, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        {"id": 14, "image_id": 7, "category_id": 1, "bbox": [60, 0, 5, 5], "iscrowd": 0},
        {"id": 15, "image_id": 9, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0},
        {"id": 16, "image_id": 99, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0},
    ],
}
CAPTIONS = {"annotations": [{"image_id": 8, "caption": "a street \n"}, {"image_id": 8, "caption": "a road"}]}


@pytest.fixture
def folder(tmp_path, jpeg):
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.jpg", "deep/1000.jpg")):
        (tmp_path / "pictures" / name).write_bytes(jpeg(number))
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS))
    return tmp_path


def imported(folder, format, annotations, **options):
    table = folder / "tables" / "t.jsonl"
    import_regions(format, str(folder / annotations), str(folder / "pictures"), str(table), **options)
    source = open_source(table)
    return [source.read(place) for place in range(len(source))]


def test_coco(folder, jpeg, capsys):
    (only,) = imported(folder, "coco", "instances.json")
    assert only["jpg"] == jpeg(0)
    found = [(region.box, region.phrase, region.name) for region in regions_of(only["regions.json"], (40, 30))]
    assert found == [((1, 2, 11, 22), "cat", "cat"), ((20.5, 2, 25.5, 7.25), "traffic light", "traffic light")]
    printed = capsys.readouterr().out
    reasons = ("picture not there", "picture without regions", "crowd", "box outside the picture", "box of no picture")
    for reason in reasons:
        assert f"Left out: 1 x {reason}." in printed
    assert "2 regions in 1 pictures" in " ".join(printed.split())


def test_coco_with_captions_and_lvis_names(folder):
    for image in (content := json.loads(json.dumps(INSTANCES)))["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
    (folder / "lvis.json").write_text(json.dumps(content))
    boxed, captioned = imported(folder, "coco", "lvis.json", captions=str(folder / "captions.json"))
    assert len(boxed["regions.json"]) == 2
    assert "captions.json" not in boxed
    assert captioned["captions.json"] == ["a street", "a road"]
    assert "regions.json" not in captioned


def test_visual_genome(folder):
    regions = [
        {"region_id": 1, "image_id": 1000, "x": 3, "y": 4, "width": 5, "height": 6, "phrase": "the clock is green"},
        {"region_id": 2, "image_id": 1000, "x": 3, "y": 4, "width": 5, "height": 6, "phrase": " "},
    ]
    (folder / "region_descriptions.json").write_text(json.dumps([{"id": 1000, "regions": regions}]))
    (only,) = imported(folder, "visual-genome", "region_descriptions.json")
    (region,) = regions_of(only["regions.json"], (40, 30))
    assert (region.box, region.phrase, region.name) == ((3, 4, 8, 10), "the clock is green", None)


REFERENCES = [
    {"ref_id": 0, "ann_id": 11, "image_id": 7, "category_id": 1, "split": "train", "file_name": "COCO_x_11.jpg",
     "sentences": [{"sent": "left cat"}, {"sent": "the cat"}, {"sent": "left cat"}]},
    {"ref_id": 1, "ann_id": 12, "image_id": 7, "category_id": 3, "split": "val", "file_name": "COCO_x_12.jpg",
     "sentences": [{"sent": "the light"}]},
    {"ref_id": 2, "ann_id": 404, "image_id": 7, "category_id": 3, "split": "val", "sentences": [{"sent": "no"}]},
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".p", ".json"])
def test_refcoco(folder, suffix):
    as_bytes = pickle.dumps(REFERENCES, protocol=2) if suffix == ".p" else json.dumps(REFERENCES).encode()
    (folder / f"refs(unc){suffix}").write_bytes(as_bytes)
    train, val = imported(folder, "refcoco", f"refs(unc){suffix}")
    (region,) = regions_of(train["regions.json"], (40, 30))
    assert (region.box, region.name) == ((1, 2, 11, 22), "cat")
    assert (region.phrase, *region.more) == ("left cat", "the cat")
    assert [each["phrases"] for each in val["regions.json"]] == [["the light"]]
    assert len(open_source(f"{folder}/tables/t.jsonl?split=val")) == 1


def test_training_draws_among_the_phrases_of_a_region(folder):
    (folder / "refs.json").write_text(json.dumps(REFERENCES))
    train, _ = imported(folder, "refcoco", "refs.json")
    processors = {"image": ImageProcessor(32), "text": ClipTokenizer(8)}
    prepare = Preparation(processors, regions=RegionChoice(1))
    random.seed(0)
    drawn = [prepare({**train, "txt": "a"})["region_text"][0] for _ in range(20)]
    for phrase in ("left cat", "the cat"):
        assert any(torch.equal(text, processors["text"](phrase)) for text in drawn)


class Harm:
    def __reduce__(self):
        return print, ("harm",)


def test_references_run_nothing(folder, capsys):
    (folder / "refs.p").write_bytes(pickle.dumps([Harm()]))
    with pytest.raises(ValueError, match=r"builtins.print, and only plain values are read"):
        imported(folder, "refcoco", "refs.p")
    assert "harm" not in capsys.readouterr().out


SENTENCES = """[/EN#1/people Two men] in [/EN#2/clothing green shirts] stand in [/EN#0/notvisual a yard] .
[/EN#1/people Two guys] near [/EN#3/scene a house] .
"""
BOXES = """<annotation><filename>1000.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>1</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>30</ymax></bndbox></object>
<object><name>1</name><name>2</name><bndbox><xmin>21</xmin><ymin>5</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>
<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object>
<object><name>9</name><bndbox><xmin>2</xmin><ymin>5</ymin><xmax>4</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""


def test_flickr30k_entities(folder):
    for name, suffix, content in (("Annotations", "xml", BOXES), ("Sentences", "txt", SENTENCES)):
        (folder / "entities" / name).mkdir(parents=True)
        (folder / "entities" / name / f"1000.{suffix}").write_text(content)
    (only,) = imported(folder, "flickr30k-entities", "entities")
    found = regions_of(only["regions.json"], (40, 30))
    assert [(region.box, (region.phrase, *region.more)) for region in found] == [
        ((0, 0, 10, 30), ("Two men", "Two guys")),
        ((20, 4, 40, 30), ("Two men", "Two guys")),
        ((20, 4, 40, 30), ("green shirts",)),
    ]
    assert only["captions.json"] == ["Two men in green shirts stand in a yard .", "Two guys near a house ."]


def test_wrong_files_are_named_with_what_was_expected(folder):
    with pytest.raises(ValueError, match=r"captions.json has no 'images'; expected a file of instances"):
        imported(folder, "coco", "captions.json")
    with pytest.raises(ValueError, match="not of the format visual-genome; expected region_descriptions"):
        imported(folder, "visual-genome", "instances.json")
    with pytest.raises(FileNotFoundError, match=r"There is no .*nowhere.*Sentences"):
        imported(folder, "flickr30k-entities", "nowhere")
    with pytest.raises(ValueError, match="goes with coco and refcoco only"):
        imported(folder, "visual-genome", "instances.json", captions="x")
    with pytest.raises(ValueError, match=r"instances.json has no captions"):
        imported(folder, "coco", "instances.json", captions=str(folder / "instances.json"))
    (folder / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken.json is no JSON .*expected a file of instances"):
        imported(folder, "coco", "broken.json")
    with pytest.raises(ValueError, match=r"a .jsonl file, not 'x.csv'"):
        import_regions("coco", str(folder / "instances.json"), str(folder), "x.csv")


def test_without_any_picture_no_table_is_left(folder):
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="None of the pictures"):
        import_regions("coco", str(folder / "instances.json"), str(folder / "empty"), str(folder / "t.jsonl"))
    assert not list(folder.glob("*t.jsonl*"))


def test_on_the_command_line(folder):
    arguments = ["--annotations", f"{folder}/instances.json", "--images", f"{folder}/pictures"]
    main(["data", "import-regions", "--format", "coco", *arguments, "--output", f"{folder}/t.jsonl"])
    assert len(open_source(folder / "t.jsonl")) == 1
