"""Image towers: sizes by name and by number, patch dropout, other image sizes, checkpointing."""

import pytest
import torch

from collimate.encoders import OpenClipImageEncoder, OpenClipResNetEncoder, OpenClipTextEncoder, TimmImageEncoder

SMALL = {"patch_size": 8, "depth": 1}


def small(**changes):
    torch.manual_seed(0)
    return OpenClipImageEncoder(**{"width": 64, "layers": 2, "image_size": 32, "patch_size": 8, **changes})


def test_a_named_model_gives_sizes_and_each_can_be_overridden():
    encoder = OpenClipImageEncoder("ViT-S-32", layers=1)
    assert (encoder.width, encoder.sizes["layers"], encoder.sizes["patch_size"]) == (384, 1, 32)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match=r"no model 'ViT-B32'.*ViT-B-32"):
        OpenClipImageEncoder("ViT-B32")


@pytest.mark.parametrize(("encoder", "model"), [(OpenClipImageEncoder, "RN50"), (OpenClipResNetEncoder, "ViT-B-32")])
def test_the_wrong_kind_of_tower_is_refused(encoder, model):
    with pytest.raises(ValueError, match=model):
        encoder(model)


def test_towers_that_are_not_open_clips_own_are_refused():
    with pytest.raises(ValueError, match="TimmImageEncoder"):
        OpenClipImageEncoder("ViT-B-16-SigLIP")
    with pytest.raises(ValueError, match="HuggingFaceTextEncoder"):
        OpenClipTextEncoder("roberta-ViT-B-32")


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: small(patch_dropout=rate),
        lambda rate: TimmImageEncoder("vit_tiny_patch16_224", 32, patch_drop_rate=rate, model_args=SMALL),
    ],
)
def test_patch_dropout_drops_in_training_only(make):
    encoder = make(0.5)
    image = encoder.example()
    training, evaluation = encoder.train()(image), encoder.eval()(image)
    assert (training.tokens.shape[1], training.grid) == (8, None)
    assert (evaluation.tokens.shape[1], evaluation.grid) == (16, (4, 4))


def test_positions_follow_the_image_size():
    encoder = small().eval()
    wide = encoder(torch.rand(1, 3, 32, 64))
    assert wide.grid == (4, 8)
    # At the tower's own size the positions are untouched.
    assert encoder._positions((4, 4)) is encoder.tower.positional_embedding
    # A constant field of positions stays constant at any size.
    with torch.no_grad():
        encoder.tower.positional_embedding[1:] = 0.5
    torch.testing.assert_close(encoder._positions((7, 5))[1:], torch.full((35, 64), 0.5))


@pytest.mark.parametrize(
    "make",
    [
        lambda **given: small(**given),
        lambda **given: TimmImageEncoder("vit_tiny_patch16_224", 32, model_args=SMALL, **given),
        lambda **given: OpenClipTextEncoder(width=32, heads=2, layers=2, vocab_size=90, **given),
    ],
)
def test_gradient_checkpointing_changes_no_gradient(make):
    plain, checkpointed = make(), make(grad_checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    for encoder in (plain, checkpointed):
        encoder.train()(encoder.example()).pooled.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_initial_weights_from_a_local_file(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    whole = open_clip.create_model("ViT-S-32-alt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in whole.state_dict().items()}}, tmp_path / "w")
    image = OpenClipImageEncoder("ViT-S-32-alt", pretrained=str(tmp_path / "w"))
    text = OpenClipTextEncoder("ViT-S-32-alt", pretrained=str(tmp_path / "w"))
    assert torch.equal(image.tower.conv1.weight, whole.visual.conv1.weight)
    assert torch.equal(text.tower.ln_final.weight, whole.ln_final.weight)
    assert "pretrained" not in image.config()["init_args"]
