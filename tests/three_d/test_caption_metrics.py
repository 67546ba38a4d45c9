"""Metrics of captions: their bounds, empty ones, and what Scan2Cap does with boxes that lie elsewhere."""

import pytest

from collimate_3d.evaluation.caption_metrics import caption_scores, meteor_exact, rouge_l, scores_at_overlap

REFERENCES = {
    "a": ["a red chair near the table", "the chair is red"],
    "b": ["a white door left of the window"],
    "c": ["a big black monitor on the desk"],
}
PERFECT = {name: texts[0] for name, texts in REFERENCES.items()}


def test_perfect_captions_reach_the_top_and_empty_ones_nothing():
    best = caption_scores(PERFECT, {name: texts[:1] for name, texts in REFERENCES.items()})
    assert best.metrics["BLEU-4"] == pytest.approx(1)
    assert best.metrics["ROUGE-L"] == pytest.approx(1)
    assert best.metrics["CIDEr"] == pytest.approx(10)
    assert best.metrics["METEOR (exact)"] > 0.95
    worst = caption_scores(dict.fromkeys(REFERENCES, ""), REFERENCES)
    assert all(score == pytest.approx(0, abs=1e-6) for score in worst.metrics.values())


def test_repeated_words_count_as_often_as_the_reference_has_them():
    found = caption_scores({**PERFECT, "a": "chair chair chair chair"}, REFERENCES)
    assert found.each["BLEU-1"][0] == pytest.approx(1 / 4, abs=1e-6)


def test_order_matters_to_meteor_and_rouge():
    words = ["a", "red", "chair", "near", "the", "table"]
    assert meteor_exact(words, words) > meteor_exact(words[3:] + words[:3], words) > meteor_exact(words[::-1], words)
    assert rouge_l(words[::-1], [words]) < rouge_l(words[3:] + words[:3], [words]) < 1
    assert meteor_exact(["dog"], words) == 0
    assert rouge_l(["dog"], [words]) == 0


def test_captions_of_boxes_elsewhere_are_empty():
    overlaps = {"a": 0.6, "b": 0.3}
    everywhere = caption_scores(PERFECT, REFERENCES)
    quarter, half = (scores_at_overlap(PERFECT, REFERENCES, overlaps, least, marked=False) for least in (0.25, 0.5))
    assert quarter.each["CIDEr"][:2] == everywhere.each["CIDEr"][:2]
    assert quarter.each["CIDEr"][2] == half.each["CIDEr"][1] == half.each["CIDEr"][2] == 0
    assert half.metrics["CIDEr"] == pytest.approx(everywhere.each["CIDEr"][0] / 3)
    bad = {**PERFECT, "a": "one wooden table"}
    assert (
        scores_at_overlap(bad, REFERENCES, {"a": 1}, 0.5).metrics["ROUGE-L"]
        > (scores_at_overlap(bad, REFERENCES, {"a": 1}, 0.5, marked=False).metrics["ROUGE-L"])
    )


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match=r"not in both.*'a'"):
        caption_scores({"b": "x"}, {"a": ["x"]})
    with pytest.raises(ValueError, match="list of texts"):
        caption_scores({"a": "x"}, {"a": []})
