"""Pointing and segmentation: against counting by hand, on a model that sees well, and on ones that do not."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate.data import open_source
from collimate.encoding import Encoding
from collimate.evaluation import Report, evaluate_localization, localization_map
from collimate.evaluation.bootstrap import evaluate
from collimate.evaluation.maps import best_class, pixel_counts, point, segmentation_statistic
from collimate.testing import run_on_ranks

from .toys import COLOURS, ColourMethod, ColourScenes, LateMethod

OPTIONS = {"device": "cpu", "resamples": 20}


class CosineMethod(LateMethod):
    """The same tokens, ranked by the cosine of pooled vectors."""

    similarity = ColourMethod.similarity


class Blind(CosineMethod):
    """Sees the same everywhere."""

    def forward(self, modality, inputs, mask=None):
        found = super().forward(modality, inputs, mask)
        return found if modality == "text" else found.replace(tokens=torch.ones_like(found.tokens))


class OwnMap(LateMethod):
    """Points at the last cell, whatever is said."""

    def localization_map(self, image, text):
        return torch.arange(image.tokens.shape[1]).float().expand(len(image.tokens), len(text.pooled), -1)


# What is counted --------------------------------------------------------------------------------------------------


def test_pointing_by_hand():
    scores = torch.tensor([[0.0, 1.0], [3.0, 4.0]])  # cells of 4 x 4 pixels
    found = point(scores, torch.tensor([[4.0, 4.0, 8.0, 6.0]]), 8, 8)
    assert found.at == (6, 6)
    assert not found.hit  # the box ends where the middle of the cell begins
    assert found.area == 8 / 64
    assert found.mass == pytest.approx(4 * 0.5 / 8)
    both = point(scores, torch.tensor([[4.0, 4.0, 8.0, 6.0], [0.0, 4.0, 8.0, 8.0]]), 8, 8)
    assert both.hit
    assert both.area == 0.5  # of the union
    assert both.mass == pytest.approx(7 / 8)


def test_a_flat_map_is_at_chance():
    found = point(torch.full((4, 4), 2.5), torch.tensor([[1.0, 3.0, 9.0, 7.0]]), 16, 16)
    assert found.mass == pytest.approx(found.area)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**31), st.floats(0.1, 7), st.floats(-3, 3))
def test_only_differences_within_a_map_count(cells, seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(cells, cells, generator=generator)
    boxes = torch.rand(2, 4, generator=generator) * 10
    boxes[:, 2:] += boxes[:, :2]
    one, other = (point(each, boxes, 20, 20) for each in (scores, scores * scale + shift))
    assert one.hit == other.hit
    assert one.mass == pytest.approx(other.mass, abs=1e-4)


def test_segmentation_by_hand():
    truth = torch.tensor([[0, 0, 1], [-1, 2, 2]])
    predicted = torch.tensor([[0, 1, 1], [0, 2, 1]])
    counts = pixel_counts(predicted, truth, 4)
    assert counts.tolist() == [[1, 1, 1, 0], [1, 3, 1, 0], [2, 1, 2, 0]]
    found = evaluate(segmentation_statistic(counts[None]), 1)
    assert found["miou"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert found["pixel_accuracy"] == pytest.approx(3 / 5)
    chances = [(t / 4) / (5 / 4 + t - t / 4) for t in (2, 1, 2)]
    assert found["miou_chance"] == pytest.approx(sum(chances) / 3)


def test_chance_is_what_random_answers_get():
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([0] * 500 + [1] * 1500 + [2] * 4000).view(60, 100)
    counts = [pixel_counts(torch.randint(5, (60, 100), generator=generator), truth, 5) for _ in range(30)]
    found = evaluate(segmentation_statistic(torch.stack(counts)), 30)
    assert found["miou"] == pytest.approx(found["miou_chance"], abs=0.004)


def test_classes_are_compared_some_at_a_time(monkeypatch):
    maps = torch.rand(7, 3, 3)
    whole = best_class(maps, 10, 8)
    monkeypatch.setattr("collimate.evaluation.maps.CLASSES_AT_A_TIME", 2)
    assert torch.equal(best_class(maps, 10, 8), whole)
    assert torch.equal(best_class(torch.zeros(3, 2, 2), 4, 4), torch.zeros(4, 4, dtype=torch.int64))


# The evaluation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [LateMethod(4), CosineMethod(4)], ids=["late", "cosine"])
@pytest.mark.parametrize("wide", [False, True], ids=["square", "cropped"])
def test_who_sees_points_right(method, wide):
    found = evaluate_localization(method, ColourScenes(wide=wide), **OPTIONS)
    assert found.metrics["pointing_accuracy"] == 1
    assert found.metrics["area_share"] == pytest.approx((12 / 32) ** 2)
    assert found.metrics["pointing_above_chance"] == pytest.approx(1 - (12 / 32) ** 2)
    assert found.metrics["mass_inside"] > 0.3
    assert found.metrics["miou"] > 0.9 > 0.5 > found.metrics["miou_chance"]
    low, high = found.intervals["mass_inside"]
    assert low <= found.metrics["mass_inside"] <= high
    assert [each["name"] for each in found.details["per_name"]] == sorted(list(COLOURS)[:4])


def test_who_does_not_see_is_at_chance():
    found = evaluate_localization(Blind(4), ColourScenes(48), **OPTIONS)
    assert found.metrics["mass_above_chance"] == pytest.approx(0, abs=1e-6)
    assert found.metrics["pointing_accuracy"] < 0.5


def test_a_map_of_its_own_is_used():
    found = evaluate_localization(OwnMap(2), ColourScenes(), **OPTIONS)
    there = [one.boxes[0].tolist() == [9, 9, 15, 15] for one in found.pointed]  # half as large as they were made
    assert [one.found.hit for one in found.pointed] == there
    assert found.protocol["map"] == "OwnMap.localization_map"


@pytest.mark.parametrize("masks", [False, True])
def test_batches_and_ranks_change_nothing(masks):
    def metrics(batch_size):
        found = evaluate_localization(LateMethod(4), ColourScenes(11, masks), batch_size=batch_size, **OPTIONS)
        return found.metrics, found.intervals, [one.found for one in found.pointed], len(found.shown)

    alone = metrics(11)
    assert [metrics(3), *run_on_ranks(metrics, [(2,), (2,)])] == [alone] * 3


def test_masks_are_the_truth_where_there_are_some():
    class HalfMasked(ColourScenes):
        def read(self, index):
            sample = super().read(index)
            sample["instances.png"] = sample["instances.png"].copy()
            sample["instances.png"][:16] = 0
            return sample

    whole = evaluate_localization(LateMethod(4), ColourScenes(), **OPTIONS)
    half = evaluate_localization(LateMethod(4), HalfMasked(masks=True), **OPTIONS)
    assert "boxes" in whole.protocol["segmentation"]
    assert "masks" in half.protocol["segmentation"]
    assert all((one.truth[:8] == -1).all() for one in half.shown)
    assert sum(one.boxes[0, 1] >= 8 for one in half.pointed) > 0


def test_classes_and_templates_can_be_given():
    named = evaluate_localization(
        LateMethod(4), ColourScenes(), ["red", "green", "blue", "yellow", "white"], ["a {}", "{}"], **OPTIONS
    )
    assert named.protocol["segmentation"].startswith("5 classes")
    assert named.protocol["templates"] == "'a {}', '{}'"
    assert named.metrics["pointing_accuracy"] == 1


def test_regions_out_of_view_are_left_out():
    class Moved(ColourScenes):
        def read(self, index):
            sample = super().read(index)
            sample["regions.json"][0]["box"] = [0, 0, 10, 10]  # left of the crop
            return sample

    found = evaluate_localization(LateMethod(4), Moved(6, wide=True), **OPTIONS)
    assert len(found.pointed) == 6
    assert "6 phrases in view, 6 not" in found.protocol["with regions"]


def test_samples_without_regions_are_passed_over():
    class Some(ColourScenes):
        def read(self, index):
            return {**super().read(index), **({"regions.json": []} if index % 3 else {})}

    found = evaluate_localization(LateMethod(4), Some(12), limit=6, **OPTIONS)
    assert sorted({one.sample for one in found.pointed}) == [0, 6]
    assert found.protocol["samples"] == 6
    with pytest.raises(ValueError, match="no sample has a region"):
        evaluate_localization(LateMethod(4), _NoRegions(3), **OPTIONS)


class _NoRegions(ColourScenes):
    def read(self, index):
        return {**super().read(index), "regions.json": []}


def test_what_cannot_be_localized_is_named():
    with pytest.raises(ValueError, match="has no `placement`"):
        evaluate_localization(ColourMethod(), ColourScenes(), **OPTIONS)
    with pytest.raises(ValueError, match="no tokens of a picture"):
        localization_map(ColourMethod(), Encoding(torch.ones(1, 3)), Encoding(torch.ones(1, 3)))
    with pytest.raises(ValueError, match=r"width 5, texts 3.*a `localization_map` of its own"):
        localization_map(ColourMethod(), Encoding(torch.ones(1, 3), torch.ones(1, 4, 5)), Encoding(torch.ones(1, 3)))


def test_start_and_end_tokens_are_left_out():
    """Words that say nothing (`the`) would pull the map to the background, of whose colour they are here."""
    said = evaluate_localization(LateMethod(4), ColourScenes(), **OPTIONS)
    method = LateMethod(4)
    image = method.encode("image", [ColourScenes().read(0)["png"]])
    bare = localization_map(method, image, method.encode("text", ["red"])).detach()
    torch.testing.assert_close(said.pointed[0].map.flatten(), bare[0, 0])


def test_the_report_shows_maps_boxes_and_words(tmp_path):
    found = evaluate_localization(LateMethod(4), ColourScenes(), **OPTIONS)
    assert [word for word in found.shown[0].words if word] == ["red", "green"]
    assert {found.shown[0].words[number] for number in found.shown[0].chosen.flatten().tolist()} >= {"red", "green"}
    hits, misses = found.examples()
    assert (len(hits), len(misses)) == (6, 0)
    report = Report("Localization")
    found.add_to(report)
    page = report.save(tmp_path)
    assert page.read_text().count("<img") == 6 + 6 + 6
    data = json.loads((tmp_path / "report.json").read_text())["Localization"]
    assert data["metrics"]["pointing_accuracy"] == 1
    assert data["per_name"][0]["phrases"] == 6


def test_the_world_is_localized_by_its_masks():
    class ByColour(LateMethod):
        """Wide enough cells to see the colours that the world's names begin with."""

    found = evaluate_localization(
        ByColour(8), open_source("world:test?objects=2&length=30&masks=true"), ["red ring", "green cross", "blue star"],
        **OPTIONS,
    )  # fmt: skip
    assert found.metrics["pointing_above_chance"] > 0.1
    assert "masks" in found.protocol["segmentation"]


def test_coco(shared_data):
    """Boxes of real photographs, through the crop; a random model is near chance."""
    table = shared_data / "images_coco_captions" / "manifest.jsonl"
    if not table.is_file():
        pytest.skip(f"no COCO excerpt at {table}")
    found = evaluate_localization(LateMethod(7), open_source(f"{table}?split=test"), templates="photo", **OPTIONS)
    assert found.protocol["samples"] == 115
    assert found.protocol["with regions"].startswith("52 samples")
    assert found.protocol["segmentation"].startswith("65 classes")
    assert 0.05 < found.metrics["area_share"] < 0.5
    assert abs(found.metrics["pointing_above_chance"]) < 0.2
