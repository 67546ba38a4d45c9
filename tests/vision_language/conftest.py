"""Small image-text methods with random weights."""

import pytest
import torch

from collimate.encoders import (
    LinearProjection,
    NoProjection,
    OpenClipImageEncoder,
    OpenClipResNetEncoder,
    OpenClipTextEncoder,
    TimmImageEncoder,
)
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate_vision_language import CLIP, SigLIP

SIZE = 32


def text(**given):
    return OpenClipTextEncoder(**{"width": 64, "heads": 2, "layers": 2, "vocab_size": 49408, **given})


def clip(quick_gelu=False, **given):
    torch.manual_seed(0)
    image = OpenClipImageEncoder(width=64, layers=2, image_size=SIZE, patch_size=8, quick_gelu=quick_gelu)
    parts = {"image_encoder": image, "text_encoder": text(quick_gelu=quick_gelu)}
    return CLIP(**{**parts, "image_processor": ImageProcessor(SIZE), "tokenizer": ClipTokenizer(), **given}).eval()


def resnet_clip():
    image = OpenClipResNetEncoder(width=8, layers=(1, 1, 1, 1), image_size=SIZE)
    return clip(image_encoder=image, image_projection=LinearProjection(image.width, 512, bias=True))


def convnext_clip():
    return clip(image_encoder=TimmImageEncoder("test_convnext"))


def siglip(**given):
    torch.manual_seed(0)
    image = TimmImageEncoder(
        "vit_base_patch16_siglip_224", SIZE, model_args={"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    )
    parts = {
        "image_encoder": image,
        "text_encoder": text(
            no_causal_mask=True, pool_type="last", context_length=16, options={"norm_kwargs": {"eps": 1e-6}}
        ),
        "image_processor": ImageProcessor(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize="squash"),
        "tokenizer": ClipTokenizer(16),
        "embed_dim": 64,
        "image_projection": NoProjection(64),
        "text_projection": LinearProjection(64, 64, bias=True),
    }
    return SigLIP(**{**parts, **given}).eval()


METHODS = {"CLIP": clip, "CLIP ResNet": resnet_clip, "CLIP ConvNeXt": convnext_clip, "SigLIP": siglip}


@pytest.fixture
def tiny_clip():
    return clip()


@pytest.fixture
def make_clip():
    return clip


@pytest.fixture
def make_siglip():
    return siglip


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    texts = ["a dog", "two cats", "a red ball", "rain", "the sea at night", ""]
    return {"image": images, "text": ClipTokenizer(16).batch(texts), "position": torch.arange(6)}
