"""Decoders and the rows made with them."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from collimate.data import CorruptSample, Preparation, TrainingPreparation
from collimate.data.decoding import Undecodable, decode, register_decoder, register_modality, value_of
from collimate.data.preparation import Augmentation, collate
from collimate.processing import Processor


def _npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_each_extension_has_its_decoder(jpeg):
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    assert decode("jpg", jpeg(1)).size == (40, 30)
    assert decode("txt", "größer".encode()) == "größer"
    assert decode("captions.json", b'[{"kind": "long", "text": "a"}]') == [{"kind": "long", "text": "a"}]
    assert decode("cls", b"17\n") == 17
    assert decode("ecg.npy", buffer.getvalue()).tolist() == [0, 1, 2]
    assert decode("points.npz", _npz(xyz=np.ones(3)))["xyz"].tolist() == [1, 1, 1]
    assert decode("unheard.of", b"as it is") == b"as it is"


def test_packages_add_decoders_and_modalities(monkeypatch):
    monkeypatch.setattr("collimate.data.decoding._DECODERS", {})
    monkeypatch.setattr("collimate.data.decoding._MODALITIES", {})
    register_decoder(lambda data: data[::-1], "wav", "flac")
    register_modality("audio", "flac", "wav")
    assert decode("flac", b"abc") == b"cba"
    assert Preparation({"audio": Processor()}).fields == {"audio": ("flac", "wav")}


def test_objects_are_never_unpickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(Undecodable, match="damaged array"):
        decode("npy", buffer.getvalue())


def test_decoded_values_pass_unchanged():
    picture = Image.new("RGB", (5, 5))
    assert value_of({"png": picture}, ("jpg", "png")) is picture
    with pytest.raises(CorruptSample, match=r"src: k: no jpg/png \(it has txt\)"):
        value_of({"txt": "a", "__key__": "k", "__source__": "src"}, ("jpg", "png"))


def test_rows(jpeg, processors):
    sample = {"jpg": jpeg(1), "captions.json": b'["one", "two"]', "cls": b"2", "regions.json": b"[1]", "__key__": "k"}
    row = Preparation(processors, also=("label", "captions", "regions.json"))(sample)
    assert torch.equal(row["image"], processors["image"](jpeg(1)))
    assert torch.equal(row["text"], processors["text"]("one"))
    assert (int(row["label"]), row["captions"], row["regions.json"]) == (2, ["one", "two"], [1])
    assert Preparation(processors, fields={"text": ("alt",)}).fields["text"] == ("alt",)


def test_training_draws_among_the_captions(processors):
    preparation = TrainingPreparation({"text": processors["text"]})
    seen = {tuple(preparation({"captions.json": ["one", "two", "three"]})["text"].tolist()) for _ in range(60)}
    assert len(seen) == 3


def test_augmentations_stand_in_the_place_of_processors(processors):
    class Shout(Augmentation):
        def __call__(self, raw, processor):
            return processor(raw.upper() + "!")

    row = TrainingPreparation({"text": processors["text"]}, augmentations={"text": Shout()})({"txt": "hey"})
    assert torch.equal(row["text"], processors["text"]("HEY!"))


def test_collate_keeps_memory_formats():
    lasts = [torch.rand(4, 5, 3).permute(2, 0, 1) for _ in range(2)]
    batch = collate([{"image": image, "ids": torch.arange(3), "key": "a"} for image in lasts])
    assert torch.equal(batch["image"], torch.stack(lasts))
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["ids"].shape == (2, 3)
    assert batch["key"] == ["a", "a"]


def test_errors_of_processors_become_corrupt_samples(processors):
    class Picky(Processor):
        def __call__(self, raw):
            raise ValueError("no such thing")

    with pytest.raises(CorruptSample, match=r"undecodable text .*no such thing"):
        Preparation({"text": Picky()})({"txt": "a", "__key__": "k"})
    random.seed(0)  # a caption list with a bad entry is refused whichever is drawn
    with pytest.raises(CorruptSample, match="no caption"):
        TrainingPreparation({"text": processors["text"]})({"captions.json": ["fine", 3], "__key__": "k"})
