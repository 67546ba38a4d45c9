"""CLIP and SigLIP as methods: their losses, scales, training on a small batch, LoRA and frozen towers."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn.functional import cross_entropy, logsigmoid, normalize
from torch.utils.data import DataLoader

from collimate.configurable import build
from collimate.encoders import Frozen, LoRA
from collimate.losses import SharedLabels, clip_loss
from collimate.losses.negatives import text_ids
from collimate.testing import assert_cached_equals_full, assert_same_on_ranks
from collimate.training import Optimization


def fit(method, batch, steps):
    loader = DataLoader([batch] * steps, batch_size=None)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method.train(), loader)
    return method.eval()


def cosines(method, batch):
    embeddings = method.embed(batch)
    return normalize(embeddings["image"], dim=-1) @ normalize(embeddings["text"], dim=-1).T


def test_clip_loss_is_the_papers(tiny_clip, batch):
    logits = tiny_clip.logit_scale.exp() * cosines(tiny_clip, batch)
    labels = torch.arange(len(logits))
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(tiny_clip.loss_terms(batch)["clip"], expected)
    assert tiny_clip.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


@pytest.fixture
def repeating(batch):
    """A batch in which three samples share one caption and two another."""
    return {**batch, "text": batch["text"][[0, 1, 0, 2, 1, 0]]}


def test_masked_duplicates_are_no_negatives(make_clip, repeating, batch):
    method = make_clip(mask_duplicates=True)
    logits = method.logit_scale.exp() * cosines(method, repeating)
    captions = torch.tensor([0, 1, 0, 2, 1, 0])
    duplicates = (captions[:, None] == captions) & ~torch.eye(6, dtype=torch.bool)
    logits = logits.masked_fill(duplicates, -torch.inf)
    labels = torch.arange(6)
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(method.loss_terms(repeating)["clip"], expected)
    assert expected < make_clip().loss_terms(repeating)["clip"]
    torch.testing.assert_close(method.loss_terms(batch), make_clip().loss_terms(batch))
    assert build(method.config()).mask_duplicates


def masked(image, text, tokens, scale):
    """What `CLIP.losses` computes with `mask_duplicates`; ranks need no whole method for it."""
    return clip_loss(image, text, scale, ids=text_ids(tokens))


def test_duplicates_of_other_ranks_are_masked_too(make_clip, repeating):
    method = make_clip(mask_duplicates=True)
    rows = {name: value.detach() for name, value in method.embed(repeating).items()} | {"tokens": repeating["text"]}
    scale = method.logit_scale.exp().detach()
    torch.testing.assert_close(masked(**rows, scale=scale), method.losses(rows, repeating)["clip"])
    assert_same_on_ranks(masked, rows, {"scale": scale}, ranks=(2, 3))


def test_the_gradient_cache_sees_the_duplicates_of_other_chunks(make_clip, repeating):
    method = make_clip(mask_duplicates=True)

    def loss(chunk):
        method.gradient_cache = chunk
        return method.loss_terms(repeating)["clip"]

    parameters = dict(method.named_parameters())
    assert_cached_equals_full(lambda: loss(None), lambda: loss(2), parameters, tolerance=1e-5)


def test_duplicates_as_positives_are_clips_loss(tiny_clip, repeating):
    """Why there is no such option: `clip.py` says that it would change nothing."""
    embeddings, ids = tiny_clip.embed(repeating), text_ids(repeating["text"])
    positives = clip_loss(
        embeddings["image"], embeddings["text"], tiny_clip.logit_scale.exp(), targets=SharedLabels(ids, ids)
    )
    torch.testing.assert_close(positives, tiny_clip.loss_terms(repeating)["clip"])


def test_siglip_loss_is_the_papers(make_siglip, batch):
    method = make_siglip()
    logits = method.logit_scale.exp() * cosines(method, batch) + method.logit_bias
    signs = 2 * torch.eye(len(logits)) - 1
    expected = -logsigmoid(signs * logits).sum() / len(logits)
    torch.testing.assert_close(method.loss_terms(batch)["siglip"], expected)
    assert (method.logit_scale.item(), method.logit_bias.item()) == pytest.approx((math.log(10), -10))


def test_training_finds_the_pairs(make_clip, batch):
    method = make_clip()
    method.optimization = Optimization(lr=1e-3, warmup=0, schedule="constant")
    before = method.loss_terms(batch)["clip"].item()
    fit(method, batch, 15)
    assert method.loss_terms(batch)["clip"].item() < 0.3 * before
    assert (cosines(method, batch).argmax(1) == torch.arange(6)).all()


@pytest.mark.parametrize(("start", "end"), [(100.0, 100.0), (1.0, 1.0)])
def test_clips_scale_stays_between_1_and_100(make_clip, batch, start, end):
    method = make_clip(init_logit_scale=start)
    # A huge step on the scale alone, away from its bounds.
    direction = 1 if start > 1 else -1
    method.losses = lambda embeddings, batch: {"clip": -direction * method.logit_scale}
    method.requires_grad_(False)
    method.logit_scale.requires_grad_(True)
    method.optimization = Optimization(lr=1.0, warmup=0, schedule="constant")
    fit(method, batch, 2)
    assert method.logit_scale.exp().item() == pytest.approx(end)


def test_siglips_scale_is_not_clamped(make_siglip):
    method = make_siglip(init_logit_scale=150.0)
    method.after_optimizer_step()
    assert method.logit_scale.exp().item() == pytest.approx(150)


def test_automatic_bias_balances_the_first_batch_and_only_that(make_siglip, batch):
    method = make_siglip(init_logit_bias="auto")
    assert method.logit_bias.item() == -10
    method.optimization = Optimization(lr=1e-8, warmup=0, schedule="constant")
    fit(method, batch, 2)
    assert method.logit_bias.item() == pytest.approx(-math.log(5))
    assert build(method.config()).balance_bias


def test_match_probability(make_siglip, batch):
    method = make_siglip()
    image, text = method.encode("image", batch["image"]), method.encode("text", batch["text"])
    expected = torch.sigmoid(method.logit_scale.exp() * method.similarity(image, text) + method.logit_bias)
    torch.testing.assert_close(method.match_probability(image, text), expected)


def test_tokens_lie_in_the_joint_space(method, batch):
    for modality in method.modalities:
        encoding = method.encode(modality, batch[modality])
        assert encoding.tokens.shape[2] == encoding.pooled.shape[1]


def test_lora_trains_updates_projections_and_scale(make_clip, batch):
    pytest.importorskip("peft")
    towers = make_clip().encoders
    method = make_clip(image_encoder=LoRA(towers["image"], rank=2), text_encoder=Frozen(towers["text"]))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.optimization = Optimization(lr=1e-2, warmup=0, schedule="constant")
    fit(method, batch, 3)
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert "logit_scale" in moved
    assert {name.split(".")[0] for name in moved} == {"encoders", "projections", "logit_scale"}
    assert all("lora_" in name for name in moved if name.startswith("encoders."))
    assert not method.encoders["text"].encoder.training
