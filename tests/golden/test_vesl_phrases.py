"""The chunks and filters of VESL's noun phrases, from the words and settings of CLOC's appendix."""

import json

import pytest

from collimate.data.phrases import GENERIC_WORDS, GRAMMAR, STOP_WORDS, noun_phrases

GOLDEN = "cloc/vesl_noun_phrases"
pytest.importorskip("nltk")


def test_noun_phrases(golden_set):
    content = json.loads((golden_set.folder / "cases.json").read_text())
    assert golden_set.config["grammar"] == GRAMMAR
    assert set(content["generic_words"]) == GENERIC_WORDS
    assert set(content["stopwords"]) == STOP_WORDS
    for case in content["cases"]:
        assert noun_phrases(list(map(tuple, case["tagged"])), case["max_num_queries"]) == case["expected"]
    assert content["cases"]
