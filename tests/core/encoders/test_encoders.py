"""What every encoder keeps: the shapes of its Encoding, a configuration that rebuilds it, saving and loading."""

import json

import pytest
import torch

import collimate
from collimate.configurable import build
from collimate.encoders import (
    Bert,
    Encoder,
    HuggingFaceTextEncoder,
    OpenClipImageEncoder,
    OpenClipResNetEncoder,
    OpenClipTextEncoder,
    TimmImageEncoder,
)
from collimate.processing import ClipTokenizer, ImageProcessor

BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
}

ENCODERS = {
    "timm ViT": lambda: TimmImageEncoder(
        "vit_tiny_patch16_224", image_size=32, model_args={"patch_size": 8, "depth": 2, "embed_dim": 48}
    ),
    "timm ViT, attention pooling": lambda: TimmImageEncoder("test_vit3", image_size=48),
    "timm ResNet": lambda: TimmImageEncoder("test_resnet"),
    "timm ConvNeXt": lambda: TimmImageEncoder("test_convnext"),
    "timm, channels last": lambda: TimmImageEncoder(
        "swin_tiny_patch4_window7_224",
        image_size=32,
        model_args={"window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]},
    ),
    "timm, wide head": lambda: TimmImageEncoder("mobilenetv3_small_050"),
    "open_clip ViT": lambda: OpenClipImageEncoder(width=64, layers=2, image_size=32, patch_size=8),
    "open_clip ViT, average": lambda: OpenClipImageEncoder(
        width=64, layers=1, image_size=32, patch_size=8, options={"pool_type": "avg", "final_ln_after_pool": True}
    ),
    "open_clip ResNet": lambda: OpenClipResNetEncoder(width=8, layers=(1, 1, 1, 1), image_size=64),
    "open_clip text": lambda: OpenClipTextEncoder(width=32, heads=2, layers=2, vocab_size=100, context_length=12),
    "open_clip text, last": lambda: OpenClipTextEncoder(
        width=32, heads=2, layers=1, vocab_size=99, context_length=9, pool_type="last", no_causal_mask=True
    ),
    "open_clip text, end": lambda: OpenClipTextEncoder(
        width=32, heads=2, layers=1, vocab_size=99, context_length=9, pool_type="eos", eos_id=7
    ),
    "BERT": lambda: Bert(vocab_size=100, context_length=12, width=32, layers=2, heads=2, hidden=64),
    "Hugging Face": lambda: HuggingFaceTextEncoder(BERT),
}


@pytest.fixture(params=ENCODERS)
def encoder(request):
    torch.manual_seed(0)
    return ENCODERS[request.param]().eval()


def test_shapes(encoder):
    inputs = encoder.example()
    encoding = encoder(inputs)
    assert encoding.pooled.shape == (len(inputs), encoder.width)
    if encoding.tokens is not None:
        assert encoding.tokens.shape[0::2] == (len(inputs), encoder.width)
        assert inputs.ndim == 2 or encoding.grid is not None


def test_configuration_is_plain_and_rebuilds(encoder, tmp_path):
    config = json.loads(json.dumps(encoder.config()))
    again = build(config)
    assert again.config() == encoder.config()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(encoder.example()).pooled, encoder(encoder.example()).pooled)


def test_save_and_load(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "model")
    again = type(encoder).from_pretrained(tmp_path / "model")
    assert not again.training
    assert torch.equal(again(encoder.example()).pooled, encoder(encoder.example()).pooled)


def test_every_parameter_gets_a_gradient(encoder):
    encoding = encoder.train()(encoder.example())
    loss = encoding.pooled.square().sum()
    if encoding.tokens is not None:
        loss = loss + encoding.tokens.sin().sum()
    loss.backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    # Under average pooling a vision transformer's class token still takes part in attention.
    assert without == []


def test_features_for_dense_tasks(encoder):
    if not hasattr(encoder, "features"):
        pytest.skip("not an image encoder")
    maps = encoder.features(encoder.example())
    assert len(maps) >= 1
    assert all(feature_map.ndim == 4 for feature_map in maps)


def test_processor_travels_with_the_encoder(tmp_path):
    image = OpenClipImageEncoder(width=64, layers=1, image_size=32, patch_size=8)
    image.save_pretrained(tmp_path / "image", ImageProcessor(32, resize="squash"))
    again = collimate.load(tmp_path / "image")
    picture = again.processor.example()
    assert again.processor.resize == "squash"
    assert torch.equal(again.encode([picture]).pooled, image.eval().encode([picture]).pooled)

    text = OpenClipTextEncoder(width=32, heads=2, layers=1)
    text.processor = ClipTokenizer()
    text.save_pretrained(tmp_path / "text")
    assert torch.equal(collimate.load(tmp_path / "text").encode(["hi"]).pooled, text.eval().encode(["hi"]).pooled)


def test_raw_samples_need_a_processor():
    with pytest.raises(ValueError, match="has no processor"):
        OpenClipTextEncoder(width=32, heads=2, layers=1).encode(["hi"])


def test_from_pretrained_names_a_wrong_kind(tmp_path):
    OpenClipTextEncoder(width=32, heads=2, layers=1, vocab_size=50).save_pretrained(tmp_path / "text")
    assert isinstance(Encoder.from_pretrained(tmp_path / "text"), OpenClipTextEncoder)
    with pytest.raises(TypeError, match="holds a OpenClipTextEncoder, not a TimmImageEncoder"):
        TimmImageEncoder.from_pretrained(tmp_path / "text")
