"""The mean over frames: what an image-text model says of each frame, and how it stands beside others in reports."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import collimate
from collimate.checkpoints import save
from collimate.evaluation import AfterTraining
from collimate_video import MeanOfFrames
from collimate_video_app.commands import mean_of_frames

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
WORLD = "world-clip:test?frames=4&size=32&length=12"


@pytest.fixture(scope="module")
def model() -> MeanOfFrames:
    torch.manual_seed(0)
    return MeanOfFrames.from_open_clip(TINY, frames=4)


def test_it_is_the_mean_of_the_unit_vectors_of_frames(model):
    clips = torch.randn(3, 4, 3, 32, 32)
    frames = [model.projections["image"](model.encoders["image"](clips[:, time]).pooled) for time in range(4)]
    expected = torch.stack([normalize(each, dim=-1) for each in frames]).mean(0)
    torch.testing.assert_close(model.encode("video", clips).pooled, expected)


def test_a_still_video_ranks_as_its_picture_does(model):
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    still, texts = np.repeat(picture[None], 9, axis=0), ["a cat", "a dog on grass", "rain"]
    image = model.encoders["image"](model.processors["video"].images.finish(model.processors["video"](still)[:1]))
    pooled = model.projections["image"](image.pooled)
    words = model.encode("text", texts)
    expected = normalize(pooled, dim=-1) @ normalize(words.pooled, dim=-1).T
    torch.testing.assert_close(model.similarity(model.encode("video", [still]), words), expected)


def test_it_trains_as_clip_does(model):
    batch = {"video": torch.randint(0, 256, (4, 4, 3, 32, 32), dtype=torch.uint8)}
    batch["text"] = model.processors["text"].batch(["one", "two", "three", "four"])
    loss = model.loss_terms(batch)["clip"]
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_model_of_pictures_becomes_one_of_videos(tmp_path):
    import open_clip
    from safetensors.torch import save_file

    vision_language = pytest.importorskip("collimate_vision_language")
    torch.manual_seed(1)
    clip = vision_language.CLIP.from_open_clip(TINY)
    save(clip, tmp_path / "clip")
    mean_of_frames(str(tmp_path / "clip"), str(tmp_path / "frames"), frames=2)
    made = collimate.load(tmp_path / "frames")
    assert isinstance(made, MeanOfFrames)
    assert made.processors["video"].frames == 2
    texts = ["a cat", "a dog"]
    torch.testing.assert_close(made.encode("text", texts).pooled, clip.encode("text", texts).pooled)
    with pytest.raises(ValueError, match="--weights"):
        mean_of_frames("ViT-B-32", str(tmp_path / "named"))
    with pytest.raises(ValueError, match="belongs to a name"):
        mean_of_frames(str(tmp_path / "clip"), str(tmp_path / "named"), weights="openai")
    config = open_clip.get_model_config("ViT-S-32")
    weights = open_clip.create_model("ViT-S-32").state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "named.safetensors")
    mean_of_frames("ViT-S-32", str(tmp_path / "named"), str(tmp_path / "named.safetensors"))
    found = collimate.load(tmp_path / "named")
    assert found.encode("text", texts).pooled.shape == (2, config["embed_dim"])


def test_an_encoder_alone_is_refused():
    with pytest.raises(ValueError, match="image and a text tower"):
        MeanOfFrames.from_image_text(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_it_stands_beside_another_model_in_its_report(model, tmp_path):
    save(model, tmp_path / "frames")
    torch.manual_seed(2)
    save(MeanOfFrames.from_open_clip(TINY, frames=4), tmp_path / "other")
    evaluation = AfterTraining(
        zero_shot={"motions": {"data": WORLD, "templates": ["something {}"], "resamples": 2}},
        retrieval={"scenes": {"data": WORLD, "resamples": 2}},
        beside={"mean of frames": str(tmp_path / "frames")},
    )
    evaluation.run(tmp_path / "other", tmp_path / "run")
    evaluation.beside = {}
    alone = evaluation.run(tmp_path / "frames", tmp_path / "alone")
    report = json.loads((tmp_path / "run/report.json").read_text())
    for name in ("Zero-shot classification: motions", "Retrieval: scenes"):
        beside = report[f"{name}, beside other models"]["mean of frames"]["metrics"]
        mine = alone[name.split(": ")[1]].metrics
        assert beside == pytest.approx({key: value for key, value in mine.items() if value == value}, nan_ok=True)
    assert "beside other models" in (tmp_path / "run/report.html").read_text()
