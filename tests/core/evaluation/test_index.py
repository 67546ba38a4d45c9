"""Search in files: the numbers of a search in memory, whatever the blocks, the files and the precision."""

import json

import pytest
import torch
from torch.nn.functional import normalize

from collimate.encoding import Encoding
from collimate.evaluation import EmbeddingIndex, extract, write_embeddings
from collimate.evaluation import index as searching
from collimate.evaluation.index import scorer
from collimate.evaluation.retrieval import evaluate_retrieval

from .toys import ColourMethod, ColourPictures, LateMethod

OPTIONS = {"device": "cpu", "samples_per_file": 5}


@pytest.fixture
def late(tmp_path):
    """A method of late interaction, and the index of 13 pictures in three files."""
    method = LateMethod()
    write_embeddings(method, ColourPictures(13), tmp_path, ["image"], tokens=True, also=["captions"], **OPTIONS)
    return method, EmbeddingIndex(tmp_path)


def test_an_index_holds_what_was_encoded(late):
    method, index = late
    whole = extract(method, ColourPictures(13), ["image"], tokens=True, device="cpu").encodings["image"]
    assert (len(index), index.grid, index.longest) == (13, (2, 2), 4)
    for rows in (slice(0, 13), slice(3, 12), slice(5, 10), slice(12, 13)):
        found = index.rows(rows)
        torch.testing.assert_close(found.pooled, whole.pooled[rows])
        torch.testing.assert_close(found.tokens, whole.tokens[rows])
        assert found.grid == (2, 2)
    assert len(index.rows(slice(4, 4)).pooled) == 0
    assert index.keys()[12] == "picture 12"
    assert index.beside("captions")[4] == ["white number 0", "white number 1"]


def test_only_real_tokens_are_stored(tmp_path):
    method = LateMethod()
    write_embeddings(method, ColourPictures(7), tmp_path, ["text"], tokens=True, **OPTIONS)
    lengths = [len(f"{name} number 0".split()) for name in ("red",)] * 7
    with searching.safe_open(tmp_path / "000000.safetensors", "pt") as file:
        assert file.get_slice("text.tokens").get_shape()[0] == sum(lengths[:5]) < 5 * method.processors["text"].length
    found = EmbeddingIndex(tmp_path).rows(slice(0, 7))
    assert found.token_mask.sum(1).tolist() == lengths


@pytest.mark.parametrize("block", [1, 37, 2**20])
def test_scores_and_search_are_those_of_memory(late, monkeypatch, block):
    method, index = late
    queries = method.encode("text", ["red number 1", "blue", "a green one", "yellow white"])
    samples = extract(method, ColourPictures(13), ["image"], tokens=True, device="cpu").encodings["image"]
    expected = method.similarity(queries, samples).detach()
    monkeypatch.setattr(searching, "TOKEN_SCORES", block)
    monkeypatch.setattr(searching, "SCORES", block)
    pairs = []
    scores = scorer(method, queries, index, pairs.append)(slice(0, 4), slice(0, 13))
    torch.testing.assert_close(scores, expected)
    assert sum(pairs) == expected.numel()
    found = index.search(method, queries, 5)
    order = expected.sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(found.scores, order.values[:, :5])
    assert torch.equal(found.places, order.indices[:, :5])
    assert index.search(method, queries, 99).places.shape == (4, 13)


def test_a_cosine_needs_no_tokens(tmp_path):
    method = ColourMethod(0.2)
    write_embeddings(method, ColourPictures(9), tmp_path, ["image"], **OPTIONS)
    index = EmbeddingIndex(tmp_path, "image")
    query = method.encode("text", ["red"])
    cosines = normalize(query.pooled, dim=-1) @ normalize(index.rows(slice(0, 9)).pooled, dim=-1).T
    assert index.search(method, query, 1).places.item() == cosines.argmax().item()
    assert index.longest == 0


def test_equal_scores_are_ranked_by_their_order(tmp_path):
    class Same(LateMethod):
        def similarity(self, query, key):
            return torch.zeros(len(query.pooled), len(key.pooled))

    method = Same()
    write_embeddings(method, ColourPictures(13), tmp_path, ["image"], tokens=True, **OPTIONS)
    found = EmbeddingIndex(tmp_path).search(method, method.encode("text", ["red"]), 13)
    assert found.places[0].tolist() == list(range(13))


def test_half_precision_tokens_take_half_the_room(tmp_path):
    method, sizes = LateMethod(), {}
    for precision in ("float32", "float16"):
        folder = tmp_path / precision
        write_embeddings(
            method, ColourPictures(40), folder, ["image"], tokens=True, token_precision=precision, device="cpu"
        )
        sizes[precision] = (folder / "000000.safetensors").stat().st_size
    one, half = (EmbeddingIndex(tmp_path / name).rows(slice(0, 40)).tokens for name in sizes)
    assert half.dtype == torch.float32
    torch.testing.assert_close(one, half, atol=1e-3, rtol=1e-3)
    assert sizes["float32"] - sizes["float16"] == one.numel() * 2


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no embeddings in"):
        EmbeddingIndex(tmp_path)
    with pytest.raises(ValueError, match="no tokens of 'image'"):
        write_embeddings(ColourMethod(), ColourPictures(3), tmp_path / "a", tokens=True, **OPTIONS)
    write_embeddings(ColourMethod(), ColourPictures(3), tmp_path / "b", **OPTIONS)
    for modality in ("sound", None):
        with pytest.raises(ValueError, match="of image, text: say of which"):
            EmbeddingIndex(tmp_path / "b", modality)


def test_other_weights_are_other_embeddings(tmp_path):
    write_embeddings(ColourMethod(0.1), ColourPictures(3), tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"\(weights differ\)"):
        write_embeddings(ColourMethod(0.2), ColourPictures(3), tmp_path, **OPTIONS)


def test_a_kept_index_is_used_again(tmp_path, monkeypatch):
    method, options = LateMethod(), {"device": "cpu", "resamples": 5}
    first = evaluate_retrieval(method, ColourPictures(9), index=tmp_path, **options)
    monkeypatch.setattr(method, "encode", None)  # nothing is encoded again
    assert evaluate_retrieval(method, ColourPictures(9), index=tmp_path, **options).metrics == first.metrics
    with pytest.raises(ValueError, match=r"text holds other embeddings \(prefix differ\)"):
        evaluate_retrieval(method, ColourPictures(9), "a ", index=tmp_path, **options)
    assert json.loads((tmp_path / "image" / "000000.captions.json").read_text())[0] == ["red number 0"]


def test_retrieval_through_files_is_that_in_memory(monkeypatch):
    method, source = LateMethod(), ColourPictures(11, corrupt=[3])
    stored = evaluate_retrieval(method, source, device="cpu", resamples=5)
    held = extract(method, source, ["image"], ["captions"], tokens=True, device="cpu")
    assert evaluate_retrieval(method, held, device="cpu", resamples=5).metrics == stored.metrics
    assert stored.features.index.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert stored.protocol["samples"] == 10
    assert stored.protocol["unreadable"] == 1
    limited = evaluate_retrieval(method, ColourPictures(20), limit=4, device="cpu", resamples=5)
    assert limited.features.index.tolist() == [0, 5, 10, 15]
    assert limited.features.keys == ["picture 0", "picture 5", "picture 10", "picture 15"]


def test_a_text_without_real_tokens_takes_no_room(tmp_path):
    class Silent(LateMethod):
        def forward(self, modality, inputs, mask=None):
            found = super().forward(modality, inputs, mask)
            return Encoding(found.pooled, found.tokens, torch.zeros(found.tokens.shape[:2], dtype=torch.bool))

    write_embeddings(Silent(), ColourPictures(3), tmp_path, ["text"], tokens=True, **OPTIONS)
    assert EmbeddingIndex(tmp_path).rows(slice(0, 3)).tokens.shape == (3, 0, 3)
