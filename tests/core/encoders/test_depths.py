"""How deep parameters lie, of every kind of encoder; timm's own models as timm itself says."""

from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from collimate.encoders import (
    Bert,
    Encoder,
    Frozen,
    LoRA,
    OpenClipImageEncoder,
    OpenClipResNetEncoder,
    OpenClipTextEncoder,
    TimmImageEncoder,
)
from collimate.encoders.depths import blocks

VIT = {"embed_dim": 16, "depth": 3, "num_heads": 2}


def vit(**changes: Any) -> TimmImageEncoder:
    return TimmImageEncoder("vit_tiny_patch16_224", image_size=32, model_args={**VIT, **changes})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {**VIT, "img_size": 32}),
        ("vit_tiny_patch16_224", {**VIT, "img_size": 32, "global_pool": "avg"}),  # whose last norm is the head's
        ("convnext_atto", {"depths": (1, 2, 1, 1), "dims": (4, 8, 8, 8)}),
        ("resnet10t", {"channels": [8, 8, 8, 8], "stem_width": 8}),
    ],
)
def test_timm_models_learn_as_timm_lets_them(name: str, arguments: dict[str, Any]):
    whole: Any = timm.create_model(name, num_classes=3, **arguments)
    expected = {
        parameter: group["lr_scale"]
        for group in param_groups_layer_decay(whole, layer_decay=0.5, min_scale=0.0)
        for parameter in group["params"]
    }
    names = {parameter: key for key, parameter in whole.named_parameters()}
    encoder = TimmImageEncoder(name, model_args=arguments)
    depths = encoder.depths()
    assert depths.keys() == dict(encoder.named_parameters()).keys()
    for parameter, scale in expected.items():
        if (key := f"model.{names[parameter]}") in depths:
            assert 0.5 ** depths[key] == pytest.approx(scale), key


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (
            lambda: OpenClipImageEncoder(image_size=16, patch_size=8, width=16, layers=2, head_width=8),
            {
                "tower.class_embedding": 3,
                "tower.conv1.weight": 3,
                "tower.ln_pre.bias": 3,
                "tower.transformer.resblocks.0.attn.in_proj_weight": 2,
                "tower.transformer.resblocks.1.mlp.c_fc.weight": 1,
                "tower.ln_post.weight": 1,
            },
        ),
        (
            lambda: OpenClipTextEncoder(context_length=8, width=16, layers=3, heads=2),
            {
                "tower.token_embedding.weight": 4,
                "tower.positional_embedding": 4,
                "tower.transformer.resblocks.0.ln_1.weight": 3,
                "tower.transformer.resblocks.2.ln_1.weight": 1,
                "tower.ln_final.weight": 1,
            },
        ),
        (
            lambda: OpenClipResNetEncoder(image_size=32, layers=[2, 2, 2, 2], width=8),
            {"tower.conv1.weight": 9, "tower.layer1.0.conv1.weight": 8, "tower.layer4.1.conv1.weight": 1},
        ),
        (
            lambda: Bert(width=16, layers=2, heads=2, hidden=16, vocab_size=32, context_length=8),
            {
                "embeddings.word_embeddings.weight": 3,
                "encoder.layer.0.output.dense.weight": 2,
                "encoder.layer.1.output.dense.weight": 1,
            },
        ),
    ],
    ids=["open_clip's pictures", "open_clip's texts", "open_clip's ResNet", "BERT"],
)
def test_blocks_tell_the_depth_of_other_encoders(encoder: Any, expected: dict[str, int]):
    built = encoder()
    depths = built.depths()
    assert depths.keys() == dict(built.named_parameters()).keys()
    assert {name: depths[name] for name in expected} == expected


def test_wrapped_encoders_lie_where_they_lay():
    plain = vit().depths()
    assert {name.removeprefix("encoder."): depth for name, depth in Frozen(vit()).depths().items()} == plain
    updates = {name: depth for name, depth in LoRA(vit(), rank=2).depths().items() if "lora_" in name}
    assert updates
    for name, depth in updates.items():
        layer = name.removeprefix("encoder.").partition(".lora_")[0]
        assert depth == plain[f"{layer}.weight"]


def test_what_has_no_blocks_is_one_layer():
    class Flat(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    assert set(Flat().depths().values()) == {1}
    assert blocks(Flat()) == {}


def test_blocks_within_blocks_belong_to_the_outer_ones():
    class Nested(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Parameter(torch.zeros(1))
            pairs = (nn.Sequential(*(nn.Sequential(nn.Linear(1, 1)) for _ in range(2))) for _ in range(2))
            self.stages = nn.ModuleList(nn.ModuleList([pair]) for pair in pairs)

    depths = Nested().depths()
    assert depths["stem"] == 3
    assert {depths[name] for name in depths if name.startswith("stages.0.")} == {2}
    assert {depths[name] for name in depths if name.startswith("stages.1.")} == {1}
