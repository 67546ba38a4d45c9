"""Noun phrases of whole captions: generic words, stop words, the limit, repeats, and both taggers."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate.data import phrases
from collimate.data.phrases import noun_phrases, queries, tagger_named

nltk = pytest.importorskip("nltk")
pytest.importorskip("textblob")
PARTS = {
    "a": "DT",
    "the": "DT",
    "two": "CD",
    "red": "JJ",
    "tall": "JJR",
    "is": "VBZ",
    "in": "IN",
    "it": "PRP",
    ".": ".",
}


def toy(words):
    """Everything that is not known is a noun."""
    return [(word, PARTS.get(word, "NN")) for word in words]


def test_phrases_of_several_captions_in_order_and_none_twice():
    texts = ["The red barn is in a tall forest. It is a barn.", "A red barn", "The RED barn in fog"]
    assert queries(texts, toy) == ["the red barn", "a tall forest", "a barn", "a red barn", "fog"]
    assert queries(texts, toy, 2) == ["the red barn", "a tall forest"]
    assert queries(["", "  ", "It is."], toy) == []


def test_generic_words_are_dropped_before_the_tagger_sees_them():
    seen = []

    def watching(words):
        seen.append(list(words))
        return toy(words)

    assert queries(["stock photo red barn wallpaper"], watching) == ["red barn"]
    assert seen == [["red", "barn"]]
    assert queries(["Free HD Wallpapers"], watching) == []


def test_generic_words_do_not_part_their_neighbours():
    assert noun_phrases([("red", "JJ"), ("vector", "NN"), ("barn", "NN")]) == ["red barn"]


def test_a_phrase_of_stop_words_and_others_stays():
    assert noun_phrases([("the", "DT"), ("own", "JJ"), ("same", "NN")]) == []
    assert noun_phrases([("the", "DT"), ("same", "JJ"), ("barn", "NN")]) == ["the same barn"]


def test_textblob_needs_no_data():
    found = queries(["A small white cottage with a green roof, among tall pine trees."], tagger_named("textblob"))
    assert found == ["a small white cottage", "a green roof", "tall pine trees"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=8), min_size=1, max_size=9))
def test_textblob_gives_back_our_words(words):
    assert [word for word, _ in tagger_named("textblob")(words)] == words


def test_nltk_without_data_says_what_to_do(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(ValueError, match=r"NLTK_DATA name a folder that has them, or take the tagger .textblob"):
        tagger_named("nltk")


def test_nltk_with_data(monkeypatch):
    monkeypatch.setattr(nltk, "pos_tag", toy)
    assert queries(["the red barn"], tagger_named("nltk")) == ["the red barn"]


def test_a_missing_extra_is_named(monkeypatch):
    phrases._library.cache_clear()
    monkeypatch.setitem(sys.modules, "textblob.en", None)
    with pytest.raises(ImportError, match=r"collimate\[phrases\]"):
        tagger_named("textblob")
    phrases._library.cache_clear()


def test_nothing_is_imported_before_it_is_needed():
    code = "import sys, collimate.data.labelling; sys.exit(bool({'torch', 'transformers', 'nltk'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
