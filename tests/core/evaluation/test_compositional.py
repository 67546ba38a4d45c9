"""Captions against hard negatives: by kind, on any number of ranks, by whatever score a method has."""

import json
import math

import pytest
import torch

from collimate.data import open_source
from collimate.evaluation import Report, confidence_intervals, evaluate_compositional, paired_accuracy
from collimate.evaluation.metrics import paired_statistic
from collimate.testing import run_on_ranks

from .toys import ColourScenes, LateMethod

OPTIONS = {"device": "cpu", "resamples": 20}


def test_accuracy_by_kind():
    right, wrong = torch.tensor([3.0, 1.0, 2.0, 5.0]), torch.tensor([1.0, 2.0, 2.0, 4.0])
    found = paired_accuracy(right, wrong, ["a", "a", "a", "b"])
    assert found == pytest.approx(
        {"paired_accuracy": 0.5, "mean_over_kinds": 2 / 3, "paired_accuracy/a": 1 / 3, "paired_accuracy/b": 1.0}
    )
    assert paired_accuracy(right, wrong) == {"paired_accuracy": 0.5}


def test_a_kind_that_a_resample_lacks_is_left_out_of_its_interval():
    statistic = paired_statistic(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]), ["a", "b"])
    found = statistic(torch.tensor([[2.0, 0.0]]))
    assert found["mean_over_kinds"].tolist() == [1.0]
    assert math.isnan(found["paired_accuracy/b"].item())
    assert confidence_intervals(statistic, 2, resamples=50)["paired_accuracy/a"] == (1.0, 1.0)


def test_numbers_are_those_of_the_scores():
    method, source = LateMethod(4), ColourScenes(12)
    found = evaluate_compositional(method, source, batch_size=5, **OPTIONS)
    assert [pair.sample for pair in found.pairs] == [sample for sample in range(12) for _ in range(2)]
    for pair in found.pairs:
        image = method.encode("image", [source.read(pair.sample)["png"]])
        scores = method.similarity(image, method.encode("text", [pair.caption, pair.negative]))[0].tolist()
        assert [pair.right, pair.wrong] == pytest.approx(scores)
    right, wrong = (torch.tensor([getattr(pair, side) for pair in found.pairs]) for side in ("right", "wrong"))
    assert found.metrics == pytest.approx(paired_accuracy(right, wrong, [pair.kind for pair in found.pairs]))
    assert found.metrics["paired_accuracy/replace"] == 1
    assert found.metrics["paired_accuracy/swap"] < 1
    assert found.protocol["pairs"] == "24, of 12 samples"
    assert found.details["pairs"] == {"replace": 12, "swap": 12}


def test_batches_and_ranks_change_nothing():
    def metrics(batch_size):
        found = evaluate_compositional(LateMethod(4), ColourScenes(11), batch_size=batch_size, **OPTIONS)
        return found.metrics, found.intervals, found.pairs

    alone = metrics(11)
    assert [metrics(3), *run_on_ranks(metrics, [(2,), (2,)])] == [alone] * 3


def test_samples_without_pairs_and_sources_without_any():
    class Some(ColourScenes):
        def read(self, index):
            return {**super().read(index), **({"compositional.json": []} if index else {})}

    found = evaluate_compositional(LateMethod(4), Some(4), batch_size=1, **OPTIONS)
    assert found.protocol["pairs"] == "2, of 1 samples"
    with pytest.raises(ValueError, match="no sample has a pair"):
        evaluate_compositional(LateMethod(4), _NoPairs(2), **OPTIONS)


class _NoPairs(ColourScenes):
    def read(self, index):
        return {**super().read(index), "compositional.json": []}


def test_scores_that_are_no_numbers_are_refused():
    class Broken(LateMethod):
        def similarity(self, query, key):
            return super().similarity(query, key) * torch.nan

    with pytest.raises(ValueError, match="scores that are NaN"):
        evaluate_compositional(Broken(4), ColourScenes(2), **OPTIONS)


def test_the_report_shows_the_surest_of_each_picture(tmp_path):
    found = evaluate_compositional(LateMethod(4), ColourScenes(12), **OPTIONS)
    hits, misses = found.examples(4)
    assert len(hits) == 4
    assert 0 < len(misses) <= 4
    margins = [pair.right - pair.wrong for pair in found.pairs]
    surest = found.pairs[margins.index(max(margins))]
    assert surest.caption in hits[0][1]
    report = Report("Compositional")
    found.add_to(report)
    page = report.save(tmp_path)
    assert "swap (12)" in page.read_text()
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["Compositional understanding"]["protocol"]["chance"] == 0.5


def test_the_world_has_pairs():
    source = open_source("world:test?objects=3&length=20&negatives=true")
    found = evaluate_compositional(LateMethod(8), source, **OPTIONS)
    assert set(found.details["pairs"]) == {"replace_colour", "replace_shape", "swap_colour"}


def test_coco_has_pairs(shared_data):
    table = shared_data / "images_coco_captions" / "manifest.jsonl"
    if not table.is_file():
        pytest.skip(f"no COCO excerpt at {table}")
    found = evaluate_compositional(LateMethod(7), open_source(f"{table}?split=test"), **OPTIONS)
    assert found.protocol["samples"] == 115
    assert found.protocol["pairs"] == "183, of 33 samples"
    assert set(found.details["pairs"]) == {
        "add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj"
    }  # fmt: skip
