"""ALIP: gates, history, missing captions, and all of it on ranks and in chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch.nn.functional import cross_entropy, normalize

import collimate
from collimate.checkpoints import save
from collimate.checkpoints.open_clip import to_open_clip
from collimate.data import DataModule, OneCaption, open_source
from collimate.encoders import OpenClipImageEncoder, OpenClipTextEncoder
from collimate.losses.negatives import text_ids
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.testing import assert_cached_equals_full, assert_same_on_ranks, even_and_uneven, run_on_ranks
from collimate.training import Optimization
from collimate_vision_language import ALIP
from collimate_vision_language.alip import (
    Gates,
    adaptive_losses,
    duplicate_rate,
    gates,
    similarities,
    updated_history,
)
from collimate_vision_language.consistency import evaluate_consistency

from .test_methods import fit

START = torch.tensor([0.3, 0.2, 0.4])


def alip(**given):
    torch.manual_seed(0)
    return ALIP(
        image_encoder=OpenClipImageEncoder(width=32, layers=1, image_size=32, patch_size=8, head_width=16),
        text_encoder=OpenClipTextEncoder(width=32, heads=2, layers=1, context_length=16),
        image_processor=ImageProcessor(32),
        tokenizer=ClipTokenizer(16),
        embed_dim=16,
        **given,
    )


@pytest.fixture
def captioned(batch):
    captions = ["one dog", "two cats", "a red ball", "", "the sea", ""]
    there = torch.tensor([True, True, True, False, True, False])
    return batch | {"caption": ClipTokenizer(16).batch(captions), "caption_given": there}


def features(size, missing=(), seed=0):
    image, text, caption = torch.randn(3, size, 8, generator=torch.Generator().manual_seed(seed))
    there = torch.tensor([place not in missing for place in range(size)])
    return {"image": image, "text": text + image, "caption": caption + image, "caption_given": there}


def step(image, text, caption, caption_given, scale=9.0, history=START):
    """The loss of one step and the history after it, on this rank."""
    found = similarities(image, text, caption)
    history = updated_history(history, found, caption_given)
    losses = adaptive_losses(image, text, caption, scale, gates(found, history, caption_given), caption_given)
    return losses.image_text + losses.image_caption, history


def loss(image, text, caption, caption_given, scale):
    return step(image, text, caption, caption_given, scale)[0]


def dense(image, text, caption, caption_given, scale, history):
    """The whole step in plain float64, sample by sample."""
    image, text, caption = (normalize(each.double(), dim=1) for each in (image, text, caption))
    size, there = len(image), caption_given.nonzero().flatten().tolist()
    cosines = [(text * caption).sum(1), (image * text).sum(1), (image * caption).sum(1)]
    counted = [there, list(range(size)), there]
    history = [
        0.99 * h + 0.01 * float(s[rows].mean()) for h, s, rows in zip(history.tolist(), cosines, counted, strict=True)
    ]
    total = 0.0
    for i in range(size):
        language, description, described = (float(s[i]) - h for s, h in zip(cosines, history, strict=True))
        sample = min(1.0, torch.tensor(2 * language).exp().item()) if i in there else 1.0
        judged = sample < 1 or i not in there
        text_weight = torch.tensor(2 * description).exp().item() if judged else 1.0
        caption_weight = torch.tensor(2 * described).exp().item() if judged else 1.0
        logits = scale * image @ text.T
        own = torch.tensor(i)
        total += sample * text_weight * (cross_entropy(logits[i], own) + cross_entropy(logits[:, i], own)) / 2
        if i in there:
            logits = scale * image @ caption.T
            own_caption = torch.tensor(there.index(i))
            rows, columns = cross_entropy(logits[i, there], own_caption), cross_entropy(logits[:, i], own)
            total += sample * caption_weight * (rows + columns) / 2
    return total / size, history


@pytest.mark.parametrize("missing", [(), (1, 4), range(7)])
def test_a_step_is_the_equations(missing):
    rows = features(7, missing)
    wanted, history = dense(**rows, scale=9.0, history=START) if len(missing) < 7 else (None, START.tolist())
    found, after = step(**rows)
    if wanted is None:  # without any caption it is CLIP's contrast, weighed by the description gate
        assert torch.equal(after[[0, 2]], START[[0, 2]])
        assert torch.isfinite(found)
        assert float(found) > 0
    else:
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
        torch.testing.assert_close(after.tolist(), history, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 2**16), st.integers(1, 9), st.floats(-1, 1), st.floats(0, 4), st.floats(0, 4))
def test_gates_keep_their_bounds(seed, size, level, gamma_sample, gamma_pair):
    rows = features(size, missing=(0,), seed=seed)
    found, history = similarities(rows["image"], rows["text"], rows["caption"]), torch.full((3,), level)
    weights = gates(found, history, rows["caption_given"], gamma_sample, gamma_pair)
    assert all(torch.isfinite(weight).all() and (weight >= 0).all() for weight in weights)
    assert (weights.sample <= 1).all()
    assert weights.sample[0] == 1
    assert weights.caption[0] == 0
    consistent = (found[:, 0] >= level) & rows["caption_given"]
    assert (weights.text[consistent] == 1).all()
    assert (weights.caption[consistent] == 1).all()


def test_without_gammas_it_is_clips_loss_twice():
    rows = features(6)
    found = similarities(rows["image"], rows["text"], rows["caption"])
    weights = gates(found, START, rows["caption_given"], 0.0, 0.0)
    losses = adaptive_losses(**rows, logit_scale=5.0, weights=weights)
    for name in ("text", "caption"):
        wanted = collimate.losses.clip_loss(rows["image"], rows[name], 5.0)
        torch.testing.assert_close(getattr(losses, f"image_{name}"), wanted)


def test_weights_and_history_carry_no_gradient():
    rows = {name: each.requires_grad_() if each.is_floating_point() else each for name, each in features(5).items()}
    found = similarities(rows["image"], rows["text"], rows["caption"])
    assert not found.requires_grad
    assert not step(**rows)[1].requires_grad


def test_a_missing_caption_moves_nothing():
    """Whatever stands in the place of a caption that is not there: no loss, weight or gradient depends on it."""
    rows = features(6, missing=(2, 5))
    other = rows | {"caption": torch.where(rows["caption_given"][:, None], rows["caption"], 100.0)}
    results = []
    for each in (rows, other):
        caption = each["caption"].clone().requires_grad_()
        value, history = step(**each | {"caption": caption})
        gradient = torch.autograd.grad(value, caption)[0]
        assert (gradient[[2, 5]] == 0).all()
        results.append((value.detach(), history, gradient))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("missing", [(), (0, 3, 4, 11)])
def test_loss_and_gradients_are_those_of_one_process(missing, dtype, tolerance):
    rows = {name: each.to(dtype) if each.is_floating_point() else each for name, each in features(13, missing).items()}
    assert_same_on_ranks(loss, rows, {"scale": torch.tensor(20.0, dtype=dtype)}, ranks=(2, 3), tolerance=tolerance)


def loss_of_the_method(image, text, caption, caption_given, tokens):
    method = alip(history_init="first_batch", mask_duplicates=True)
    for _ in range(2):
        terms = method.losses(
            {"image": image, "text": text, "caption": caption}, {"caption": tokens, "caption_given": caption_given}
        )
    return method.total_loss(terms) + method.history.sum()


def test_the_method_is_exact_across_ranks():
    rows = features(13, missing=(0, 3, 11)) | {"tokens": torch.tensor([[place % 9] for place in range(13)])}
    assert_same_on_ranks(loss_of_the_method, rows, ranks=(2, 3), tolerance=1e-5)


def history_and_weights(image, text, caption, caption_given):
    found, history = similarities(image, text, caption), torch.full((3,), torch.nan)
    for _ in range(2):
        history = updated_history(history, found, caption_given)
    ids = caption_given.long()
    return history, gates(found, history, caption_given), duplicate_rate(ids, caption_given)


def test_ranks_share_one_history():
    rows = features(13, missing=(0, 3, 12))
    history, weights, duplicates = history_and_weights(**rows)
    for ranks in (2, 3):
        for split in [*even_and_uneven(13, ranks), [0] * (ranks - 1) + [13]]:
            parts = list(zip(*(each.split(split) for each in rows.values()), strict=True))
            found = run_on_ranks(history_and_weights, parts)
            for on_rank, _, rate in found:
                torch.testing.assert_close(on_rank, history, rtol=1e-5, atol=1e-6)
                assert torch.equal(on_rank, found[0][0])
                assert float(rate) == float(duplicates) == 1.0
            together = Gates(*(torch.cat(parts) for parts in zip(*(each[1] for each in found), strict=True)))
            torch.testing.assert_close(together, weights, rtol=1e-5, atol=1e-6)


def test_equal_captions_can_be_no_negatives():
    rows = features(5)
    rows["caption"][3] = rows["caption"][1]
    weights = Gates(*torch.ones(3, 5))
    ids = torch.tensor([0, 1, 2, 1, 4])
    with_ids = adaptive_losses(**rows, logit_scale=5.0, weights=weights, caption_ids=ids)
    wanted = collimate.losses.clip_loss(rows["image"], rows["caption"], 5.0, ids=ids)
    torch.testing.assert_close(with_ids.image_caption, wanted)
    assert with_ids.image_caption < adaptive_losses(**rows, logit_scale=5.0, weights=weights).image_caption


def test_duplicates_are_masked_where_asked(captioned):
    captions = ["one dog", "one dog", "a red ball", "", "one dog", ""]
    batch = captioned | {"caption": ClipTokenizer(16).batch(captions)}
    plain, masked = alip(), alip(mask_duplicates=True)
    losses = [method.loss_terms(batch) for method in (plain, masked)]
    assert losses[0]["image_text"] == losses[1]["image_text"]
    assert losses[0]["image_caption"] > losses[1]["image_caption"] > 0
    assert float(plain.statistics["duplicate_captions"]) == 3 / 4


def test_equal_texts_have_equal_ids():
    tokens = ClipTokenizer(16).batch(["a dog", "a cat", "a dog", "", "a dog !", "dog a", "", ""])
    ids = text_ids(tokens)
    assert len(ids.unique()) == 5
    assert ids[0] == ids[2]
    given = torch.tensor([True] * 6 + [False] * 2)  # the first "" is given and alone
    assert float(duplicate_rate(ids, given)) == pytest.approx(2 / 6)
    assert float(duplicate_rate(ids, torch.zeros(8, dtype=torch.bool))) == 0


# The method -----------------------------------------------------------------------------------------------------


def test_history_begins_at_one_or_with_the_first_batch(captioned):
    one, first = alip(), alip(history_init="first_batch")
    found = similarities(*one.embed(captioned).values())
    there = captioned["caption_given"]
    mean = torch.stack([found[there, 0].mean(), found[:, 1].mean(), found[there, 2].mean()])
    for method, wanted in ((one, 0.99 + 0.01 * mean), (first, mean)):
        method.loss_terms(captioned)
        torch.testing.assert_close(method.history, wanted)


def test_history_advances_in_training_only(captioned):
    method = alip(history_init="first_batch")
    terms = method.eval().loss_terms(captioned)
    assert method.history.isnan().all()
    assert all(torch.isfinite(term) for term in terms.values())
    method.train().loss_terms(captioned)
    before = method.history
    method.eval().loss_terms(captioned)
    assert torch.equal(method.history, before)


def test_history_is_in_checkpoints(captioned, tmp_path):
    method = alip(history_init="first_batch", gamma_pair=1.5)
    method.optimization = Optimization(lr=1e-3, warmup=0, schedule="constant")
    fit(method, captioned, 3)
    assert torch.isfinite(method.history).all()
    assert torch.equal(method.state_dict()["history"], method.history)
    save(method, tmp_path / "model")
    again = collimate.load(tmp_path / "model")
    assert torch.equal(again.history, method.history)
    assert again.gamma_pair == 1.5
    save(alip(history_init="first_batch"), tmp_path / "new")
    assert collimate.load(tmp_path / "new").history.isnan().all()


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_gradient_cache_changes_neither_loss_nor_history(captioned, chunk):
    method, histories = alip(), []

    def run(chunk):
        method.gradient_cache, method.history = chunk, START
        value = method.total_loss(method.loss_terms(captioned))
        histories.append(method.history)
        return value

    assert_cached_equals_full(lambda: run(None), lambda: run(chunk), dict(method.named_parameters()), tolerance=1e-5)
    torch.testing.assert_close(*histories)


def test_training_without_any_caption_is_finite(captioned):
    method = alip(history_init="first_batch")
    method.optimization = Optimization(lr=1e-3, warmup=0, schedule="constant")
    bare = captioned | {"caption_given": torch.zeros(6, dtype=torch.bool)}
    fit(method, bare, 2)
    assert method.history.isnan().tolist() == [True, False, True]
    assert all(torch.isfinite(parameter).all() for parameter in method.parameters())
    assert method.train().loss_terms(bare)["image_caption"] == 0
    fit(method, captioned, 1)
    assert torch.isfinite(method.history).all()


def test_a_batch_that_is_not_finite_leaves_the_history(captioned):
    method = alip()
    with torch.no_grad():
        method.losses({name: torch.full((6, 4), torch.nan) for name in ("image", "text", "caption")}, captioned)
    assert torch.equal(method.history, torch.ones(3))


def test_training_finds_texts_and_captions(captioned):
    method = alip(history_init="first_batch")
    method.optimization = Optimization(lr=3e-3, warmup=0, schedule="constant")
    before = method.eval().loss_terms(captioned)
    fit(method, captioned, 25)
    after = method.loss_terms(captioned)
    assert all(after[name] < 0.5 * before[name] for name in ("image_text", "image_caption"))
    assert {"history/image-text", "weight/sample", "duplicate_captions"} <= method.statistics.keys()


def test_first_captions_against_the_others_of_real_pictures(shared_data):
    """COCO's five captions of a picture, without kinds: the first is the text, one of the others the caption."""
    table = shared_data / "images_coco_captions" / "manifest.jsonl"
    if not table.exists():
        pytest.skip(f"no COCO excerpt at {table}")
    choices = {"text": OneCaption(stop=1), "caption": OneCaption(start=1, optional=True)}
    method = alip(history_init="first_batch")
    data = DataModule(f"{table}?split=train", batch_size=8, captions=choices)
    Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(method, data)
    assert method.history.isfinite().all()
    assert method.statistics["weight/caption"] > 0
    found = evaluate_consistency(method, open_source(f"{table}?split=test"), choices, limit=16, resamples=2)
    assert found.metrics["without_caption"] == 0


def test_the_history_stays_float32_in_a_half_precision_model(captioned):
    method = alip().bfloat16()
    for _ in range(2):
        method.losses({name: torch.ones(6, 4) for name in ("image", "text", "caption")}, captioned)
    assert method.history.dtype == torch.float32


def test_released_names_load_and_export(tmp_path):
    released = alip()
    config, weights = to_open_clip(released)
    assert "history" not in weights
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "ALIP_YFCC15M_B32.pt")
    method = ALIP.from_open_clip(config, tmp_path / "ALIP_YFCC15M_B32.pt", tokenizer=ClipTokenizer(16))
    assert torch.equal(method.history, torch.ones(3))
    text = ["a dog", "two cats"]
    torch.testing.assert_close(method.encode("text", text).pooled, released.eval().encode("text", text).pooled)
