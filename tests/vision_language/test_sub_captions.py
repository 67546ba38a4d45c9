"""Sentences of captions, and texts drawn from them: every sentence, any number, and the same whatever the workers."""

import json
import random
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collimate.configurable import build
from collimate.data import Caption, Mixture, Preparation, Source, TrainingPreparation, TrainLoader
from collimate.data.decoding import Undecodable
from collimate.processing import ClipTokenizer
from collimate_vision_language import SubCaptions
from collimate_vision_language.sub_captions import join, split_released, split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A dog sits. It is 3.5 m tall! Is it?", ["A dog sits.", "It is 3.5 m tall!", "Is it?"]),
        ("The sign of Mr. J. Doe, U.S. Army, e.g. here.", ["The sign of Mr. J. Doe, U.S. Army, e.g. here."]),
        ('It says "STOP." A car waits (red.) "Go!" Then…  Night.', ['It says "STOP."', "A car waits (red.)", '"Go!"']),
        ("1. A cat. 2. A dog.\n3. There are 5. The end", ["1. A cat.", "2. A dog.", "3. There are 5.", "The end"]),
        ("one.two\r\n\n - three</s>four </s>", ["one.two", "- three", "four"]),
        ("a dog. a cat.", ["a dog. a cat."]),
        ("Ein Haus. Über allem Wolken. 左に犬。 右に猫。", ["Ein Haus.", "Über allem Wolken.", "左に犬。 右に猫。"]),
        ("... \n***\n </s>", []),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text)[: len(sentences)] == sentences
    assert letters(split_sentences(text)) == letters([text])


def letters(pieces):
    return [c for piece in pieces for c in piece.replace("</s>", "") if c.isalnum()]


@given(st.text(st.sampled_from("aAé1 .!?…\"')(\n\t。<>/s"), max_size=60))
def test_nothing_is_lost_and_nothing_is_empty(text):
    sentences = split_sentences(text)
    assert all(any(map(str.isalnum, sentence)) for sentence in sentences)
    assert letters(sentences) == letters([text])
    assert "" not in split_released(text)


def test_long_texts_take_no_longer_than_their_length(request):
    long = "The red ball of Dr. Smith lies at 3.5 m. " * 1100  # 11,000 words
    assert split_sentences(long) == ["The red ball of Dr. Smith lies at 3.5 m."] * 1100
    for hostile in ("." * 10**5, "Mr. " * 10**5, ". " * 10**5, "." + "'" * 10**5, ". 1." + " " * 10**5):
        split_sentences(hostile)  # quadratic time would be minutes


RAW, SHORT = Caption("dog for sale", "raw"), Caption("A dog. It sits.", "short")
LONG = Caption("One. Two. Three. Four.", "long")


def drawn(sampler, captions, times=200):
    random.seed(0)
    return [sampler(captions) for _ in range(times)]


def test_uniform_draws_from_raw_short_and_sentences_without_replacement():
    every = {RAW.text, SHORT.text, "One.", "Two.", "Three.", "Four."}
    rows = drawn(SubCaptions(4), [RAW, SHORT, LONG])
    assert all(len(row) == len(set(row)) == 4 for row in rows)
    counts = Counter(text for row in rows for text in row)
    assert set(counts) == every
    assert min(counts.values()) > 90  # of 133 expected: the last sentence as often as the others
    assert {len(row) for row in drawn(SubCaptions(8), [RAW, LONG], 20)} == {8}


def test_the_raw_caption_comes_first_where_it_is_asked_for():
    sampler = SubCaptions(3, include_raw=True, kinds=["long"])
    rows = drawn(sampler, [LONG, RAW])
    assert {row[0] for row in rows} == {RAW.text}
    assert {text for row in rows for text in row[1:]} == {"One.", "Two.", "Three.", "Four."}
    assert SubCaptions(1, include_raw=True)([LONG, RAW]) == [RAW.text]
    assert {row[0] for row in drawn(sampler, [Caption("a. B"), Caption("c")])} == {"a. B"}  # the first, for want of one


def test_kinds_choose_what_is_split():
    captions = [RAW, SHORT, LONG]
    assert SubCaptions(whole=[], kinds=["short"]).sentences(captions) == ["A dog.", "It sits."]
    assert SubCaptions(whole=[], split="released").sentences([RAW, SHORT]) == ["dog for sale", "A dog", "It sits"]
    assert SubCaptions().sentences([Caption("No. Kind."), Caption(" ", "raw"), RAW]) == ["No. Kind.", "dog for sale"]


@pytest.mark.parametrize("sampling", ["uniform", "diverse"])
@pytest.mark.parametrize("include_raw", [True, False])
def test_any_number_of_sentences_is_enough(sampling, include_raw):
    sampler = SubCaptions(5, sampling, include_raw=include_raw, split="released")
    assert set(sampler([RAW])) <= {RAW.text, *(join([RAW.text] * n) for n in (2, 3))}
    assert sampler([RAW, Caption("...", "long")])[0].startswith(RAW.text)
    assert SubCaptions(5, sampling, kinds=["long"], include_raw=include_raw)([RAW])[0].startswith(RAW.text)
    assert len(sampler([Caption("One sentence", "long")])) == 5
    assert len(sampler([Caption("word " * 10_000, "long")])) == 5
    for empty in ([], [Caption("")], [Caption(" \n", "raw"), Caption("", "long")]):
        with pytest.raises(Undecodable, match="empty text"):
            sampler(empty)


def test_a_damaged_caption_is_refused():
    with pytest.raises(Undecodable, match="not UTF-8"):
        SubCaptions(2)([Caption("a \ud800", "raw")])
    with pytest.raises(ValueError, match="0 texts of 1"):
        SubCaptions(0)


def test_merging_joins_consecutive_sentences():
    rows = drawn(SubCaptions(3, merged_num=2), [LONG], 50)
    assert {text for row in rows for text in row} == {"One. Two.", "Two. Three.", "Three. Four."}
    assert all(len(set(row)) == 3 for row in rows)
    assert set(SubCaptions(3, merged_num=9)([LONG])) == {"One. Two. Three. Four."}
    assert join(["a dog", 'he says "hi."', "is it?", "end"]) == 'a dog. he says "hi." is it? end'


def test_diverse_draws_join_up_to_three_sentences_half_of_them_consecutive():
    captions = [Caption(" ".join(f"S{n}." for n in range(30)), "long")]
    texts = [text for row in drawn(SubCaptions(8, "diverse"), captions, 400) for text in row]
    places = [[int(word.strip("S.")) for word in text.split()] for text in texts]
    lengths = Counter(map(len, places))
    assert set(lengths) == {1, 2, 3}
    assert min(lengths.values()) > 0.29 * len(texts)
    several = [place for place in places if len(place) > 1]
    consecutive = sum(all(b == a + 1 for a, b in pairwise(place)) for place in several)
    assert consecutive / len(several) == pytest.approx(0.5, abs=0.06)
    assert {n for place in places for n in place} == set(range(30))


def test_every_ordered_pair_is_equally_likely():
    captions = [Caption("One. Two. Three.", "long")]
    counts = Counter(tuple(row) for row in drawn(SubCaptions(2), captions, 1200))
    assert len(counts) == 6  # ordered pairs of different sentences
    assert min(counts.values()) > 140  # of 200 expected


class Described(Source):
    name = "described"

    def __len__(self):
        return 6

    def read(self, index):
        long = " ".join(f"Sentence {index} {place}." for place in range(9))
        return {"__key__": str(index), "txt": f"raw {index}", "captions.json": [{"text": long, "kind": "long"}]}


def loader(workers=0, **given):
    tokenizer = {"text": ClipTokenizer(12)}
    prepare = TrainingPreparation(tokenizer, captions={"text": SubCaptions(4)})
    return TrainLoader(Mixture([Described()]), prepare, 3, num_workers=workers, **given)


def test_rows_are_k_texts_that_differ_between_epochs_and_resume_exactly():
    whole = loader()
    batches = [batch["text"] for _ in range(2) for batch in whole]
    assert batches[0].shape == (3, 4, 12)
    assert {tuple(row.tolist()) for batch in batches[:2] for row in batch.flatten(1)}.isdisjoint(
        {tuple(row.tolist()) for batch in batches[2:] for row in batch.flatten(1)}
    )
    resumed = loader()
    resumed.load_state_dict({"consumed": 6})
    for expected, batch in zip(batches[2:], resumed, strict=True):
        assert torch.equal(batch["text"], expected)
    with_workers = loader(workers=2)
    assert all(torch.equal(batch["text"], expected) for expected, batch in zip(batches, with_workers, strict=False))
    with_workers.close()


def test_the_choice_is_plain_configuration():
    sampler = SubCaptions(3, "diverse", whole=["short"])
    config = sampler.config()
    assert config["class_path"] == "collimate_vision_language.SubCaptions"
    row = Preparation({"text": ClipTokenizer(8)}, captions={"text": build(config)})(Described().read(0))
    assert row["text"].shape == (3, 8)


def test_real_descriptions(shared_data):
    rows = (shared_data / "text_long_captions" / "manifest.jsonl").read_text().splitlines()
    descriptions = [text for row in rows for text in json.loads(row)["descriptions"].values() if text]
    counts = []
    for text in descriptions:
        sentences = split_sentences(text)
        assert letters(sentences) == letters([text])
        assert all(sentence.strip() for sentence in sentences)
        counts.append(len(sentences))
        assert len(SubCaptions(8)([Caption(text, "long")])) == 8
    assert len(descriptions) > 600
    assert 6 < sum(counts) / len(counts) < 14  # about 175 words in sentences of about 20
