"""An index finds what a product of all vectors would, in pieces, and is whole or not there."""

import json
import os
import shutil
import sys

import pytest
import torch

from collimate.data import open_source
from collimate.evaluation.features import extract
from collimate.search import SearchIndex, write_index
from collimate.search import index as module

from .pair import WIDTH


def vectors_of(space, modality, source):
    found = extract(space.method(modality), open_source(source), [modality], device="cpu").encodings[modality].pooled
    return torch.nn.functional.normalize(found, dim=1)


def queries(count=5):
    return torch.nn.functional.normalize(torch.randn(count, WIDTH), dim=1)


def test_it_finds_what_the_product_of_all_vectors_finds(space, index_folder, data):
    index, asked = SearchIndex(index_folder), queries()
    everything = torch.cat([vectors_of(space, modality, source) for modality, source in data.items()])
    assert len(index) == len(everything) == 14
    wanted = (asked @ everything.T).sort(dim=1, descending=True)
    for own, scores, rows in zip(index.search(asked, 6), wanted.values, wanted.indices, strict=True):
        assert [hit.row for hit in own] == rows[:6].tolist()
        torch.testing.assert_close(torch.tensor([hit.score for hit in own]), scores[:6])


def test_a_chosen_modality_has_its_own_best(space, index_folder, data):
    index, asked = SearchIndex(index_folder), queries()
    wanted = (asked @ vectors_of(space, "audio", data["audio"]).T).argsort(dim=1, descending=True)
    for own, places in zip(index.search(asked, 3, ["audio"]), wanted, strict=True):
        assert {hit.modality for hit in own} == {"audio"}
        assert [hit.place for hit in own] == places[:3].tolist()


def test_hits_tell_key_source_and_caption(index_folder, data):
    index = SearchIndex(index_folder)
    hit = index.hit(2)
    assert (hit.modality, hit.key, hit.source, hit.place, hit.caption) == ("image", "2", data["image"], 2, "picture 2")
    assert index.hit(6).caption == ""  # it has no text, and is found all the same
    assert (index.hit(7).modality, index.hit(7).place) == ("audio", 0)
    with pytest.raises(IndexError, match="14 samples; there is no sample 14"):
        index.hit(14)


def test_previews_are_read_anew(index_folder):
    index = SearchIndex(index_folder)
    assert index.exhibit(0).picture is not None
    assert index.exhibit(7).sound is not None


def test_more_than_there_are_gives_all(index_folder):
    (found,) = SearchIndex(index_folder).search(queries(1), 1000)
    assert sorted(hit.row for hit in found) == list(range(14))
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


def test_wrong_questions_are_refused(index_folder):
    index = SearchIndex(index_folder)
    with pytest.raises(ValueError, match="The index holds image, audio, and no video"):
        index.search(queries(1), 3, ["video"])
    with pytest.raises(ValueError, match="at least 1, not 0"):
        index.search(queries(1), 0)
    with pytest.raises(ValueError, match=f"width {WIDTH}, and the query has 3"):
        index.search(torch.ones(1, 3))


def test_corrupt_samples_are_counted_and_left_out(space, data, tmp_path):
    shutil.copytree(data["image"], tmp_path / "photos")
    (tmp_path / "photos" / "3.png").write_bytes(b"no picture")
    (part,) = write_index(space, {"image": str(tmp_path / "photos")}, tmp_path / "index", samples_per_file=2)
    assert (part.samples, part.skipped) == (6, 1)
    index = SearchIndex(tmp_path / "index")
    assert [index.hit(row).place for row in range(6)] == [0, 1, 2, 4, 5, 6]
    assert index.hit(3).caption == "picture 4"


def test_an_interrupted_index_goes_on(space, data, tmp_path, monkeypatch):
    finished, extracted = [], []
    original = module.write_embeddings

    def counting(method, source, *rest, **options):
        extracted.append(source.name)
        return original(method, source, *rest, **options)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_embeddings", counting)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_vectors", stop)
        with pytest.raises(KeyboardInterrupt):
            write_index(space, data, tmp_path, samples_per_file=3)
    with pytest.raises(FileNotFoundError, match="no index"):
        SearchIndex(tmp_path)
    (part,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    before = {path.name: path.stat().st_mtime_ns for path in part.glob("*.safetensors")}
    assert len(before) == 3
    write_index(space, data, tmp_path, samples_per_file=3, done=finished.append)
    assert {path.name: path.stat().st_mtime_ns for path in part.glob("*.safetensors")} == before
    assert [each.modality for each in finished] == ["image", "audio"]
    assert len(SearchIndex(tmp_path)) == 14


def test_a_failed_write_leaves_no_half_file(space, data, tmp_path, monkeypatch):
    import faiss

    def full(vectors, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(faiss, "write_index", full)
        with pytest.raises(OSError, match="No space left"):
            write_index(space, {"image": data["image"]}, tmp_path)
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if "faiss" in name]
    write_index(space, {"image": data["image"]}, tmp_path)
    assert len(SearchIndex(tmp_path)) == 7


def test_further_data_are_added_and_earlier_rows_stay(space, data, tmp_path):
    write_index(space, {"audio": data["audio"]}, tmp_path)
    before = SearchIndex(tmp_path)
    parts = write_index(space, {"image": data["image"]}, tmp_path)
    after = SearchIndex(tmp_path)
    assert [part.modality for part in parts] == ["audio", "image"]
    assert [after.hit(row) for row in range(7)] == [before.hit(row) for row in range(7)]
    assert write_index(space, {"image": data["image"]}, tmp_path) == parts  # the same once more adds nothing


def test_texts_can_be_found_too(space, data, tmp_path):
    (part,) = write_index(space, {"text": data["image"]}, tmp_path)
    assert (part.samples, part.skipped) == (6, 1)  # the last picture has no text
    (found,) = SearchIndex(tmp_path).search(space.encode("text", ["picture 4"]), 1)
    assert (found[0].modality, found[0].caption) == ("text", "picture 4")
    assert found[0].score == pytest.approx(1, abs=1e-5)


def test_an_approximate_index_may_be_asked_for(space, data, tmp_path):
    write_index(space, data, tmp_path, kind="HNSW8")
    (found,) = SearchIndex(tmp_path).search(space.encode("text", ["picture 4"]), 3)
    assert len(found) == 3
    with pytest.raises(ValueError, match="index of another kind"):
        write_index(space, data, tmp_path)
    with pytest.raises(ValueError, match="faiss cannot make 'Flatt' of 7 vectors"):
        write_index(space, data, tmp_path / "other", kind="Flatt")


def test_an_index_of_another_space_is_not_added_to(space, data, index_folder, monkeypatch):
    monkeypatch.setattr(space, "hash", "another")
    with pytest.raises(ValueError, match="index of another space"):
        write_index(space, data, index_folder)


def test_an_empty_index_is_refused(space, index_folder, tmp_path):
    with pytest.raises(ValueError, match="nothing to index"):
        write_index(space, {}, tmp_path)
    contents = json.loads((index_folder / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**contents, "parts": []}))
    with pytest.raises(ValueError, match="is empty: add data"):
        SearchIndex(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        SearchIndex(tmp_path)


def test_an_index_that_lost_vectors_is_refused(index_folder, tmp_path):
    shutil.copytree(index_folder, tmp_path / "index")
    part = next((tmp_path / "index").glob("image-*"))
    (part / "000002.safetensors").unlink()
    with pytest.raises(ValueError, match="is damaged: of 7 samples it holds 7 vectors and 6 places"):
        SearchIndex(tmp_path / "index")


def test_unknown_modalities_are_refused(space, data, tmp_path):
    with pytest.raises(ValueError, match="No model here encodes 'video'; they encode image, audio, text"):
        write_index(space, {"video": data["image"]}, tmp_path)


def test_without_faiss_the_extra_is_named(space, data, index_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    for ask in (lambda: write_index(space, data, tmp_path), lambda: SearchIndex(index_folder)):
        with pytest.raises(ImportError, match=r"collimate\[index\]"):
            ask()
