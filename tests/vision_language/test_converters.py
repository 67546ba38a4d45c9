"""CLIP and SigLIP from and to open_clip and transformers: equal features on random weights, both ways."""

import pytest
import torch
from torch.nn.functional import normalize

from collimate.checkpoints import CheckpointError
from collimate.checkpoints.open_clip import to_open_clip
from collimate.checkpoints.transformers import processors_to_transformers, read_transformers, to_transformers
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate_vision_language import CLIP, SigLIP

open_clip = pytest.importorskip("open_clip")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

VIT = {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32}
TEXT = {"width": 48, "heads": 2, "layers": 2, "vocab_size": 120, "context_length": 10}
OPEN_CLIP = {
    "vit": {"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "vit, average, no first norm": {
        "vision_cfg": VIT | {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        "text_cfg": TEXT,
    },
    "resnet": {"vision_cfg": {"layers": [1, 1, 2, 1], "width": 8, "image_size": 64}, "text_cfg": TEXT},
    "timm, linear": {"vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": ""}, "text_cfg": TEXT},
    "timm, its classifier": {
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "", "image_size": 160},
        "text_cfg": TEXT,
    },
    "SigLIP": {
        "vision_cfg": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
        "text_cfg": TEXT
        | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
        | {"act_kwargs": {"approximate": "tanh"}},
        "init_logit_bias": -10,
        "custom_text": True,
    },
}


def theirs_and_inputs(config):
    torch.manual_seed(0)
    config = dict(config)
    family = open_clip.model.CustomTextCLIP if config.pop("custom_text", False) else open_clip.model.CLIP
    dim = 96 if "init_logit_bias" in config else 24  # test_vit3 has no projection and a width of 96
    model = family(embed_dim=dim, **config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    size = config["vision_cfg"].get("image_size", 160)
    ids = torch.randint(1, 119, (3, 10))
    ids[:, -1] = 119
    return model, {"embed_dim": dim, **config}, torch.rand(3, 3, size, size), ids


def assert_same(model, method, images, ids):
    with torch.no_grad():
        image, text = model.encode_image(images), model.encode_text(ids)
        torch.testing.assert_close(method.encode("image", images).pooled, image, **TOLERANCE)
        torch.testing.assert_close(method.encode("text", ids).pooled, text, **TOLERANCE)
        logits = model.logit_scale.exp() * normalize(image, dim=-1) @ normalize(text, dim=-1).T
        similarity = method.similarity(method.encode("image", images), method.encode("text", ids))
        torch.testing.assert_close(method.logit_scale.exp() * similarity, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip_both_ways(name):
    model, config, images, ids = theirs_and_inputs(OPEN_CLIP[name])
    method_class = SigLIP if "init_logit_bias" in config else CLIP
    from_config = method_class.from_open_clip(config, model.state_dict(), tokenizer=ClipTokenizer(10))
    assert_same(model, from_config, images, ids)
    assert_same(model, method_class.from_open_clip(model, tokenizer=ClipTokenizer(10)), images, ids)
    back_config, weights = to_open_clip(from_config)
    assert weights.keys() == model.state_dict().keys()
    family = open_clip.model.CustomTextCLIP if back_config.pop("custom_text", False) else open_clip.model.CLIP
    again = family(**back_config).eval()
    again.load_state_dict(weights)
    assert_same(again, from_config, images, ids)


def test_a_model_by_name_has_its_own_sizes_preprocessing_and_activation():
    quick = CLIP.from_open_clip("ViT-S-32-alt")
    assert quick.encoders["image"].width == 384
    assert not quick.encoders["text"].sizes["quick_gelu"]
    assert isinstance(quick.processors["text"], ClipTokenizer)
    assert (
        CLIP.from_open_clip(open_clip.get_model_config("ViT-S-32-alt") | {"quick_gelu": True})
        .encoders["image"]
        .sizes["quick_gelu"]
    )


def test_weights_that_do_not_fit_are_named():
    model, config, *_ = theirs_and_inputs(OPEN_CLIP["vit"])
    weights = model.state_dict()
    with pytest.raises(CheckpointError, match="without a place in the model: surprise"):
        CLIP.from_open_clip(config, weights | {"surprise": torch.zeros(1)})
    del weights["visual.ln_post.bias"]
    with pytest.raises(CheckpointError, match=r"do not fit.*"):
        CLIP.from_open_clip(config, weights)
    with pytest.raises(CheckpointError, match=r"OpenAI's layout: 'visual\.conv1\.weight' is missing"):
        CLIP.from_openai({"nothing": torch.zeros(1)})


def test_weights_from_a_file(tmp_path):
    model, _, images, ids = theirs_and_inputs(OPEN_CLIP["vit"])
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "weights.pt")
    assert_same(model, CLIP.from_openai(tmp_path / "weights.pt", text_heads=2), images, ids)


def hugging_face(kind, activation):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 100}
    vision = sizes | {"hidden_act": activation, "image_size": 32, "patch_size": 8}
    words = {"vocab_size": 120, "max_position_embeddings": 10, "eos_token_id": 119, "bos_token_id": 118}
    text = sizes | {"hidden_act": activation, **words}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        model = transformers.CLIPModel(config)
    else:
        config = transformers.SiglipConfig(text_config=text | {"projection_size": 48}, vision_config=vision)
        model = transformers.SiglipModel(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("clip", "quick_gelu"),
        ("clip", "gelu"),
        ("clip", "gelu_pytorch_tanh"),
        ("siglip", "gelu"),
        ("siglip", "gelu_pytorch_tanh"),
    ],
)
def test_transformers_both_ways(kind, activation):
    model = hugging_face(kind, activation)
    images, ids = torch.rand(3, 3, 32, 32), torch.randint(0, 118, (3, 10))
    ids[:, -1] = 119
    parts = read_transformers(model, ImageProcessor(32), ClipTokenizer(10))
    method = parts.build(CLIP if kind == "clip" else SigLIP)
    with torch.no_grad():
        for one in (model, to_transformers(method)):
            image = one.get_image_features(images).pooler_output
            text = one.get_text_features(ids).pooler_output
            torch.testing.assert_close(method.encode("image", images).pooled, image, **TOLERANCE)
            torch.testing.assert_close(method.encode("text", ids).pooled, text, **TOLERANCE)
            logits = one(input_ids=ids, pixel_values=images).logits_per_image
            ours = method.similarity(method.encode("image", images), method.encode("text", ids))
            ours = method.logit_scale.exp() * ours + getattr(method, "logit_bias", 0.0)
            torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


def test_a_transformers_folder_brings_its_processors(make_clip, tmp_path):
    pytest.importorskip("transformers")
    method = make_clip()
    to_transformers(method).save_pretrained(tmp_path)
    processors_to_transformers(method, tmp_path)
    again = read_transformers(tmp_path).build(CLIP)
    assert (again.processors["image"].size, again.processors["image"].resize) == (32, "shortest")
    texts = ["A photo of a dog's tail & café.", "", "two  cats"]
    for ours, theirs in zip(method.processors["text"].batch(texts), again.processors["text"].batch(texts), strict=True):
        end = int((ours == 49407).int().argmax())
        assert torch.equal(ours[: end + 1], theirs[: end + 1])  # the padding differs, and is not seen
    torch.testing.assert_close(again.encode("text", texts).pooled, method.encode("text", texts).pooled, **TOLERANCE)


def test_what_transformers_cannot_prepare_is_not_written(make_clip, tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="brings the longer side to size and pads"):
        processors_to_transformers(make_clip(image_processor=ImageProcessor(32, resize="longest")), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_transformers_model_alone_needs_processors():
    with pytest.raises(CheckpointError, match="pass image_processor and tokenizer"):
        read_transformers(hugging_face("clip", "gelu"))


def test_a_tokenizer_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = OPEN_CLIP["SigLIP"]
    text = config["text_cfg"] | {"hf_tokenizer_name": "nobody/has-this-tokenizer"}
    with pytest.raises(CheckpointError, match=r"nobody/has-this-tokenizer.*tokenizer=HuggingFaceTokenizer"):
        SigLIP.from_open_clip({"embed_dim": 96, **config, "text_cfg": text})
