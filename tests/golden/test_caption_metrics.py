"""BLEU, ROUGE-L and CIDEr against coco-caption's."""

import json

import pytest

from collimate_3d.evaluation.caption_metrics import caption_scores

GOLDEN = "caption_metrics"


def test_caption_metrics(golden_set):
    config = golden_set.config
    given = json.loads((golden_set.folder / config["file"]).read_text())
    expected, tolerance = given["expected"], config["tolerance"]["all"]["atol"]
    captions = {name: given["hypotheses"][name][0] for name in given["order"]}
    found = caption_scores(captions, {name: given["references"][name] for name in given["order"]})
    for order, wanted in enumerate(expected["bleu"], 1):
        assert found.metrics[f"BLEU-{order}"] == pytest.approx(wanted, abs=tolerance)
        assert found.each[f"BLEU-{order}"] == pytest.approx(expected["bleu_each"][order - 1], abs=tolerance)
    for name, key in (("ROUGE-L", "rougeL"), ("CIDEr", "cider")):
        assert found.metrics[name] == pytest.approx(expected[key], abs=tolerance)
        assert found.each[name] == pytest.approx(expected[f"{key[:5]}_each"], abs=tolerance)
