"""DreamLIP: its losses against dense oracles, on ranks and in chunks; sub-captions that are equal, alone or missing."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

import collimate
from collimate.checkpoints import save
from collimate.checkpoints.open_clip import to_open_clip
from collimate.encoders import LinearProjection, OpenClipImageEncoder, OpenClipTextEncoder, TimmImageEncoder
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.testing import assert_cached_equals_full, assert_same_on_ranks
from collimate.training import Optimization
from collimate_vision_language import CLIP, DreamLIP, SigLIP
from collimate_vision_language.dreamlip import (
    batch_grouping_loss,
    grouped_patches,
    grouping_weights,
    multi_positive_loss,
    per_image_grouping_loss,
    sub_caption_ids,
)

B, K, M, D = 7, 3, 5, 6
GROUPINGS = {"per_image": per_image_grouping_loss, "batch": batch_grouping_loss}


def dreamlip(**given):
    torch.manual_seed(0)
    parts = {
        "image_encoder": OpenClipImageEncoder(width=64, layers=2, image_size=32, patch_size=8),
        "text_encoder": OpenClipTextEncoder(width=64, heads=2, layers=2),
        "image_processor": ImageProcessor(32),
        "tokenizer": ClipTokenizer(12),
        "embed_dim": 32,
    }
    return DreamLIP(**{**parts, **given})


TEXTS = [["a dog", "it sits", "it is red"], ["a cat", "a cat", "it is grey"], ["rain", "rain", "rain"], ["1", "2", "3"]]


def make_batch():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    tokenizer = ClipTokenizer(12)
    return {"image": images, "text": torch.stack([tokenizer.batch(own) for own in TEXTS])}


def features():
    draw = torch.Generator().manual_seed(0)
    image, text = torch.randn(B, D, generator=draw), torch.randn(B, K, D, generator=draw)
    ids = torch.tensor([[0, 1, 2], [0, 0, 2], [0, 0, 0], [0, 1, 0], [0, 1, 2], [0, 1, 1], [0, 1, 2]])
    return {"image": image, "text": text, "patches": torch.randn(B, M, D, generator=draw), "ids": ids}


SCALE = {"scale": torch.tensor(9.0)}


def multi_positive(image, text, patches, ids, scale):
    return multi_positive_loss(image, text, scale)


def per_image(image, text, patches, ids, scale):
    return per_image_grouping_loss(grouped_patches(grouping_weights(text, patches), patches), text, scale, ids)


def batch(image, text, patches, ids, scale):
    return batch_grouping_loss(grouped_patches(grouping_weights(text, patches), patches), text, scale, ids)


@pytest.mark.parametrize("loss", [multi_positive, per_image, batch])
def test_value_and_gradients_are_those_of_one_process(loss):
    assert_same_on_ranks(loss, features(), SCALE, tolerance=1e-5)


@pytest.mark.parametrize("loss", [multi_positive, per_image, batch])
def test_the_order_of_images_and_of_sub_captions_does_not_matter(loss):
    given = features()
    expected = loss(**given, **SCALE)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(**{name: value[order] for name, value in given.items()}, **SCALE), expected)
    if loss is multi_positive:  # an image meets the others' k-th sub-captions: only a common order leaves it the same
        permuted = {**given, "text": given["text"][:, [2, 0, 1]]}
    else:
        text, ids = given["text"].clone(), given["ids"].clone()
        text[3], ids[3] = text[3, [2, 0, 1]], ids[3, [2, 0, 1]]
        permuted = {**given, "text": text, "ids": ids}
    torch.testing.assert_close(loss(**permuted, **SCALE), expected)


def test_multi_positive_contrast_written_out():
    image, text = (normalize(features()[name].double(), dim=-1) for name in ("image", "text"))
    logits = 9.0 * torch.einsum("id,jkd->kij", image, text)
    own = torch.arange(B).expand(K, B)
    expected = (cross_entropy(logits.mT, own) + cross_entropy(logits, own)) / 2
    torch.testing.assert_close(multi_positive_loss(image, text, 9.0), expected)


def grouped(normalization="minmax", sigma=None):
    given = {name: value.double() for name, value in features().items() if name != "ids"}
    text, patches = given["text"], given["patches"]
    return grouped_patches(grouping_weights(text, patches, sigma, normalization), patches), text


@pytest.mark.parametrize("normalization", ["minmax", "softmax"])
@pytest.mark.parametrize("sigma", [None, 0.0, 0.1])
def test_grouping_written_out(normalization, sigma):
    found, text = grouped(normalization, sigma)
    patches = normalize(features()["patches"].double(), dim=-1)
    for i in range(B):
        for k in range(K):
            weights = patches[i] @ normalize(text[i, k], dim=0)
            if normalization == "minmax":
                weights = (weights - weights.min()) / (weights.max() - weights.min())
            else:
                weights = weights.softmax(0)
            weights[weights < (1 / M if sigma is None else sigma)] = 0
            torch.testing.assert_close(found[i, k], normalize(weights @ patches[i], dim=0))
    logits = torch.einsum("ikd,ild->ikl", found, normalize(text, dim=-1)) * 9.0
    own = torch.arange(K).expand(B, K)
    expected = (cross_entropy(logits, own) + cross_entropy(logits.mT, own)) / 2
    torch.testing.assert_close(per_image_grouping_loss(found, text, 9.0), expected)


def test_equal_sub_captions_are_no_negatives_of_each_other():
    found, text = grouped()
    text[0, 1] = text[0, 0]
    ids = torch.tensor([[0, 0, 2]])
    masked = per_image_grouping_loss(found[:1], text[:1], 9.0, ids)
    assert masked < per_image_grouping_loss(found[:1], text[:1], 9.0)
    # The two equal ones meet but themselves and the third, which meets both.
    logits = 9.0 * found[0] @ normalize(text[0], dim=-1).T
    third = (logits[:, 2].logsumexp(0) + logits[2].logsumexp(0)) / 2 - logits[2, 2]
    halves = [(logits[k, [k, 2]].logsumexp(0) + logits[[k, 2], k].logsumexp(0)) / 2 - logits[k, k] for k in (0, 1)]
    torch.testing.assert_close(masked, (third + sum(halves)) / 3)
    assert per_image_grouping_loss(found, text, 9.0, torch.zeros(B, K, dtype=torch.int64)) == 0


def test_ids_are_the_first_place_of_equal_tokens():
    tokens = torch.tensor([[[1, 2], [1, 3], [1, 2]], [[1, 2], [1, 2], [1, 2]], [[5, 0], [0, 5], [5, 5]]])
    assert sub_caption_ids(tokens).tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 2]]


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_one_sub_caption_is_clip_without_grouping(grouping):
    given = features()
    image, text = given["image"], given["text"][:, :1].requires_grad_()
    torch.testing.assert_close(
        multi_positive_loss(image, text, 9.0), collimate.losses.clip_loss(image, text[:, 0], torch.tensor(9.0))
    )
    found = grouped_patches(grouping_weights(text, given["patches"]), given["patches"])
    loss = GROUPINGS[grouping](found, text, 9.0, torch.zeros(B, 1, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss, text)
    assert (loss == 0) == (grouping == "per_image")
    assert (gradient == 0).all() == (grouping == "per_image")


@pytest.mark.parametrize("normalization", ["minmax", "softmax"])
@pytest.mark.parametrize("sigma", [None, 0.0, 0.5])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_patches_that_are_all_equally_near_weigh_equally(normalization, sigma, count):
    text = torch.randn(2, K, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    patches = torch.randn(2, 1, D).expand(2, count, D).clone().requires_grad_()
    weights = grouping_weights(text, patches, sigma, normalization)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / count))
    per_image_grouping_loss(grouped_patches(weights, patches), text, 9.0).backward()
    assert text.grad.isfinite().all()
    assert patches.grad.isfinite().all()


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_gradient_cache_changes_nothing(grouping):
    method, given = dreamlip(grouping=grouping), make_batch()

    def loss(chunk):
        method.gradient_cache = chunk
        return method.total_loss(method.loss_terms(given))

    assert_cached_equals_full(lambda: loss(None), lambda: loss(3), dict(method.named_parameters()), tolerance=1e-5)


def test_the_methods_terms_are_its_losses():
    method, given = dreamlip(), make_batch()
    terms = method.loss_terms(given)
    image, patches = (getattr(method.encode("image", given["image"]), name) for name in ("pooled", "tokens"))
    text = torch.stack([method.encode("text", own).pooled for own in given["text"]])
    found = grouped_patches(grouping_weights(text, patches), patches)
    scale, ids = method.logit_scale.exp(), torch.tensor([[0, 1, 2], [0, 0, 2], [0, 0, 0], [0, 1, 2]])
    assert set(terms) == {"multi_positive", "grouping"}
    torch.testing.assert_close(terms["multi_positive"], multi_positive_loss(image, text, scale))
    torch.testing.assert_close(terms["grouping"], per_image_grouping_loss(found, text, scale, ids))
    assert patches.shape == (4, 16, 32)
    method.total_loss(terms).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_the_map_is_the_weights_of_every_image_with_every_text():
    method, given = dreamlip(sigma=0.1), make_batch()
    image, text = method.encode("image", given["image"]), method.encode("text", given["text"][:3, 0])
    maps = method.localization_map(image, text)
    assert maps.shape == (4, 3, 16)
    for i in range(4):
        for t in range(3):
            one = grouping_weights(text.pooled[t].view(1, 1, -1), image.tokens[i, None], 0.1)
            torch.testing.assert_close(maps[i, t], one[0, 0])


def test_texts_without_a_dimension_of_sub_captions_are_one_each():
    method, given = dreamlip(), make_batch()
    one, several = ({**given, "text": given["text"][:, first]} for first in (0, slice(1)))
    torch.testing.assert_close(method.loss_terms(one), method.loss_terms(several))
    clip = CLIP(**clip_parts(method))
    torch.testing.assert_close(method.loss_terms(one)["multi_positive"], clip.loss_terms(one)["clip"])
    assert method.loss_terms(one)["grouping"] == 0


def clip_parts(method):
    return {
        "image_encoder": method.encoders["image"],
        "text_encoder": method.encoders["text"],
        "image_processor": method.processors["image"],
        "tokenizer": method.processors["text"],
        "image_projection": method.projections["image"],
        "text_projection": method.projections["text"],
    }


def test_an_encoder_without_tokens_is_told():
    method = dreamlip(image_encoder=TimmImageEncoder("mobilenetv3_small_050"))
    with pytest.raises(ValueError, match="TimmImageEncoder has no tokens"):
        method.loss_terms(make_batch())


def test_training_finds_pairs_and_patches():
    method, given = dreamlip(), make_batch()
    before = {name: term.item() for name, term in method.loss_terms(given).items()}
    optimizer = Optimization(lr=1e-3, warmup=0, schedule="constant").optimizer(method)
    for _ in range(20):
        optimizer.zero_grad()
        method.total_loss(method.loss_terms(given)).backward()
        optimizer.step()
        method.after_optimizer_step()
    after = method.loss_terms(given)
    assert all(after[name] < 0.5 * before[name] for name in before)


@pytest.mark.parametrize(("start", "end"), [(200.0, 100.0), (0.5, 1.0)])
def test_both_scales_are_clamped(start, end):
    method = dreamlip(init_logit_scale=start)
    method.after_optimizer_step()
    assert method.logit_scale.exp().item() == pytest.approx(end)
    assert method.local_logit_scale.exp().item() == pytest.approx(end)
    assert dreamlip().local_logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_a_folder_gives_back_the_method(tmp_path):
    method = dreamlip(grouping="batch", sigma=0.2, normalization="softmax", local_projection=LinearProjection(64, 32))
    save(method.eval(), tmp_path / "model")
    again = collimate.load(tmp_path / "model")
    assert again.config() == method.config()
    torch.testing.assert_close(again.loss_terms(make_batch()), method.loss_terms(make_batch()))


def test_released_weights_load_with_or_without_what_the_grouping_needs():
    method = dreamlip().eval()
    config, weights = to_open_clip(method)  # plain CLIP: the grouping has no place there
    assert not any("local" in name or "proj2" in name for name in weights)
    processors = {"image_processor": ImageProcessor(32), "tokenizer": ClipTokenizer(12)}
    images, texts = make_batch()["image"], make_batch()["text"][:, 0]
    local = {"visual.proj2": torch.randn(64, 32), "logit_scale_local": torch.tensor([1.5])}
    for kind, extra in [(DreamLIP, {}), (DreamLIP, local), (CLIP, local), (SigLIP, local)]:
        loaded = kind.from_open_clip(config, weights | extra, **processors)
        torch.testing.assert_close(loaded.encode("image", images).pooled, method.encode("image", images).pooled)
        torch.testing.assert_close(loaded.encode("text", texts).pooled, method.encode("text", texts).pooled)
        if kind is DreamLIP and extra:
            assert torch.equal(loaded.local_projection.linear.weight, local["visual.proj2"].T)
            assert loaded.local_logit_scale == 1.5
