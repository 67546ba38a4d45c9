"""Embeddings in files: in order, resumable, and never mixed with others."""

import json

import pytest
import torch
from safetensors.torch import load_file

from collimate.data import TooManyCorruptSamples
from collimate.evaluation import extract, write_embeddings

from .toys import ColourMethod, ColourPictures

OPTIONS = {"samples_per_file": 5, "device": "cpu"}


def test_files_hold_all_samples_in_order(tmp_path):
    method, source = ColourMethod(0.2), ColourPictures(13, corrupt=[6])
    assert write_embeddings(method, source, tmp_path, ["image"], **OPTIONS) == 12
    files = [load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    whole = extract(method, source, ["image"], device="cpu")
    torch.testing.assert_close(torch.cat([file["image"] for file in files]), whole.encodings["image"].pooled)
    assert torch.cat([file["index"] for file in files]).tolist() == whole.index.tolist()
    keys = [key for path in sorted(tmp_path.glob("*.keys.json")) for key in json.loads(path.read_text())]
    assert keys == whole.keys


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    method, source = ColourMethod(), ColourPictures(13)
    write_embeddings(method, source, tmp_path, **OPTIONS)
    kept = (tmp_path / "000000.safetensors").stat().st_mtime_ns
    (tmp_path / "000001.safetensors").unlink()
    read = []
    monkeypatch.setattr(source, "read", lambda index: read.append(index) or ColourPictures.read(source, index))
    assert write_embeddings(method, source, tmp_path, **OPTIONS) == 13
    assert sorted(read) == [5, 6, 7, 8, 9]
    assert (tmp_path / "000000.safetensors").stat().st_mtime_ns == kept


def test_a_run_that_failed_at_once_is_not_in_the_way(tmp_path):
    with pytest.raises(TooManyCorruptSamples):
        write_embeddings(ColourMethod(), ColourPictures(5, corrupt=range(5)), tmp_path, **OPTIONS)
    assert write_embeddings(ColourMethod(), ColourPictures(4), tmp_path, **OPTIONS) == 4


def test_other_embeddings_are_not_mixed_in(tmp_path):
    write_embeddings(ColourMethod(), ColourPictures(4), tmp_path, identity={"data": "a"}, **OPTIONS)
    with pytest.raises(ValueError, match=r"other embeddings \(data, samples differ\)"):
        write_embeddings(ColourMethod(), ColourPictures(5), tmp_path, identity={"data": "b"}, **OPTIONS)
