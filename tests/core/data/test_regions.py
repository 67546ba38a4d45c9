"""Regions of samples: what data may say, what is refused and why, and the rows that training reads."""

import json
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from collimate.cli import main
from collimate.configurable import build
from collimate.data import (
    CorruptSample,
    EvalLoader,
    ImageAugmentation,
    Mixture,
    Preparation,
    RegionChoice,
    Source,
    StrongImageAugmentation,
    TrainingPreparation,
    TrainLoader,
    open_source,
)
from collimate.data.decoding import Undecodable
from collimate.data.loading import seed_generators
from collimate.data.preparation import Augmentation
from collimate.data.regions import Region, clipped, is_seen, regions_of
from collimate.processing import ClipTokenizer, ImageProcessor

SIZE = (100, 50)
M = 3


def sample(*regions, size=SIZE, key="7"):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    fields = {"jpg": Image.fromarray(pixels), "txt": "words", "regions.json": list(regions)}
    return {"__key__": key, "__source__": "table", **fields}


def region(box, phrase="a thing", **more):
    return {"box": box, "phrase": phrase, **more}


@pytest.fixture(scope="module")
def processors():
    return {"image": ImageProcessor(40, resize="longest"), "text": ClipTokenizer(8)}


@pytest.fixture
def prepare(processors):
    return TrainingPreparation(processors, regions=RegionChoice(M))


# What data may say ----------------------------------------------------------------------------------------------


def test_both_forms_are_read():
    ours = {"box": [1, 2, 4, 8], "phrase": "a red thing", "name": "red"}
    cocos = {"bbox": [1, 2, 3, 6], "category": "bear", "phrases": [], "iscrowd": 0}
    spoken = {"bbox": [1, 2, 3, 6], "category": "bear", "phrases": ["a baby bear"]}
    expected = [
        Region((1, 2, 4, 8), "a red thing", "red"),
        Region((1, 2, 4, 8), "bear", "bear"),
        Region((1, 2, 4, 8), "a baby bear", "bear"),
        Region((0, 0, 1, 1), "sky", None),
    ]
    written = [ours, cocos, spoken, {"box": [0, 0, 1, 1], "phrase": "sky"}]
    assert regions_of(written) == regions_of(json.dumps(written)) == expected
    assert regions_of(None) == regions_of([]) == []


def test_normalised_boxes_become_pixels():
    for word in ("normalised", "normalized"):
        (found,) = regions_of([region([0.1, 0.2, 0.5, 1.0], **{word: True})], SIZE)
        assert found.box == pytest.approx((10, 10, 50, 50))
    (coco,) = regions_of([{"bbox": [0.5, 0.5, 0.25, 0.5], "category": "x", "normalised": True}], SIZE)
    assert coco.box == pytest.approx((50, 25, 75, 50))
    with pytest.raises(Undecodable, match="region 0: it needs the picture's size"):
        regions_of([region([0.1, 0.2, 0.5, 1.0], normalised=True)])


@pytest.mark.parametrize(
    ("wrong", "reason", "detail"),
    [
        ({"phrase": "a dog"}, "not a region", "expected a box and a phrase"),
        ("a dog", "not a region", "got a dog"),
        ({"box": [0, 0, 9, 9]}, "region without phrase", "a name or category to stand for it"),
        (region([0, 0, 9, 9], phrase="  "), "region without phrase", "a name or category"),
        (region([0, 0, 9]), "box is no four numbers", r"box is \[0, 0, 9\]"),
        (region([0, 0, 9, None]), "box is no four numbers", "None"),
        (region([0, 0, 9, float("nan")]), "box is no four numbers", "nan"),
        (region(None), "box is no four numbers", "None"),
        (region([20, 5, 10, 9]), "inverted box", r"expected \[x0, y0, x1, y1\].*as `bbox`"),
        (region([5, 20, 10, 9]), "inverted box", "x0 <= x1 and y0 <= y1"),
        ({"bbox": [5, 5, -2, 3], "category": "x"}, "inverted box", r"expected \[x, y, width, height\]"),
        (region([0.1, 0.2, 0.6, 0.9]), "box not in pixels", '"normalised": true'),
        (region([10, 5, 60, 20], normalised=True), "normalised box in pixels", "leave `normalised` out"),
        (region([120, 5, 160, 20]), "box outside the picture", "100 x 50 pixels"),
        (region([-20, 5, -2, 20]), "box outside the picture", "another size"),
        (region([1.5, 0.2, 1.9, 0.4], normalised=True), "box outside the picture", "another size"),
    ],
)
def test_damaged_regions_are_named_with_what_to_do(wrong, reason, detail, prepare):
    right = region([1, 1, 9, 9])
    with pytest.raises(Undecodable, match=f"region 1: .*{detail}") as raised:
        regions_of([right, wrong], SIZE)
    assert raised.value.reason == reason
    with pytest.raises(CorruptSample, match=f"table: 7.regions.json: {reason} .region 1"):
        prepare(sample(right, wrong))


@pytest.mark.parametrize("wrong", ["a dog", {"box": [0, 0, 1, 1]}, 3])
def test_what_is_no_list_is_refused(wrong, prepare):
    with pytest.raises(CorruptSample, match=r"regions are no list|damaged JSON"):
        prepare({**sample(), "regions.json": wrong})


def test_small_pictures_may_have_small_boxes():
    assert regions_of([region([0, 0, 1, 1])], (8, 8))[0].box == (0, 0, 1, 1)


# Rows -----------------------------------------------------------------------------------------------------------


def test_rows_hold_boxes_as_shares_of_the_processed_picture_with_their_phrases(prepare, processors):
    row = prepare(sample(region([10, 10, 60, 40], "a cat")))
    # 100 x 50 becomes 40 x 20, with 10 rows of padding above and below.
    assert row["regions"].dtype == torch.float32
    torch.testing.assert_close(row["regions"][0], torch.tensor([4.0, 14, 24, 26]) / 40)
    assert torch.equal(row["region_text"][0], processors["text"]("a cat"))
    assert row["region_given"].tolist() == [True, False, False]
    assert int(row["regions_dropped"]) == 0
    assert row["regions"].shape == (M, 4)
    assert row["region_text"].shape == (M, 8)
    assert torch.equal(row["image"], processors["image"](sample()["jpg"]))


@pytest.mark.parametrize("lacking", [{}, {"regions.json": []}, {"regions.json": None}, {"regions.json": b"[]"}])
def test_a_sample_without_regions_has_none_given_and_neutral_rows(lacking, prepare, processors):
    without = {key: value for key, value in sample().items() if key != "regions.json"} | lacking
    row = prepare(without)
    assert not row["region_given"].any()
    assert torch.equal(row["regions"], torch.tensor([[0.0, 0, 1, 1]]).expand(M, 4))
    assert torch.equal(row["region_text"], processors["text"]("").expand(M, 8))


def test_boxes_are_clipped_and_those_below_a_pixel_dropped_and_counted(prepare):
    row = prepare(
        sample(
            region([-20, -10, 50, 25], "over the edge"),
            region([90, 40, 130, 90], "over the other edge"),
            region([10, 10, 12, 40], "0.8 pixels wide once it is processed"),
            region([30, 10, 30, 40], "without area"),
        )
    )
    assert row["region_given"].tolist() == [True, True, False]
    assert int(row["regions_dropped"]) == 2
    found = sorted(row["regions"][:2].mul(40).round().int().tolist())
    assert found == [[0, 10, 20, 20], [36, 26, 40, 30]], "boxes are clipped to the picture, not to its padding"


def test_up_to_m_are_drawn_anew_at_each_reading_and_none_twice(prepare):
    boxes = [[x, 5, x + 8, 45] for x in range(0, 80, 10)]
    many = sample(*(region(box, f"thing {number}") for number, box in enumerate(boxes)))
    drawn = []
    for position in range(60):
        seed_generators(0, position)
        row = prepare(many)
        assert row["region_given"].all()
        drawn.append(tuple(sorted(row["regions"][:, 0].mul(100).round().int().tolist())))
        assert len(set(drawn[-1])) == M
    assert {x for each in drawn for x in each} == set(range(0, 80, 10))
    assert len(set(drawn)) > 20
    seed_generators(0, 17)
    again = prepare(many)["regions"][:, 0].mul(100).round().int().tolist()
    assert tuple(sorted(again)) == drawn[17]


def test_the_texts_stay_with_their_boxes(prepare, processors):
    regions = {"one": [0, 0, 20, 50], "two": [20, 0, 50, 50], "three": [50, 0, 100, 50]}
    for seed in range(5):
        random.seed(seed)
        row = prepare(sample(*(region(box, phrase) for phrase, box in regions.items())))
        for box, text in zip(row["regions"].tolist(), row["region_text"], strict=True):
            (phrase,) = (phrase for phrase, each in regions.items() if each[0] == round(box[0] * 100))
            assert torch.equal(text, processors["text"](phrase))


def test_choices_remember_how_they_were_built():
    for again in (build(RegionChoice(7).config()), pickle.loads(pickle.dumps(RegionChoice(7)))):
        assert again.max_regions == 7
    with pytest.raises(ValueError, match="at least 1, not 0"):
        RegionChoice(0)


def test_what_cannot_have_regions_is_refused(processors):
    class Blind:
        pass

    for lacking in ({"image": processors["image"]}, {"text": processors["text"], "image": Blind()}):
        with pytest.raises(ValueError, match="Regions need a `text` processor, and an `image` processor"):
            Preparation(lacking, regions=RegionChoice())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-50, 150), min_size=4, max_size=4))
def test_clipped_boxes_lie_inside(numbers):
    (x0, x1), (y0, y1) = sorted(numbers[::2]), sorted(numbers[1::2])
    box = clipped((x0, y0, x1, y1), *SIZE)
    assert 0 <= box[0] <= box[2] <= 100
    assert 0 <= box[1] <= box[3] <= 50
    assert not is_seen(box) or (x1 - x0 >= 1 and y1 - y0 >= 1)


# Augmentation ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 150), st.integers(40, 150), st.integers(0, 10**6), st.floats(0, 1))
def test_boxes_follow_the_pixels_through_crops_and_flips(width, height, seed, flip):
    """Against the picture itself: a white box on black."""
    random.seed(seed)
    torch.manual_seed(seed)
    x0, y0 = random.randint(0, width - 12), random.randint(0, height - 12)
    x1, y1 = random.randint(x0 + 10, width), random.randint(y0 + 10, height)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    augment, processor = (
        ImageAugmentation((0.3, 1.0), horizontal_flip=flip),
        ImageProcessor(32, interpolation="bilinear"),
    )
    shown, (found, gone) = augment.with_boxes(
        Image.fromarray(pixels), processor, [(x0, y0, x1, y1), (-9.0, -9.0, -5.0, -5.0)]
    )
    assert gone == (0, 0, 0, 0)
    assume(is_seen(found))
    box = [round(side) for side in clipped(found, 32, 32)]
    within = torch.zeros(32, 32, dtype=torch.bool)
    within[box[1] : box[3], box[0] : box[2]] = True
    edge = (
        torch.nn.functional.max_pool2d(within.float()[None], 5, 1, 2)[0]
        + torch.nn.functional.max_pool2d(1 - within.float()[None], 5, 1, 2)[0]
        == 2
    )
    assert (within == (shown[0] > 127))[~edge].all()


def test_the_same_picture_is_drawn_with_and_without_boxes():
    augment, processor = ImageAugmentation((0.3, 0.9), horizontal_flip=0.5, grayscale=0.5), ImageProcessor(32)
    for position in range(6):
        seed_generators(0, position)
        plain = augment(sample()["jpg"], processor)
        seed_generators(0, position)
        assert torch.equal(augment.with_boxes(sample()["jpg"], processor, [(1, 1, 9, 9)])[0], plain)


def test_a_region_that_a_crop_left_out_is_not_drawn(processors):
    augment = ImageAugmentation((0.2, 0.2), then=[v2.RandomRotation(40)])
    prepare = TrainingPreparation(processors, augmentations={"image": augment}, regions=RegionChoice(M))
    corners = [[0, 0, 4, 4], [96, 0, 100, 4], [0, 46, 4, 50], [96, 46, 100, 50]]
    whole = sample(*(region(box) for box in corners))
    for position in range(8):
        seed_generators(0, position)
        row = prepare(whole)
        assert int(row["region_given"].sum()) + int(row["regions_dropped"]) == 4
        assert int(row["regions_dropped"]) >= 3, "a fifth of the picture cannot show two corners"
        assert 0 <= row["regions"].min() <= row["regions"].max() <= 1


class Own(Augmentation):
    def __call__(self, raw, processor):
        return processor(raw)


def test_streams_with_regions_are_the_same_with_workers_and_after_resuming(processors):
    prepare = TrainingPreparation(
        processors, augmentations={"image": ImageAugmentation((0.5, 1.0), horizontal_flip=0.5)}, regions=RegionChoice(M)
    )
    keys = ("image", "regions", "region_text", "region_given", "position")
    whole = TrainLoader(Mixture([Boxed()]), prepare, 4, 6, max_corrupt_rate=1)
    batches = list(whole)
    assert whole.corrupt
    resumed = TrainLoader(Mixture([Boxed()]), prepare, 4, 4, num_workers=2, max_corrupt_rate=1)
    resumed.load_state_dict({"consumed": 8})
    for before, after in zip(batches[2:], resumed, strict=True):
        assert all(torch.equal(before[key], after[key]) for key in keys)
    resumed.close()


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (Own(), "Own cannot say where boxes come to lie"),
        (ImageAugmentation(then=[lambda pixels: pixels]), "v2 transforms can"),
        (StrongImageAugmentation(), "BoundingBoxes"),
    ],
)
def test_what_cannot_move_boxes_stops_the_run(augment, message, processors):
    prepare = TrainingPreparation(processors, augmentations={"image": augment}, regions=RegionChoice(M))
    with pytest.raises(TypeError, match=message):
        prepare(sample(region([1, 1, 90, 40])))


# Sources and loaders --------------------------------------------------------------------------------------------


class Boxed(Source):
    """Sample n has n regions, drawn in strips; the fifth is damaged."""

    name = "boxed"

    def __len__(self):
        return 9

    def read(self, index):
        if index == 5:
            return sample(region([9, 0, 1, 50]), key=str(index))
        return sample(*(region([x * 10, 0, x * 10 + 9, 50], f"strip {x}") for x in range(index)), key=str(index))


def test_evaluation_draws_the_same_regions_every_time(processors):
    loader = EvalLoader(Boxed(), processors, 4, regions=RegionChoice(M), max_corrupt_rate=1)
    first, second = list(loader), list(loader)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("regions", "region_text", "region_given"))
    counts = torch.cat([batch["region_given"].sum(1) for batch in first])[:9]
    valid = torch.cat([batch["valid"] for batch in first])[:9]
    assert valid.tolist() == [number != 5 for number in range(9)]
    assert counts[valid].tolist() == [min(number, M) for number in range(9) if number != 5]
    assert loader.corrupt == {("boxed", "inverted box"): 2}


def test_tables_of_both_kinds_hold_regions(tmp_path, prepare):
    sample()["jpg"].save(tmp_path / "a.png")
    written = [region([10, 10, 60, 40], "a cat")]
    (tmp_path / "t.jsonl").write_text(json.dumps({"file": "a.png", "caption": "a", "regions": written}) + "\n")
    cell = json.dumps(written).replace('"', '""')
    (tmp_path / "t.csv").write_text(f'file,caption,regions\na.png,a,"{cell}"\na.png,a,\n')
    expected = prepare(sample(*written))["regions"]
    for name in ("t.jsonl", "t.csv"):
        assert torch.equal(prepare(open_source(tmp_path / name).read(0))["regions"], expected)
    assert not prepare(open_source(tmp_path / "t.csv").read(1))["region_given"].any()


def test_real_boxes_are_all_taken(shared_data):
    source = open_source(shared_data / "images_coco_captions" / "manifest.jsonl")
    prepare = Preparation(
        {"image": ImageProcessor(224, resize="longest"), "text": ClipTokenizer(8)},
        also=("id",),
        regions=RegionChoice(99),
    )
    places = range(0, len(source), 8)
    rows = [prepare(source.read(place)) for place in places]
    boxes = [len(source.row(place)["boxes"]) for place in places]
    assert [int(row["region_given"].sum() + row["regions_dropped"]) for row in rows] == boxes
    assert sum(int(row["regions_dropped"]) for row in rows) < 0.02 * sum(boxes)
    assert len({int(row["id"]) for row in rows}) == len(rows)
    for row in rows:
        assert 0 <= row["regions"].min() <= row["regions"].max() <= 1
        assert (row["regions"][:, 2:] > row["regions"][:, :2]).all()


def test_verify_lists_damaged_regions(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("collimate.data.commands.console.width", 200, raising=False)
    sample()["jpg"].save(tmp_path / "a.png")
    rows = [[region([1, 1, 9, 9])], [region([0.1, 0.1, 0.5, 0.5])], [region([200, 0, 300, 50])]]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"file": "a.png", "regions": row}) + "\n" for row in rows))
    with pytest.raises(SystemExit):
        main(["data", "verify", "--data", str(tmp_path / "t.jsonl"), "--workers", "1"])
    printed = capsys.readouterr().out
    assert "1 x box not in pixels" in printed
    assert "1 x box outside the picture" in printed
    assert "3 samples checked: 2 are corrupt" in printed
