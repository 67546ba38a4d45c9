"""SupCon, AMCL, CWCL, CLIP-ReIdent and CLIP-rocket as methods: losses, chunks, ranks, folders, data, bad input."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn.functional import normalize

import collimate
from collimate.checkpoints import save
from collimate.data import DataModule, ImageAugmentation, PerLabel, TextAugmentation
from collimate.encoders import (
    BatchNormProjection,
    Frozen,
    MLPProjection,
    NoProjection,
    OpenClipImageEncoder,
    OpenClipTextEncoder,
    TimmImageEncoder,
)
from collimate.losses import amcl_nt_xent_loss, cwcl_loss
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.testing import assert_cached_equals_full, assert_same_on_ranks, oracles
from collimate_vision_language import AMCL, BYOLIP, CWCL, BarLIP, CLIPReIdent, CLIPRocket, SiamLIP, SupCon, SwALIP
from collimate_vision_language.clip_rocket.losses import local_to_local_losses, swapped_view_loss

SIZE, WIDTH = 32, 32


def image_tower():
    return OpenClipImageEncoder(width=WIDTH, layers=1, image_size=SIZE, patch_size=16, head_width=16)


def text_tower():
    return OpenClipTextEncoder(width=WIDTH, heads=2, layers=1, context_length=16)


def supcon(**given):
    return SupCon(image_tower(), ImageProcessor(SIZE), head=MLPProjection(WIDTH, 16), **given)


def amcl():
    return AMCL(image_tower(), ImageProcessor(SIZE), heads=2, dim=8)


def reident():
    return CLIPReIdent(image_tower(), ImageProcessor(SIZE), init_logit_scale=10.0)


def two_towers(kind, frozen=None, **given):
    towers = {"image": image_tower(), "text": text_tower()}
    if frozen:
        towers[frozen] = Frozen(towers[frozen])
        given |= {"frozen": frozen, f"{frozen}_projection": NoProjection(WIDTH)}
    parts = {f"{name}_encoder": tower for name, tower in towers.items()}
    return kind(**parts, image_processor=ImageProcessor(SIZE), tokenizer=ClipTokenizer(16), embed_dim=WIDTH, **given)


def cwcl(frozen="text"):
    return two_towers(CWCL, frozen)


def rocket(extra=None, **given):
    return two_towers(CLIPRocket, hidden=16, extra=extra, **given)


EXTRAS = {
    "none": lambda: None,
    "barlow": lambda: BarLIP(WIDTH, WIDTH, dim=12, hidden=10),
    "prediction": lambda: SiamLIP(WIDTH, WIDTH, dim=12, hidden=10),
    "momentum": lambda: BYOLIP(WIDTH, WIDTH, dim=12, hidden=10, momentum=0.5),
    "assignment": SwALIP,
}
METHODS = {
    "supcon": supcon,
    "one view": lambda: supcon(views=1, learn_scale=True),
    "amcl": amcl,
    "reident": reident,
    "cwcl": cwcl,
    **{f"rocket {name}": lambda make=make: rocket(make()) for name, make in EXTRAS.items()},
}


@pytest.fixture
def views(batch):
    """A batch with labels side by side, and further views of pictures and texts."""
    generator = torch.Generator().manual_seed(2)
    images = {
        key: torch.randint(0, 256, batch["image"].shape, dtype=torch.uint8, generator=generator)
        for key in ("image_view", "image_view_1", "image_strong_0", "image_strong_1")
    }
    texts = {f"text_strong_{number}": batch["text"].roll(number, 1) for number in range(2)}
    return batch | images | texts | {"label": torch.tensor([3, 3, 0, 0, 5, 5])}


@pytest.fixture(params=METHODS)
def method(request):
    torch.manual_seed(0)
    return METHODS[request.param]().train()


@pytest.fixture(params=["one view", "amcl", "cwcl", "rocket momentum"])
def some(request):
    """Of each way to embed a batch, one."""
    torch.manual_seed(0)
    return METHODS[request.param]().train()


def test_a_step_reaches_every_trainable_parameter(method, views):
    """Each gets a gradient, as DDP asks for, and what follows moves too."""
    before = {name: value.detach().clone() for name, value in method.named_parameters()}
    optimizer = torch.optim.SGD([value for value in method.parameters() if value.requires_grad], lr=0.1)
    method.total_loss(method.loss_terms(views)).backward()
    optimizer.step()
    method.after_optimizer_step()
    for name, value in method.named_parameters():
        follows = name.startswith(("targets.", "extra.target_projectors."))
        assert (value.grad is not None) == value.requires_grad, name
        if (value.requires_grad and value.ndim > 1) or (follows and "projectors" in name and value.ndim > 1):
            assert not torch.equal(value, before[name]), name
        elif not (value.requires_grad or follows):
            assert torch.equal(value, before[name]), name


def test_chunks_change_nothing(some, views):
    full = some.eval().loss_terms  # batch norms as they are, dropout off
    some.gradient_cache = None

    def cached():
        some.gradient_cache = 4
        try:
            return some.total_loss(full(views))
        finally:
            some.gradient_cache = None

    parameters = {name: value for name, value in some.named_parameters() if value.requires_grad}
    assert_cached_equals_full(lambda: some.total_loss(full(views)), cached, parameters, tolerance=1e-4)


def test_a_saved_method_is_the_same(some, views, tmp_path):
    save(some.eval(), tmp_path / "model")
    again = collimate.load(tmp_path / "model")
    assert again.config() == some.config()
    expected, found = (each.eval().loss_terms(views) for each in (some, again))
    torch.testing.assert_close(found, expected)


def test_supcon_is_the_dense_formula(views):
    method = supcon().eval()
    features = torch.stack(list(method.embed(views).values()), 1)
    assert features.shape == (6, 2, 16)
    expected = oracles.supcon_loss(features, views["label"], temperature=0.07)
    torch.testing.assert_close(method.loss_terms(views)["supcon"], expected.float())


def test_evaluation_sees_the_tower_without_its_head(views):
    for method in (supcon().eval(), amcl().eval(), reident().eval()):
        pooled = method.encode("image", views["image"]).pooled
        assert torch.equal(
            pooled, method.encoders["image"].encode(method.processors["image"].finish(views["image"])).pooled
        )


def test_amcl_uses_a_temperature_for_each_pair(views):
    method = amcl().eval()
    features = torch.stack(list(method.embed(views).values()), 1)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(6, 2, 2))
    flat = amcl_nt_xent_loss(normalize(features, dim=-1), lambda a, b: torch.full(a.shape[:-1], 0.4))
    assert not torch.isclose(method.loss_terms(views)["amcl"], flat)


def test_pictures_of_one_identity_must_stand_side_by_side(views):
    with pytest.raises(ValueError, match="samples: 2"):
        reident().loss_terms(views | {"label": torch.tensor([3, 0, 3, 0, 5, 5])})
    with pytest.raises(ValueError, match="samples: 2"):
        reident().loss_terms({key: value[:5] for key, value in views.items()})


@pytest.mark.parametrize("frozen", ["image", "text"])
def test_cwcl_learns_towards_the_frozen_tower(frozen, views):
    method = cwcl(frozen).eval()
    embeddings = method.embed(views)
    other = "text" if frozen == "image" else "image"
    expected = cwcl_loss(embeddings[frozen], embeddings[other], method.logit_scale.exp())
    torch.testing.assert_close(method.loss_terms(views)["cwcl"], expected)
    assert not any(parameter.requires_grad for parameter in method.encoders[frozen].parameters())


def test_a_tower_that_learns_is_no_teacher():
    with pytest.raises(ValueError, match=r"collimate\.encoders\.Frozen"):
        two_towers(CWCL, frozen=None)


# CLIP-rocket ----------------------------------------------------------------------------------------------------


def test_rocket_joins_weak_and_strong_views(views):
    method = rocket(label_smoothing=0.0, strong_views=1).eval()
    embeddings = method.embed(views)
    weak = [method.projections[name](embeddings[name]) for name in ("image", "text")]
    strong = [method.local_projections[name](embeddings[f"{name}_strong_0"]) for name in ("image", "text")]
    scales = method.logit_scale.exp(), method.local_logit_scale.exp()
    expected = sum(oracles.clip_loss(*pair, scale) for pair, scale in zip((weak, strong), scales, strict=True)) / 2
    torch.testing.assert_close(method.loss_terms(views)["clip"], expected.float())


def test_momentum_targets_follow(views):
    method = rocket(BYOLIP(WIDTH, WIDTH, dim=12, hidden=10, momentum=0.5))
    with torch.no_grad():
        for parameter in method.encoders.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in method.targets.parameters()]
    method.after_optimizer_step()
    for old, new in zip(before, method.targets.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.5)


def test_scales_are_held():
    method = rocket()
    with torch.no_grad():
        method.local_logit_scale.fill_(9.0)
    method.after_optimizer_step()
    assert method.local_logit_scale.item() == pytest.approx(math.log(100))


def test_assignments_are_swapped_by_twos():
    with pytest.raises(ValueError, match="by twos"):
        swapped_view_loss([torch.ones(2, 3)], [torch.ones(2, 3)], 1.0)
    with pytest.raises(ValueError, match="at least one strong view"):
        rocket(strong_views=0)


def local(first, second, third, fourth, scale):
    return local_to_local_losses(first, second, [first, third], [second, fourth], scale, scale / 2, 0.1).loss


def swapped(first, second, third, fourth, scale):
    return swapped_view_loss([first, third], [second, fourth], scale, epsilon=0.3)


@pytest.mark.parametrize("loss", [local, swapped])
def test_views_are_contrasted_exactly_across_ranks(loss):
    generator = torch.Generator().manual_seed(0)
    rows = {name: torch.randn(11, 6, generator=generator) for name in ("first", "second", "third", "fourth")}
    assert_same_on_ranks(loss, rows, {"scale": torch.tensor(5.0)}, ranks=(2, 3), tolerance=2e-5)


def test_projections_with_batch_norm_have_the_layers_asked_for():
    network = BatchNormProjection(6, 4, hidden=5, layers=3, final_norm=True)
    shapes = [tuple(value.shape) for name, value in network.named_parameters() if value.ndim == 2]
    assert shapes == [(5, 6), (5, 5), (4, 5)]
    found = network(torch.randn(50, 6))
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert BatchNormProjection(6, 4, layers=1)(torch.randn(2, 6)).shape == (2, 4)


# Data -----------------------------------------------------------------------------------------------------------


def test_texts_lose_stop_words_and_are_changed():
    augmentation = TextAugmentation(drop_stop_words=1.0)
    assert augmentation.changed("a dog is on the red sofa") == "dog red sofa"
    assert augmentation.changed("to be or not to be") == "to be or not to be", (
        "a text keeps its words if it has no others"
    )
    deleted = TextAugmentation(0.0, {"delete": 1.0}, share=0.5).changed("one two three four")
    assert len(deleted.split()) == 2
    assert sorted(TextAugmentation(0.0, {"swap": 1.0}).changed("c b a").split()) == ["a", "b", "c"]
    assert TextAugmentation(0.0, {"delete": 1.0}, share=1.0).changed("one") == "one"
    assert TextAugmentation(0.0, {"swap": 1.0}).changed("") == ""


def test_synonyms_come_from_a_file(tmp_path):
    (tmp_path / "synonyms.json").write_text('{"dog": ["hound"]}')
    augmentation = TextAugmentation(0.0, {"synonym": 1.0}, synonyms=tmp_path / "synonyms.json")
    assert augmentation.changed("Dog bites man") == "hound bites man"
    with pytest.raises(ValueError, match="need a file"):
        TextAugmentation(operations={"synonym": 1.0})
    with pytest.raises(ValueError, match="no operation 'shuffle'"):
        TextAugmentation(operations={"shuffle": 1.0})


def test_supcon_trains_on_real_pictures_in_batches_of_labels(shared_data):
    data = DataModule(
        str(shared_data / "images_caltech101" / "train-{000000..000002}.tar"),
        batch_size=16,
        sampling=PerLabel(samples=2),
        augmentations={
            "image": ImageAugmentation(scale=(0.9, 1.0)),
            "image_view_1": ImageAugmentation(scale=(0.2, 0.3)),
        },
    )
    tower = TimmImageEncoder("resnet10t", model_args={"channels": [8, 8, 16, 16], "stem_width": 8})
    method = SupCon(tower, ImageProcessor(SIZE), head=MLPProjection(tower.width, 16))
    trainer = Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[],
    )
    seen = []
    method.training_step = lambda batch, index, step=method.training_step: seen.append(batch) or step(batch, index)
    trainer.fit(method, data)
    assert len(seen) == 3
    for batch in seen:
        assert torch.equal(batch["label"][::2], batch["label"][1::2])
        assert len(batch["label"].unique()) == 8
        assert not torch.equal(batch["image"], batch["image_view_1"])
