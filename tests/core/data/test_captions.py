"""Which captions a row holds: by kind, by place, several, optional ones; and what is missing or damaged."""

import json
import random
from collections import Counter

import pytest
import torch

from collimate.data import CorruptSample, EvalLoader, OneCaption, Preparation, Source
from collimate.data.captions import Caption, CaptionChoice, captions_of, listed
from collimate.data.decoding import Undecodable

KINDS = [{"text": "clean one", "kind": "synthetic"}, {"text": "clean two", "kind": "synthetic"}, "of no kind"]


def sample(**fields):
    return {"__key__": "7", "__source__": "table", **{name.replace("_json", ".json"): v for name, v in fields.items()}}


def test_a_samples_captions_are_its_text_and_the_others_with_their_kinds():
    captions = captions_of(sample(txt=b"as crawled", captions_json=json.dumps(KINDS).encode()))
    assert captions == [
        Caption("as crawled", "raw"),
        Caption("clean one", "synthetic"),
        Caption("clean two", "synthetic"),
        Caption("of no kind"),
    ]
    assert captions_of(sample(txt="alone")) == [Caption("alone", "raw")]
    assert captions_of(sample(captions_json=["a", "b"])) == [Caption("a"), Caption("b")]


@pytest.mark.parametrize(
    ("form", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([{"kind": "raw", "text": "a"}, "b"], ["a", "b"])],
)
def test_captions_of_any_form(form, expected):
    assert [caption.text for caption in listed(form)] == expected


@pytest.mark.parametrize("damaged", [[], {}, [1], [{"kind": "raw"}], [None], None])
def test_captions_in_no_known_form_are_refused(damaged):
    with pytest.raises(Undecodable, match="no caption"):
        listed(damaged)


def test_a_sample_without_captions_is_corrupt():
    with pytest.raises(CorruptSample, match=r"captions\.json"):
        captions_of(sample(png=b"..."))


def test_every_fitting_caption_is_drawn_and_no_other():
    captions = listed(KINDS)
    random.seed(0)
    drawn = Counter(OneCaption(["synthetic"])(captions) for _ in range(200))
    assert set(drawn) == {"clean one", "clean two"}
    assert min(drawn.values()) > 60
    assert {OneCaption(stop=1)(captions) for _ in range(20)} == {"clean one"}
    assert {OneCaption(start=1)(captions) for _ in range(50)} == {"clean two", "of no kind"}


def test_a_missing_caption_is_refused_unless_it_is_optional():
    with pytest.raises(Undecodable, match=r"no caption of kind long .its kinds: None, synthetic"):
        OneCaption(["long"])(listed(KINDS))
    assert OneCaption(["long"], optional=True)(listed(KINDS)) is None
    assert OneCaption(optional=True)([Caption("  ")]) is None
    with pytest.raises(Undecodable, match="empty text"):
        OneCaption()([Caption("  ")])


class TwoCaptions(CaptionChoice):
    def __call__(self, captions):
        return [captions[0].text, captions[-1].text]


def test_rows_hold_what_was_chosen(processors):
    text = {"text": processors["text"]}
    choices = {"text": OneCaption(["raw"]), "caption": OneCaption(["synthetic"], optional=True), "both": TwoCaptions()}
    prepare = Preparation(text, captions=choices)
    whole = prepare(sample(txt="raw words", captions_json=KINDS))
    assert torch.equal(whole["text"], processors["text"]("raw words"))
    assert bool(whole["caption_given"])
    assert whole["both"].shape == (2, 12)
    assert torch.equal(whole["both"][1], processors["text"]("of no kind"))
    lacking = prepare(sample(txt="raw words"))
    assert not bool(lacking["caption_given"])
    assert torch.equal(lacking["caption"], processors["text"](""))


def test_a_row_that_lacks_a_needed_caption_names_its_sample(processors):
    prepare = Preparation({"text": processors["text"]}, captions={"text": OneCaption(["long"])})
    with pytest.raises(CorruptSample, match=r"table: 7.text: no caption of kind long"):
        prepare(sample(txt="raw words"))


class Worded(Source):
    name = "worded"

    def __len__(self):
        return 9

    def read(self, index):
        return sample(captions_json=[f"{index} a", f"{index} b", f"{index} c", f"{index} d"])


def test_validation_draws_the_same_captions_every_time(processors):
    loader = EvalLoader(Worded(), {"text": processors["text"]}, 4, captions={"text": OneCaption()})
    first, second = ([batch["text"] for batch in loader] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    by_place = [batch["text"] for batch in EvalLoader(Worded(), {"text": processors["text"]}, 4)]
    assert not all(torch.equal(a, b) for a, b in zip(first, by_place, strict=True))
