"""Whether models share a space is decided by what encodes their texts, to the last weight."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from collimate.checkpoints import CheckpointError, load, save, trained_processor, trained_tower
from collimate.configurable import build
from collimate.encoders import Frozen, LinearProjection, NoProjection, OpenClipTextEncoder, Projected
from collimate.processing import ClipTokenizer
from collimate.search import NotOneSpace, Space, open_space
from collimate.search.space import text_space, tokenizer_hash
from collimate.training import Method

from .pair import WIDTH, picture_text, sound_text

TEXTS = ["a red circle", "two dogs", "the sound of a high bell"]


def test_a_tower_taken_over_is_frozen_and_gives_the_same_vectors(checkpoints):
    clip, clap = map(load, checkpoints)
    torch.testing.assert_close(clip.encode("text", TEXTS).pooled, clap.encode("text", TEXTS).pooled)
    tower = clap.encoders["text"]
    assert isinstance(tower, Frozen)
    assert isinstance(tower.encoder, Projected)
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_training_moves_the_sounds_and_not_the_texts(checkpoints):
    clap = load(checkpoints[1]).train()
    before = {name: value.clone() for name, value in clap.state_dict().items()}
    optimizer = torch.optim.SGD([each for each in clap.parameters() if each.requires_grad], lr=1.0)
    batch = {"audio": torch.randn(4, *clap.processors["audio"](torch.randn(8000)).shape)}
    batch["text"] = clap.processors["text"].batch([*TEXTS, "rain"])
    clap.total_loss(clap.loss_terms(batch)).backward()
    optimizer.step()
    moved = {name for name, value in clap.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("encoders.audio") for name in moved)
    assert not any(name.startswith("encoders.text") for name in moved)
    assert text_space(clap) == text_space(load(checkpoints[0]))


def test_the_hash_does_not_see_wrappers_and_sees_every_weight(checkpoints):
    clip, clap = map(load, checkpoints)
    assert text_space(clip) == text_space(clap)
    wanted = text_space(clip)
    with torch.no_grad():
        clip.projections["text"].linear.weight[0, 0] += 1e-6
    assert text_space(clip).projection != wanted.projection
    assert text_space(clip).tower == wanted.tower
    with torch.no_grad():
        next(clap.encoders["text"].parameters()).view(-1)[0] += 1e-6
    assert text_space(clap).tower != wanted.tower
    assert text_space(clap).tokenizer == wanted.tokenizer


def test_the_hash_sees_a_tokenizers_settings():
    assert tokenizer_hash(ClipTokenizer(12)) == tokenizer_hash(ClipTokenizer(12))
    assert tokenizer_hash(ClipTokenizer(12)) != tokenizer_hash(ClipTokenizer(13))
    assert tokenizer_hash(ClipTokenizer(12)) != tokenizer_hash(ClipTokenizer(12, ("<a>", "<b>")))


def test_models_that_differ_are_refused_with_what_differs(checkpoints, tmp_path):
    save(picture_text(seed=5), tmp_path / "other")
    with pytest.raises(NotOneSpace, match="share no space: tower and projection of their texts differ") as error:
        open_space([str(tmp_path / "other"), checkpoints[1]], "cpu")
    assert str(tmp_path / "other") in str(error.value)
    assert checkpoints[1] in str(error.value)
    assert "trained_tower" in str(error.value)


def test_another_tokenizer_alone_is_refused(checkpoints):
    clip, clap = map(load, checkpoints)
    clap.processors["text"] = ClipTokenizer(12, ("<a>", "<b>"))
    with pytest.raises(NotOneSpace, match="clip and clap share no space: tokenizer of"):
        Space({"clip": clip, "clap": clap}, "cpu")


def test_a_space_encodes_each_modality_by_its_model(space, checkpoints):
    assert space.modalities == ("image", "audio", "text")
    assert [space.names[name] for name in ("image", "audio")] == checkpoints
    vectors = space.encode("text", TEXTS)
    assert vectors.shape == (3, WIDTH)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    with pytest.raises(ValueError, match="No model here encodes 'video'"):
        space.encode("video", [None])


def test_two_models_of_one_modality_are_refused(checkpoints, tmp_path):
    shutil.copytree(checkpoints[0], tmp_path / "copy")
    with pytest.raises(ValueError, match="both encode 'image'"):
        open_space([checkpoints[0], tmp_path / "copy"], "cpu")


def test_what_has_no_text_space_is_refused(checkpoints, tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        open_space([])
    load(checkpoints[0]).encoders["text"].save_pretrained(tmp_path / "tower")
    with pytest.raises(ValueError, match="OpenClipTextEncoder alone"):
        open_space([tmp_path / "tower"])
    with pytest.raises(CheckpointError, match="alone, which has no joint space"):
        trained_tower(str(tmp_path / "tower"))


def test_a_method_that_ranks_by_something_else_is_refused():
    class Late(type(picture_text())):
        def similarity(self, query, key):
            return super().similarity(query, key) / 2

    late = picture_text()
    late.__class__ = Late
    with pytest.raises(NotOneSpace, match="does not rank by the cosine"):
        Space({"late": late}, "cpu")


def test_a_method_that_pools_anew_is_refused():
    class Pooled(type(picture_text())):
        def forward(self, modality, inputs, mask=None):
            found = Method.forward(self, modality, inputs, mask)
            return found.replace(pooled=found.pooled.flip(-1))

    pooled = picture_text()
    pooled.__class__ = Pooled
    with pytest.raises(NotOneSpace, match="pooled: Pooled does not rank by the projected vectors of its text tower"):
        Space({"pooled": pooled}, "cpu")


@pytest.mark.parametrize("recipe", ["medical/merl_demo", "medical/convirt_demo", "video/alpro_demo", "audio/clap_demo"])
def test_methods_of_other_modalities_can_be_the_first(recipe):
    path = Path(__file__).resolve().parents[3] / "configs" / f"{recipe}.yaml"
    method = build(yaml.safe_load(path.read_text())["model"])
    first = text_space(method)
    with torch.no_grad():
        next(method.projections["text"].parameters()).view(-1)[0] += 1
    assert text_space(method).projection != first.projection
    assert text_space(method).tower == first.tower


@pytest.mark.parametrize(("recipe", "modality"), [("merl_demo", "ecg"), ("convirt_demo", "xray")])
def test_methods_of_other_modalities_can_be_the_next(checkpoints, recipe, modality):
    path = Path(__file__).resolve().parents[3] / f"configs/medical/{recipe}.yaml"
    other = build(yaml.safe_load(path.read_text())["model"])
    method = type(other)(
        other.encoders[modality],
        trained_tower(checkpoints[0]),
        other.processors[modality],
        trained_processor(checkpoints[0]),
        embed_dim=WIDTH,
        text_projection=NoProjection(WIDTH),
    )
    joined = Space({"pictures": load(checkpoints[0]), recipe: method}, "cpu")
    example = method.processors[modality].example()
    assert joined.methods[modality].encode(modality, [example]).pooled.shape == (1, WIDTH)


def test_parts_are_taken_from_folders_only(checkpoints, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="whose weights are safetensors"):
        trained_tower(str(tmp_path / "last.ckpt"))
    with pytest.raises(ValueError, match="has no processor of 'ecg'"):
        trained_processor(checkpoints[0], "ecg")
    with pytest.raises(ValueError, match="no tower of 'ecg'"):
        trained_tower(checkpoints[0], "ecg")


def test_a_model_with_taken_parts_comes_back_without_their_source(tmp_path):
    save(picture_text(), tmp_path / "clip")
    clap = sound_text(tmp_path / "clip")
    save(clap, tmp_path / "clap")
    shutil.rmtree(tmp_path / "clip")
    torch.testing.assert_close(load(tmp_path / "clap").encode("text", TEXTS).pooled, clap.encode("text", TEXTS).pooled)


def test_projected_is_its_tower_after_its_projection():
    tower, projection = OpenClipTextEncoder(context_length=12, width=16, heads=2, layers=1), LinearProjection(16, 5)
    projected, ids = Projected(tower, projection), ClipTokenizer(12).batch(TEXTS)
    assert projected.width == 5
    torch.testing.assert_close(projected(ids).pooled, projection(tower(ids).pooled))
    assert max(projected.depths().values()) == max(tower.depths().values())
