"""Scenes and sentences as tensors: what is packed comes out again, names fall on their tokens, bad input is refused."""

import pickle

import numpy as np
import pytest
import torch

from collimate.data import Preparation, open_source
from collimate.data.commands import write_shards
from collimate.data.decoding import Undecodable
from collimate.data.referrals import NamedWord, Referral
from collimate.processing import ClipTokenizer
from collimate_3d.language import GRUTextEncoder, WordTokenizer, count_words, fill_word_vectors
from collimate_3d.scenes import (
    DrawnReferrals,
    ReferralProcessor,
    SceneAugmentation,
    SceneProcessor,
    unpacked_referrals,
    unpacked_scenes,
)
from collimate_3d.scenes.processing import checked_scene, moved_scene, object_points
from collimate_world import ROOM_CLASSES

from .scene_toys import rooms, vocabulary


def scene(place=0):
    return dict(rooms().read(place)["scene.npz"])


def test_what_is_packed_comes_out_again():
    processor, raw = SceneProcessor(ROOM_CLASSES, 8, 12), scene()
    found = unpacked_scenes(processor(raw)[None])
    count = len(raw["ids"])
    assert found.given[0].tolist() == [True] * count + [False] * (8 - count)
    assert found.ids[0, :count].tolist() == raw["ids"].tolist()
    assert found.ids[0, count:].tolist() == [-1] * (8 - count)
    assert [ROOM_CLASSES[number] for number in found.labels[0, :count]] == raw["labels"].tolist()
    np.testing.assert_array_equal(found.boxes[0, :count], raw["boxes"])
    assert sorted(map(tuple, found.related[0].nonzero().tolist())) == sorted(map(tuple, raw["edges"].T.tolist()))
    points = found.points[0, 1]
    torch.testing.assert_close(points[:, :3].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(points[:, :3].norm(dim=1).max(), torch.tensor(1.0))
    np.testing.assert_allclose(points[:, 3:], raw["rgb"][raw["instance"] == 1] / 127.5 - 1, atol=1e-5)


def test_trimming_takes_padding_away():
    processor = SceneProcessor(ROOM_CLASSES, 40, 12)
    batch = processor.batch([scene(place) for place in range(3)])
    trimmed = processor.trimmed(batch)
    most = int(processor.mask(batch).sum(1).max())
    assert trimmed.shape[1] == most
    for full, cut in zip(unpacked_scenes(batch), unpacked_scenes(trimmed), strict=True):
        cropped = full[:, :most] if full.ndim != 3 or full.shape[2] == 6 else full[:, :most, :most]
        assert torch.equal(cropped, cut)


def test_objects_without_points_and_too_many_are_left_out():
    raw = scene()
    gone = int(raw["ids"][1])
    raw["instance"] = np.where(raw["instance"] == gone, -1, raw["instance"])
    found = unpacked_scenes(SceneProcessor(["ball"], 8, 12)(raw)[None])
    assert gone not in found.ids[0].tolist()
    assert int(found.given.sum()) == len(raw["ids"]) - 1
    assert set(found.labels[0].tolist()) <= {0, -1}, "other classes are not known"
    assert int(unpacked_scenes(SceneProcessor(ROOM_CLASSES, 2, 12)(raw)[None]).given.sum()) == 2
    few = object_points(np.ones((1, 6), np.float32), 5)
    assert few.shape == (5, 6)
    assert np.isfinite(few).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rgb": np.zeros((3, 3))}, "rgb is"),
        ({"boxes": np.full((1, 6), 0.0)}, "boxes is"),
        ({"edges": np.array([[0], [0]])}, "itself"),
        ({"edges": np.array([[0], [77]])}, "object 77"),
        ({"edges": np.zeros(4)}, "subjects and objects"),
        ({"xyz": np.zeros(4)}, "xyz is"),
    ],
)
def test_damaged_scenes_are_refused(change, told):
    with pytest.raises(Undecodable, match=told):
        SceneProcessor(ROOM_CLASSES)(scene() | change)


def test_numbers_that_are_none_are_refused():
    raw = scene()
    raw["xyz"] = raw["xyz"].copy()
    raw["xyz"][5, 1] = np.nan
    with pytest.raises(Undecodable, match="NaN"):
        checked_scene(raw)
    with pytest.raises(Undecodable, match="lacks xyz"):
        checked_scene({"rgb": raw["rgb"], **{name: raw[name] for name in ("instance", "ids", "labels", "boxes")}})
    with pytest.raises(Undecodable, match="lacks xyz"):
        checked_scene(b"npz")


# Sentences ------------------------------------------------------------------------------------------------------

SENTENCE = Referral("the cabinets' door, left of the red ball", 4, (7,), (NamedWord(4, 4, 12), NamedWord(7, 36, 40)))


@pytest.mark.parametrize("tokenizer", [ClipTokenizer(24), WordTokenizer(count_words([SENTENCE.text]), 24)])
def test_names_fall_on_their_tokens(tokenizer):
    processor = ReferralProcessor(tokenizer, 3)
    found = unpacked_referrals(processor([SENTENCE.to_json()])[None])
    assert found.given.tolist() == [[True, False, False]]
    assert found.target.tolist() == [[4, -1, -1]]
    assert torch.equal(found.ids[0, 0], tokenizer(SENTENCE.text))
    pieces = tokenizer.pieces(found.ids[0, 0])
    assert "".join(piece for piece, name in zip(pieces, found.names[0, 0], strict=True) if name == 4)[:8] == "cabinets"
    assert [piece for piece, name in zip(pieces, found.names[0, 0], strict=True) if name == 7] == ["ball"]
    assert (found.names[0, 1:] == -1).all()


def test_a_text_that_is_cut_names_what_is_left():
    found = unpacked_referrals(ReferralProcessor(WordTokenizer(count_words([SENTENCE.text]), 4), 1)([SENTENCE])[None])
    assert found.names[0, 0].tolist()[-1] == -1
    assert 4 in found.names[0, 0].tolist()
    assert 7 not in found.names[0, 0].tolist()


def test_no_sentences_are_none():
    assert not unpacked_referrals(ReferralProcessor(ClipTokenizer(8))([])[None]).given.any()
    with pytest.raises(Undecodable, match="no list"):
        ReferralProcessor(ClipTokenizer(8))({"text": "a"})


def test_training_draws_among_many_sentences():
    source = rooms(sentences=12, objects="9-12")
    processor = ReferralProcessor(WordTokenizer(vocabulary(source), 16), 3)
    drawn = [DrawnReferrals()(source.read(0)["referrals.json"], processor) for _ in range(20)]
    assert len({tuple(each[:, 1].tolist()) for each in drawn}) > 3
    again = pickle.loads(pickle.dumps(processor))
    assert torch.equal(again(source.read(0)["referrals.json"]), processor(source.read(0)["referrals.json"]))


def test_augmented_scenes_keep_their_points_in_their_boxes():
    raw = checked_scene(scene())
    moved = moved_scene(raw, np.pi / 2, np.array([1, 2, 1]), np.array([0, 0, 1]))
    np.testing.assert_allclose(moved["xyz"][:, 0], -raw["xyz"][:, 1], atol=1e-5)
    np.testing.assert_allclose(moved["xyz"][:, 1], 2 * raw["xyz"][:, 0], atol=1e-5)
    np.testing.assert_allclose(moved["boxes"][:, 3:], raw["boxes"][:, [4, 3, 5]] * (1, 2, 1), atol=1e-5)
    turned = moved_scene(raw, 0.3, np.ones(3), np.zeros(3))
    for number, own in enumerate(raw["ids"]):
        inside = np.abs(turned["xyz"][raw["instance"] == own] - turned["boxes"][number, :3])
        assert (inside <= turned["boxes"][number, 3:] / 2 + 0.03).all()
    drawn = [SceneAugmentation()(raw, SceneProcessor(ROOM_CLASSES, 8, 12)) for _ in range(2)]
    assert not torch.equal(*drawn)


# Words ------------------------------------------------------------------------------------------------------------


def test_words_of_any_script_and_of_none(tmp_path):
    words = count_words(["The Stuhl's leg, the 椅子!", "the leg"])
    assert words[:2] == ["the", "leg"]
    (tmp_path / "words.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = WordTokenizer(str(tmp_path / "words.txt"), 8)
    ids = tokenizer("The 椅子 is new")
    assert tokenizer.pieces(ids) == ["the", "椅子", "?", "?", "", "", "", ""]
    assert tokenizer.mask(ids[None])[0].tolist() == [True] * 5 + [False] * 3
    assert tokenizer.config()["init_args"]["words"] == words
    assert tokenizer("")[0] == tokenizer.end_id
    assert int(tokenizer("leg " * 20)[-1]) == tokenizer.end_id
    with pytest.raises(ValueError, match="twice"):
        WordTokenizer(["a", "a"])
    with pytest.raises(ValueError, match="no single word"):
        WordTokenizer(["A"])
    with pytest.raises(FileNotFoundError, match="vocabulary"):
        WordTokenizer(str(tmp_path / "none.txt"))


def test_published_word_vectors_are_taken(tmp_path):
    tokenizer = WordTokenizer(["ball", "left", "椅子"], 8)
    encoder = GRUTextEncoder(tokenizer.vocab_size, 3, 8)
    before = encoder.word_embeddings.weight.detach().clone()
    path = tmp_path / "glove.txt"
    path.write_text("the 1 1 1\nball 0.5 -1 2\n椅子 1 2 3\n", encoding="utf-8")
    assert fill_word_vectors(encoder, tokenizer, path) == 2
    after = encoder.word_embeddings.weight
    assert after[tokenizer("ball")[0]].tolist() == [0.5, -1, 2]
    assert torch.equal(after[tokenizer("left")[0]], before[tokenizer("left")[0]])
    path.write_text("ball 1 2\n")
    with pytest.raises(ValueError, match="2 numbers"):
        fill_word_vectors(encoder, tokenizer, path)
    path.write_text("dog 1 2 3\n")
    with pytest.raises(ValueError, match="none of the 3 words"):
        fill_word_vectors(encoder, tokenizer, path)


# As files ---------------------------------------------------------------------------------------------------------


def test_scenes_are_written_as_shards_and_read_again(tmp_path):
    source = rooms(length=5)
    write_shards(source, str(tmp_path), {"input": "rooms"}, shuffle=False)
    shards = open_source(str(tmp_path))
    assert len(shards) == 5
    scenes, told = SceneProcessor(ROOM_CLASSES, 8, 12), ReferralProcessor(WordTokenizer(vocabulary(source), 16), 4)
    prepare = Preparation({"scene": scenes, "referrals": told})
    for place in range(5):
        wanted, found = prepare(source.read(place)), prepare(shards.read(place))
        assert torch.equal(found["scene"], wanted["scene"])
        assert torch.equal(found["referrals"], wanted["referrals"])
