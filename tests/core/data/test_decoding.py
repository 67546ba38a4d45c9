"""Decoders and the rows made with them."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from collimate.data import CorruptSample, ImageAugmentation, Preparation, TrainingPreparation
from collimate.data.decoding import Undecodable, decode, identity_of, register_decoder, register_modality, value_of
from collimate.data.loading import seed_generators
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
    assert decode("table.npz", _npz(xyz=np.ones(3)))["xyz"].tolist() == [1, 1, 1]
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


def test_a_picture_has_one_identity_whatever_its_sample_is_called(jpeg, processors):
    prepare = Preparation(processors, also=("id",))
    rows = [
        prepare({"__key__": key, "__source__": source, "jpg": jpeg(number), "txt": text})["id"]
        for key, source, number, text in (("0:a.jpg", "x", 1, "one"), ("7", "y", 1, "two"), ("0:a.jpg", "x", 2, "one"))
    ]
    assert rows[0].dtype == torch.int64
    assert rows[0] == rows[1] != rows[2]
    assert identity_of({"jpg": b"picture"}, ("png", "jpg")) == -6761750655912311187, "it must never change"


def test_identities_of_what_came_decoded(jpeg):
    image = decode("jpg", jpeg(1))
    same = [identity_of({"jpg": value}, ("jpg",)) for value in (image, image.copy(), np.asarray(image))]
    assert len(set(same)) == 1
    flat, other = np.zeros((4, 6, 3), np.uint8), np.zeros((6, 4, 3), np.uint8)
    assert identity_of({"jpg": flat}, ("jpg",)) != identity_of({"jpg": other}, ("jpg",)), "shapes count"
    assert identity_of({"txt": "a"}, ("txt",)) == identity_of({"txt": b"a"}, ("txt",))
    with pytest.raises(CorruptSample, match=r"no png .it has txt"):
        identity_of({"txt": "a"}, ("png",))


def test_views_are_further_draws(jpeg, processors):
    sample = {"__key__": "k", "jpg": jpeg(1), "txt": "words"}
    augmentations = {"image": ImageAugmentation((0.2, 0.5))}
    prepare = TrainingPreparation(processors, augmentations=augmentations, views={"image_view": "image"})
    rows = []
    for _ in range(2):
        seed_generators(0, 5)
        rows.append(prepare(sample))
    assert torch.equal(rows[0]["image"], rows[1]["image"])
    assert torch.equal(rows[0]["image_view"], rows[1]["image_view"])
    assert not torch.equal(rows[0]["image"], rows[0]["image_view"])
    seed_generators(0, 5)
    plain = TrainingPreparation(processors, augmentations=augmentations)(sample)
    assert torch.equal(plain["image"], rows[0]["image"]), "a view must not change what is drawn for the first"
    still = Preparation(processors, views={"image_view": "image"})(sample)
    assert torch.equal(still["image"], still["image_view"])
    with pytest.raises(ValueError, match="no 'sound' to view: the modalities are image, text"):
        Preparation(processors, views={"again": "sound"})
