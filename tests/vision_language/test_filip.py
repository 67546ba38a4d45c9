"""FILIP: its loss is the paper's, its tokens and masks are right, it trains, ranks, is cached, logged and saved."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

import collimate
from collimate.checkpoints import save
from collimate.data import Source
from collimate.encoders import OpenClipImageEncoder, OpenClipTextEncoder, TimmImageEncoder
from collimate.encoding import Encoding
from collimate.evaluation import evaluate_retrieval, evaluate_zero_shot
from collimate.losses import late_interaction
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.testing import assert_cached_equals_full, oracles
from collimate.training import Optimization
from collimate.training.callbacks import NonFiniteGuard
from collimate.training.callbacks.step_log import StepLog, space_statistics
from collimate_vision_language import FILIP

LENGTH = 12
TEXTS = ["a dog", "two cats", "a red ball!", "rain", "the sea at night", ""]


def make_filip(**given):
    torch.manual_seed(0)
    parts = {
        "image_encoder": OpenClipImageEncoder(width=64, layers=2, image_size=32, patch_size=8),
        "text_encoder": OpenClipTextEncoder(width=64, heads=2, layers=2, context_length=LENGTH),
        "image_processor": ImageProcessor(32),
        "tokenizer": ClipTokenizer(LENGTH),
        "embed_dim": 16,
    }
    return FILIP(**{**parts, **given})


def make_batch(size=6):
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return {"image": images, "text": ClipTokenizer(LENGTH).batch(TEXTS[:size]), "position": torch.arange(size)}


def fit(method, batch, steps, **arguments):
    loader = DataLoader([batch] * steps, batch_size=None)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(max_steps=steps, accelerator="cpu", **{**quiet, **arguments}).fit(method.train(), loader)
    return method.eval()


def test_the_loss_is_the_papers():
    method, batch = make_filip().eval(), make_batch()
    image, text = (method.encode(name, batch[name]) for name in method.modalities)
    lengths = (batch["text"] == 49407).int().argmax(1) + 1
    mask = torch.arange(LENGTH) < lengths[:, None]
    tokens = torch.nn.functional.pad(text.tokens, (0, 0, 0, LENGTH - text.tokens.shape[1]))
    expected = oracles.filip_loss(image.tokens, tokens, method.logit_scale.exp().double(), text_mask=mask)
    torch.testing.assert_close(method.loss_terms(batch)["filip"].double(), expected, rtol=1e-5, atol=1e-6)
    assert method.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_tokens_are_the_patches_and_the_words_in_the_joint_space():
    method, batch = make_filip().eval(), make_batch()
    image, text = (method.encode(name, batch[name]) for name in method.modalities)
    assert (image.tokens.shape, image.grid, image.mask) == ((6, 16, 16), (4, 4), None)
    torch.testing.assert_close(image.pooled, image.tokens.mean(1))
    assert text.mask.sum(1).tolist() == [4, 4, 6, 3, 6, 2]
    torch.testing.assert_close(text.pooled[3], text.tokens[3, :3].mean(0))


def test_an_exclamation_mark_is_no_padding_though_its_id_is():
    method = make_filip()
    ids = method.processors["text"]("!^!")
    assert int((ids[:4] == 0).sum()) > 0, "the vocabulary has changed: pick another text"
    assert method.encode("text", ids[None]).mask.all()


def test_special_tokens_can_be_left_out():
    method = make_filip(drop_special_tokens=True)
    mask = method.encode("text", TEXTS).mask
    assert mask.sum(1).tolist() == [2, 2, 4, 1, 4, 2], "an empty text keeps what it has"
    assert not mask[:5, 0].any()


def test_similarity_has_a_direction():
    method, batch = make_filip().eval(), make_batch()
    image, text = (method.encode(name, batch[name]) for name in method.modalities)
    by_image, by_text = method.similarity(image, text), method.similarity(text, image)
    torch.testing.assert_close(by_image, late_interaction(image.tokens, text.tokens, None, text.mask))
    torch.testing.assert_close(by_text, late_interaction(text.tokens, image.tokens, text.mask, None))
    assert not torch.allclose(by_image, by_text.T)
    with pytest.raises(ValueError, match="has none"):
        method.similarity(image, Encoding(text.pooled))


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_gradient_cache_is_the_full_batch(chunk):
    method, batch = make_filip(image_token_share=0.5), make_batch()

    def loss(size):
        method.gradient_cache = size
        return method.total_loss(method.loss_terms(batch))

    assert_cached_equals_full(lambda: loss(None), lambda: loss(chunk), dict(method.named_parameters()), tolerance=1e-4)


def test_training_finds_the_pairs():
    method, batch = make_filip(), make_batch()
    method.optimization = Optimization(lr=1e-3, warmup=0, schedule="constant")
    before = method.loss_terms(batch)["filip"].item()
    fit(method, batch, 15)
    assert method.loss_terms(batch)["filip"].item() < 0.3 * before
    image, text = (method.encode(name, batch[name]) for name in method.modalities)
    assert (method.similarity(image, text).argmax(1) == torch.arange(6)).all()
    assert (method.similarity(text, image).argmax(1) == torch.arange(6)).all()


def test_the_published_optimizer_trains_and_the_scale_is_held():
    method, batch = make_filip(init_logit_scale=100.0), make_batch()
    method.optimization = Optimization("lamb", lr=0.1, betas=(0.9, 0.999), eps=1e-4, warmup=0, schedule="constant")
    fit(method, batch, 3)
    assert all(parameter.isfinite().all() for parameter in method.parameters())
    assert 0 <= method.logit_scale.item() <= math.log(100) + 1e-6


def test_selected_tokens_train_too():
    method, batch = make_filip(image_token_share=0.25, text_token_share=0.25), make_batch()
    method.optimization = Optimization(lr=1e-3, warmup=0, schedule="constant")
    before = method.loss_terms(batch)["filip"].item()
    fit(method, batch, 10)
    assert method.loss_terms(batch)["filip"].item() < before


def test_the_step_log_sees_the_space(capsys):
    method, batch = make_filip(), make_batch()
    fit(method, batch, 2, callbacks=[StepLog(), NonFiniteGuard()], log_every_n_steps=1)
    assert "effective rank" in capsys.readouterr().out
    assert {"logit_scale", "similarity_gap", "effective_rank/image"} <= space_statistics(
        method, method.embed(batch)
    ).keys()


def test_a_loss_that_is_not_finite_is_told(tmp_path):
    method, batch = make_filip(), make_batch()
    with torch.no_grad():
        method.projections["image"].linear.weight[0, 0] = torch.nan
    with pytest.raises(RuntimeError, match=r"projections\.image\.linear\.weight"):
        fit(method, batch, 1, callbacks=[NonFiniteGuard()], default_root_dir=tmp_path)


def test_a_folder_brings_it_back(tmp_path):
    method, batch = make_filip(drop_special_tokens=True).eval(), make_batch()
    save(method, tmp_path / "model")
    again = collimate.load(tmp_path / "model")
    assert again.drop_special_tokens
    for name in method.modalities:
        torch.testing.assert_close(again.encode(name, batch[name]).tokens, method.encode(name, batch[name]).tokens)


def test_a_convolutional_tower_gives_its_cells():
    method = make_filip(image_encoder=TimmImageEncoder("test_convnext"))
    assert method.encode("image", make_batch()["image"]).grid == (1, 1)


def test_a_tower_without_tokens_is_told():
    method, batch = make_filip(), make_batch()
    method.encoders["image"].forward = lambda inputs, mask=None: Encoding(inputs.mean((2, 3)))
    with pytest.raises(ValueError, match="gives no tokens"):
        method.encode("image", batch["image"])


class Pictures(Source):
    name = "pictures"

    def __init__(self):
        self.batch = make_batch()

    def __len__(self):
        return 5  # the last text is empty

    def read(self, index):
        picture = self.batch["image"][index].permute(1, 2, 0).numpy()
        return {"__key__": str(index), "png": picture, "txt": TEXTS[index], "cls": index % 2}


def test_evaluation_uses_the_methods_own_score():
    """Classes by s^I, averaged over prompts; retrieval by s^I one way and s^T the other."""
    method, batch = make_filip().eval(), make_batch()
    image, text = (method.encode(name, batch[name]) for name in method.modalities)
    prompts = {"dog": ["a dog", "one dog is here"], "cat": ["two cats"]}
    scores = evaluate_zero_shot(method, Pictures(), prompts, device="cpu", resamples=10).scores
    flat = method.encode("text", [*prompts["dog"], *prompts["cat"]])
    each = method.similarity(image, flat)[:5]
    torch.testing.assert_close(scores, torch.stack([each[:, :2].mean(1), each[:, 2]], 1), rtol=1e-4, atol=1e-5)
    found = evaluate_retrieval(method, Pictures(), device="cpu", resamples=10)
    for ranks, own in (
        (found.sample_ranks, method.similarity(text, image)[:5, :5]),
        (found.text_ranks, method.similarity(image, text)[:5, :5]),
    ):
        expected = (own > own.diagonal()[:, None]).sum(1)
        assert torch.equal(ranks.long(), expected)
