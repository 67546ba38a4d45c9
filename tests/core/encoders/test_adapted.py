"""LoRA and Frozen around encoders: what learns, what is merged, what comes back from a folder."""

import pytest
import torch

from collimate.checkpoints.plain import plain_model
from collimate.encoders import (
    Frozen,
    HuggingFaceTextEncoder,
    LoRA,
    OpenClipImageEncoder,
    OpenClipTextEncoder,
    TimmImageEncoder,
)

BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 100}
TOWERS = {
    "open_clip image": lambda: OpenClipImageEncoder(width=64, layers=2, image_size=32, patch_size=8),
    "open_clip text": lambda: OpenClipTextEncoder(width=32, heads=2, layers=2, vocab_size=100, context_length=8),
    "timm ViT": lambda: TimmImageEncoder("vit_tiny_patch16_224", 32, model_args={"patch_size": 8, "depth": 2}),
    "timm ConvNeXt": lambda: TimmImageEncoder("test_convnext"),
    "Hugging Face": lambda: HuggingFaceTextEncoder(BERT),
}


@pytest.fixture(params=TOWERS)
def tower(request):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    return TOWERS[request.param]().eval()


def disturb(adapted):
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def test_starts_as_the_encoder_and_trains_the_updates_only(tower):
    inputs = tower.example()
    before = tower(inputs).pooled.detach()
    adapted = LoRA(tower, rank=4)
    torch.testing.assert_close(adapted.eval()(inputs).pooled, before)
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert not any("patch_embed" in name or "conv1" in name for name in trainable)
    disturb(adapted)
    adapted(inputs).pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in adapted.parameters() if parameter.requires_grad)


def test_merging_gives_the_same_function_in_a_plain_encoder(tower):
    inputs = tower.example()
    adapted = LoRA(tower, rank=4, alpha=8.0).eval()
    untouched = adapted(inputs).pooled.detach()
    disturb(adapted)
    expected = adapted(inputs).pooled.detach()
    merged = adapted.merged()
    assert type(merged) is type(tower)
    assert not torch.equal(expected, untouched)
    torch.testing.assert_close(merged(inputs).pooled, expected, rtol=1e-4, atol=1e-5)


def test_comes_back_from_a_folder(tower, tmp_path):
    adapted = LoRA(tower, rank=2).eval()
    disturb(adapted)
    adapted.save_pretrained(tmp_path / "model")
    again = LoRA.from_pretrained(tmp_path / "model")
    assert torch.equal(again(tower.example()).pooled, adapted(tower.example()).pooled)


def test_updates_of_an_attention_are_those_of_the_paper():
    """W + (alpha / rank) B A on every matrix of an attention, against nn.MultiheadAttention itself."""
    pytest.importorskip("peft")
    torch.manual_seed(0)
    make = TOWERS["open_clip text"]
    plain = make().eval()
    adapted = LoRA(make(), rank=2, alpha=6.0, targets=r".*attn\.(in|out)_proj").eval()
    disturb(adapted)
    weights = {name: value.clone() for name, value in adapted.encoder.state_dict().items() if "lora_" not in name}
    weights = {
        name.replace("base_layer.", "").replace("in_proj.", "in_proj_"): value for name, value in weights.items()
    }
    for layer in range(2):
        for matrix, name in (("in_proj", "in_proj_weight"), ("out_proj", "out_proj.weight")):
            attention = adapted.encoder.tower.transformer.resblocks[layer].attn
            low_rank = getattr(attention, matrix)
            update = 6 / 2 * low_rank.lora_B["default"].weight @ low_rank.lora_A["default"].weight
            weights[f"tower.transformer.resblocks.{layer}.attn.{name}"] += update
    plain.load_state_dict(weights)
    torch.testing.assert_close(adapted(plain.example()).pooled, plain(plain.example()).pooled)


def test_no_layer_is_an_error_that_lists_the_layers():
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=r"fits 'nothing'.*mlp\.c_fc"):
        LoRA(TOWERS["open_clip text"](), targets="nothing")


def test_frozen_neither_learns_nor_drops():
    tower = TimmImageEncoder("test_resnet", model_args={"drop_rate": 0.5})
    frozen = Frozen(tower).train()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not any(module.training for module in tower.modules())
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    assert frozen(tower.example()).pooled.grad_fn is None
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    assert plain_model(frozen) is tower
