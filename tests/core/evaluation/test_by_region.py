"""Evaluation by region: metrics by hand, methods that see well, by prompts and by crops, and ones that do not."""

import json

import pytest
import torch

from collimate.data import open_source
from collimate.encoding import Encoding
from collimate.evaluation import AfterTraining, Report, commands, evaluate_regions
from collimate.evaluation.bootstrap import evaluate
from collimate.evaluation.region_metrics import (
    grounding_statistic,
    overlap,
    referred,
    referring_statistic,
    region_ranks,
    region_retrieval_statistic,
)
from collimate.testing import run_on_ranks

from .toys import COLOURS, ColourMethod, ColourScenes, LateMethod

OPTIONS = {"device": "cpu", "resamples": 20}
CORNERS = torch.tensor([[2.0, 2, 14, 14], [18, 2, 30, 14], [2, 18, 14, 30], [18, 18, 30, 30]]) / 32


class CosineMethod(LateMethod):
    """The mean colour of a picture, and the colours that a text names."""

    similarity = ColourMethod.similarity


class Prompted(CosineMethod):
    """Sees the mean colour in a box, and finds a colour in the corners."""

    box_head = True

    def prompt(self, image, boxes):
        side = image.grid[0]
        centres = (torch.arange(side) + 0.5) / side
        within = (centres >= boxes[..., :2, None]) & (centres < boxes[..., 2:, None])  # (N, M, 2, side)
        cells = (within[:, :, 1, :, None] & within[:, :, 0, None]).flatten(2).float()
        return cells @ image.tokens / cells.sum(2, keepdim=True)

    def ground(self, image, texts):
        corners = self.prompt(image, CORNERS.expand(len(image.pooled), -1, -1))
        best = torch.stack([self.similarity(texts, Encoding(each)).argmax(1) for each in corners])
        return CORNERS[best]


class Blind(Prompted):
    """Every box and every text is the same."""

    def prompt(self, image, boxes):
        return torch.ones(*boxes.shape[:2], 3)

    def ground(self, image, texts):
        return torch.tensor([0.0, 0, 1, 1]).expand(len(image.pooled), len(texts.pooled), 4)


# What is counted --------------------------------------------------------------------------------------------------


def test_retrieval_by_hand():
    """Two regions bear the same words; the second's own text comes after the first's, which is as good."""
    region = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.2, 1.0]])
    by_phrase = region_ranks(region, text, torch.tensor([0, 0, 1]))
    strictly = region_ranks(region, text, torch.arange(3))
    assert (by_phrase.of_text.tolist(), by_phrase.of_region.tolist()) == ([0, 0, 0], [0, 0, 0])
    assert (strictly.of_text.tolist(), strictly.of_region.tolist()) == ([0, 1, 0], [0, 1, 0])
    found = evaluate(region_retrieval_statistic(by_phrase, strictly, [1, 2]), 3)
    assert found["region_to_text_recall@1"] == 1
    assert found["strict/region_to_text_recall@1"] == pytest.approx(2 / 3)
    assert found["strict/text_to_region_recall@2"] == 1


def test_referring_by_hand():
    region = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]])
    text = torch.tensor([[0.9, 0.1], [0.8, 0.7], [0.9, 0.1]])
    found = referred(region, text, ["a dog", "a cat", "a dog"])
    assert [tuple(one) for one in found] == [(0, 0, True, 2 / 3), (1, 2, False, 1 / 3)]
    assert evaluate(referring_statistic(found), 2) == {
        "referring_accuracy": 0.5,
        "referring_chance": pytest.approx(0.5),
    }
    assert referred(region[:2], text[:2], ["a dog", "a dog"]) == []


def test_overlap_by_hand():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 1, 1]])
    found = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [2, 2, 4, 4], [2, 2, 0, 0], [1, 1, 1, 1]])
    assert overlap(found, boxes).tolist() == pytest.approx([1, 1 / 3, 0, 0, 0])


def test_the_mean_box_is_the_floor():
    boxes = torch.tensor([[0.0, 0, 0.5, 1], [0.5, 0, 1, 1]])  # their mean is the middle half
    found = evaluate(grounding_statistic(boxes.flip(0), boxes), 2)
    assert found["grounding_iou"] == 0
    assert found["grounding_iou_of_mean_box"] == pytest.approx(1 / 3)
    assert evaluate(grounding_statistic(boxes, boxes), 2)["grounding_accuracy@0.5"] == 1


# The evaluation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True], ids=["square", "cropped"])
@pytest.mark.parametrize("method", [Prompted(8), CosineMethod(8)], ids=["prompts", "crops"])
def test_who_sees_regions_is_right(method, wide):
    found = evaluate_regions(method, ColourScenes(wide=wide), **OPTIONS)
    for name in ("region_accuracy", "region_mean_per_class_accuracy", "referring_accuracy"):
        assert found.metrics[name] == 1
    assert found.metrics["referring_chance"] == 0.5
    assert found.metrics["region_to_text_recall@1"] == found.metrics["text_to_region_recall@1"] == 1
    assert found.metrics["strict/region_to_text_recall@1"] == pytest.approx(4 / 24)  # the first of each of four phrases
    assert found.metrics["strict/region_to_text_recall@10"] == 1
    assert "image_retrieval_recall@1" in found.metrics
    assert found.protocol["regions"] == "24 in view, of 12 pictures; 0 not"
    assert found.protocol["classification"] == "4 classes, 24 regions"
    assert found.protocol["vectors"].startswith("Prompted.prompt" if isinstance(method, Prompted) else "of crops")
    low, high = found.intervals["strict/region_to_text_recall@1"]
    assert low <= found.metrics["strict/region_to_text_recall@1"] <= high


def test_boxes_are_found_where_the_method_finds_them():
    found = evaluate_regions(Prompted(8), ColourScenes(), **OPTIONS)
    assert found.metrics["grounding_iou"] == pytest.approx(1)
    assert 0 < found.metrics["grounding_iou_of_mean_box"] < 0.5
    assert "grounding_iou" not in evaluate_regions(CosineMethod(8), ColourScenes(), **OPTIONS).metrics
    crops = evaluate_regions(Prompted(8), ColourScenes(), by="crops", **OPTIONS)
    assert "grounding_iou" not in crops.metrics
    assert crops.metrics["region_accuracy"] == 1


def test_who_does_not_see_is_at_chance():
    found = evaluate_regions(Blind(8), ColourScenes(24), **OPTIONS)
    assert found.metrics["region_mean_per_class_accuracy"] == pytest.approx(0.25)
    assert abs(found.metrics["referring_accuracy"] - 0.5) <= 0.1
    assert found.metrics["grounding_iou"] == pytest.approx((12 / 32) ** 2, abs=1e-3)


@pytest.mark.parametrize("method", [Prompted(4), CosineMethod(4)], ids=["prompts", "crops"])
def test_batches_and_ranks_change_nothing(method):
    def numbers(batch_size):
        found = evaluate_regions(method, ColourScenes(11), batch_size=batch_size, **OPTIONS)
        return found.metrics, found.intervals, [(one.sample, one.phrase, one.box) for one in found.regions]

    alone = numbers(11)
    assert [numbers(3), *run_on_ranks(numbers, [(2,), (2,)])] == [alone] * 3


def test_a_limit_and_classes_can_be_given():
    found = evaluate_regions(Prompted(8), ColourScenes(12), ["red", "white", "blue"], ["a {}"], limit=4, **OPTIONS)
    assert found.protocol["samples"] == 4
    assert found.protocol["classification"].startswith("3 classes")
    assert {each["class"] for each in found.details["per_class"]} <= {"red", "blue"}


def test_what_is_not_in_view_or_has_no_class_is_left_out():
    class Odd(ColourScenes):
        def read(self, index):
            sample = super().read(index)
            del sample["txt"]
            if index % 3 == 0:
                del sample["regions.json"]
                return sample
            sample["regions.json"][0]["box"] = [0, 0, 10, 10]  # left of the crop
            del sample["regions.json"][1]["name"]
            return sample

    found = evaluate_regions(Prompted(8), Odd(6, wide=True), **OPTIONS)
    assert found.protocol["regions"] == "4 in view, of 4 pictures; 4 not"
    assert found.protocol["classification"] == "none"
    assert not any(name.startswith(("region_accuracy", "image_", "referring")) for name in found.metrics)


def test_normalised_boxes_are_the_same():
    class Normalised(ColourScenes):
        def read(self, index):
            sample = super().read(index)
            for region in sample["regions.json"]:
                region |= {"box": [side / 32 for side in region["box"]], "normalised": True}
            return sample

    one, other = (evaluate_regions(Prompted(8), data(6), **OPTIONS) for data in (ColourScenes, Normalised))
    assert [region.box for region in one.regions] == [region.box for region in other.regions]
    assert one.metrics == other.metrics


def test_what_cannot_be_evaluated_is_named():
    class Empty(ColourScenes):
        def read(self, index):
            return {**super().read(index), "regions.json": []}

    with pytest.raises(ValueError, match=r"no region is in view.*data inspect"):
        evaluate_regions(Prompted(8), Empty(3), **OPTIONS)
    with pytest.raises(ValueError, match="has no `placement`"):
        evaluate_regions(ColourMethod(), ColourScenes(), **OPTIONS)
    with pytest.raises(ValueError, match="a score of its own"):
        evaluate_regions(LateMethod(4), ColourScenes(), **OPTIONS)
    with pytest.raises(ValueError, match="evaluate it by `crops`"):
        evaluate_regions(CosineMethod(4), ColourScenes(), by="prompts", **OPTIONS)


@pytest.mark.parametrize("method", [Prompted(8), Blind(8), CosineMethod(8)], ids=["sees", "blind", "crops"])
def test_the_report_shows_boxes(method, tmp_path):
    found = evaluate_regions(method, ColourScenes(), **OPTIONS)
    report = Report("Regions")
    found.add_to(report)
    page = report.save(tmp_path)
    pictures = page.read_text().count("<img")
    assert pictures == {"Prompted": 6 + 6 + 6, "Blind": 6 + 6 + 6 + 6, "CosineMethod": 6}[type(method).__name__]
    data = json.loads((tmp_path / "report.json").read_text())["Regions"]
    assert data["metrics"]["region_accuracy"] == found.metrics["region_accuracy"]
    assert [each["class"] for each in data["per_class"]] == sorted(list(COLOURS)[:4])


def test_the_verb_and_the_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("collimate.load", lambda folder: Prompted(8), raising=False)
    commands.regions("a model", ColourScenes(), output=str(tmp_path / "verb"), device="cpu", resamples=5)
    assert "region_to_text_recall@10" in capsys.readouterr().out
    data = {"data": ColourScenes(), **OPTIONS}
    found = AfterTraining(regions={"scenes": data}).run(tmp_path / "model", tmp_path / "recipe")
    assert found["scenes"].title == "Regions: scenes"
    with pytest.raises(ValueError, match=r"evaluation.regions.mine lacks data"):
        AfterTraining(regions={"mine": {}})


def test_the_world_has_regions():
    found = evaluate_regions(Prompted(8), open_source("world:test?objects=2-3&length=12"), **OPTIONS)
    assert found.metrics["region_to_text_recall@10"] > 0
    assert found.protocol["samples"] == 12


def test_coco(shared_data):
    """Boxes of real photographs; a model that knows only colours is near chance."""
    table = shared_data / "images_coco_captions" / "manifest.jsonl"
    if not table.is_file():
        pytest.skip(f"no COCO excerpt at {table}")
    found = evaluate_regions(CosineMethod(8), open_source(f"{table}?split=test"), **OPTIONS)
    assert found.protocol["samples"] == 115
    assert "of 52 pictures" in found.protocol["regions"]
    assert found.metrics["region_mean_per_class_accuracy"] < 0.3
    assert 0 < found.metrics["referring_chance"] < 1
