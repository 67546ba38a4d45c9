"""The tiled losses are the dense equations, whatever the tiles, and have the symmetries of the equations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate.kernels import tiles
from collimate.losses import (
    Leading,
    Mixture,
    Paired,
    SharedLabels,
    Softened,
    Weights,
    clip_loss,
    info_nce,
    info_nce_losses,
    siglip_loss,
    sigmoid_contrast,
    supcon_loss,
    symmetric_info_nce,
    symmetric_info_nce_losses,
)
from collimate.losses.negatives import given_keys
from collimate.testing import assert_close, assert_saved_memory_below, oracles

quick = settings(deadline=None, max_examples=25, derandomize=True)
seeds = st.integers(0, 2**16)
batches = st.integers(1, 17)


def draw(seed, *shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE", (3, 4))


def agree(actual, expected, inputs, tolerance=1e-9):
    """Both losses, functions of the same inputs, agree in value and in every gradient."""

    def found(loss):
        leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
        value = loss(**leaves)
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        zeros = (torch.zeros_like(leaf) for leaf in leaves.values())
        named = {k: z if g is None else g for k, g, z in zip(leaves, gradients, zeros, strict=True)}
        return {"loss": value.detach(), **named}

    assert_close(found(actual), found(expected), tolerance, "tiled against dense")


@quick
@given(seeds, batches, st.integers(1, 9), st.integers(1, 9), st.floats(0.0, 1000.0))
def test_tiles_of_any_size_give_the_dense_loss(seed, batch, height, width, scale):
    image, text = draw(seed, (batch, 5), (batch, 5))
    inputs = {"image": image, "text": text, "logit_scale": torch.tensor(scale, dtype=torch.float64)}
    biased = inputs | {"logit_bias": torch.tensor(-scale / 2, dtype=torch.float64)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CPU_TILE", (height, width))
        agree(clip, oracles.clip_loss, inputs, tolerance=1e-8)
        agree(siglip, oracles.siglip_loss, biased, tolerance=1e-8)


def clip(image, text, logit_scale):
    return clip_loss(image, text, logit_scale)


def siglip(image, text, logit_scale, logit_bias):
    return siglip_loss(image, text, logit_scale, logit_bias)


@quick
@given(seeds, batches, batches)
def test_any_targets_weights_and_masks_give_the_dense_loss(seed, queries, keys):
    query, key, targets, kept = draw(seed, (queries, 5), (keys, 5), (queries, keys), (queries, keys))
    targets, kept = targets.clamp_min(0), kept > -0.7
    kept[:, 0] = True
    kept[0] = True
    inputs = {"query": query, "key": key, "scale": torch.tensor(7.0, dtype=torch.float64)}
    agree(
        lambda query, key, scale: symmetric_info_nce(query, key, scale, targets=Weights(targets), mask=kept),
        lambda query, key, scale: oracles.symmetric_info_nce(query, key, scale, targets, keep=kept),
        inputs,
    )
    agree(
        lambda query, key, scale: sigmoid_contrast(query, key, scale, -2.0, targets=Weights(targets)),
        lambda query, key, scale: oracles.sigmoid_contrast(query, key, scale, -2.0, targets),
        inputs,
    )


@quick
@given(seeds, batches)
def test_ids_take_out_the_pairs_of_equal_id_but_not_the_own_pair(seed, batch):
    image, text, weights = draw(seed, (batch, 5), (batch, 5), (batch,))
    ids = torch.arange(batch) % 3
    kept = (ids[:, None] != ids) | torch.eye(batch, dtype=torch.bool)
    inputs = {"image": image, "text": text, "scale": torch.tensor(7.0, dtype=torch.float64)}
    agree(
        lambda image, text, scale: clip_loss(image, text, scale, ids=ids, weights=weights),
        lambda image, text, scale: oracles.symmetric_info_nce(image, text, scale, keep=kept, weights=weights),
        inputs,
    )
    agree(
        lambda image, text, scale: siglip_loss(image, text, scale, -2.0, ids=ids, weights=weights),
        lambda image, text, scale: oracles.sigmoid_contrast(image, text, scale, -2.0, keep=kept, weights=weights),
        inputs,
    )


@quick
@given(seeds, batches, st.integers(1, 3))
def test_supcon_is_the_dense_loss(seed, batch, views):
    (features,) = draw(seed, (batch, views, 5))
    labels = torch.arange(batch) % 3
    agree(
        lambda features: supcon_loss(features, labels, temperature=0.2),
        lambda features: oracles.supcon_loss(features, labels, temperature=0.2),
        {"features": features},
    )


@quick
@given(seeds, batches)
def test_shared_labels_are_weights_of_equal_labels(seed, batch):
    image, text = draw(seed, (batch, 5), (batch, 5))
    rows, columns = torch.arange(batch) % 3, torch.arange(batch) % 4
    agree(
        lambda image, text: symmetric_info_nce(image, text, 7.0, targets=SharedLabels(rows, columns)),
        lambda image, text: oracles.symmetric_info_nce(image, text, 7.0, rows[:, None] == columns),
        {"image": image, "text": text},
    )


@quick
@given(seeds, batches, st.floats(0, 1))
def test_softened_targets_are_a_softmax_of_teachers_in_each_direction(seed, batch, hard):
    image, text, image_teacher, text_teacher = draw(seed, (batch, 5), (batch, 5), (batch, 3), (batch, 3))
    similarity = 6.0 * oracles.cosines(image_teacher, text_teacher)
    one_hot = torch.eye(batch, dtype=torch.float64)
    rows, columns = ((1 - hard) * s.softmax(1) + hard * one_hot for s in (similarity, similarity.T))
    agree(
        lambda image, text: symmetric_info_nce(
            image, text, 7.0, targets=Mixture(Paired(), Softened(image_teacher, text_teacher, 6.0), hard)
        ),
        lambda image, text: oracles.symmetric_info_nce(image, text, 7.0, rows, columns),
        {"image": image, "text": text},
    )


@quick
@given(seeds, batches, st.integers(1, 5))
def test_a_queue_is_further_keys(seed, batch, length):
    query, key, queue = draw(seed, (batch, 5), (batch, 5), (length, 5))
    targets = torch.eye(batch, batch + length)
    agree(
        lambda query, key, queue: info_nce(query, key, 7.0, queue=queue),
        lambda query, key, queue: oracles.info_nce(query, torch.cat([key, queue]), 7.0, targets),
        {"query": query, "key": key, "queue": queue},
    )


@quick
@given(seeds, batches, st.integers(0, 5), st.floats(0, 1))
def test_a_mixture_normalises_both_of_its_targets(seed, batch, length, share):
    """As in momentum distillation: a softmax over batch and queue, and what shares the sample's id."""
    query, key, teacher = draw(seed, (batch, 5), (batch + length, 5), (batch, 5))
    ids = torch.arange(batch) % 3
    key_ids = torch.cat([ids, torch.arange(length)])
    soft = (6.0 * oracles.cosines(teacher, key)).softmax(1)
    hard = (ids[:, None] == key_ids).double()
    wanted = share * soft + (1 - share) * hard / hard.sum(1, keepdim=True)
    mixture = Mixture(Softened(teacher, key, torch.tensor(6.0)), SharedLabels(ids, key_ids), share)
    agree(
        lambda query: info_nce(query, key, 7.0, targets=mixture),
        lambda query: oracles.info_nce(query, key, 7.0, wanted),
        {"query": query},
    )
    torch.testing.assert_close(mixture.blend(torch.eye(batch + length).double(), (batch + length,))[0], wanted)


@quick
@given(seeds, batches, st.integers(0, 5))
def test_leading_keys_are_pairs_before_a_queue(seed, batch, length):
    query, key, queue = draw(seed, (batch, 5), (batch, 5), (length, 5))
    agree(
        lambda query: info_nce(query, torch.cat([key, queue]), 7.0, targets=Leading(batch)),
        lambda query: oracles.info_nce(query, torch.cat([key, queue]), 7.0, torch.eye(batch, batch + length)),
        {"query": query},
    )


def test_a_mixture_with_a_query_without_positive_has_the_rest_alone():
    query, key = draw(0, (3, 5), (4, 5))
    nobody = SharedLabels(torch.tensor([0, 1, 9]), torch.tensor([0, 1, 1, 2]))
    blended, mass = Mixture(Leading(3), nobody, 0.25).blend(torch.eye(4).double(), (4,))
    torch.testing.assert_close(mass, torch.tensor([1, 1, 0.25]).double())
    torch.testing.assert_close(blended[1], torch.tensor([0, 0.25 + 0.375, 0.375, 0]).double())
    assert torch.isfinite(info_nce(query, key, 7.0, targets=Mixture(nobody, nobody, 0.5)))


@quick
@given(seeds, batches)
def test_a_key_that_is_not_given_is_nobodys_negative(seed, batch):
    image, text = draw(seed, (batch, 5), (batch, 5))
    there = torch.rand(batch, generator=torch.Generator().manual_seed(seed)) > 0.4
    weights = there.double() * 3
    agree(
        lambda image, text: clip_loss(image, text, 7.0, weights=weights, mask=given_keys(there)),
        lambda image, text: oracles.symmetric_info_nce(
            image, text, 7.0, keep=there | torch.eye(batch, dtype=torch.bool), weights=weights
        ),
        {"image": image, "text": text},
    )


@quick
@given(seeds, batches)
def test_the_order_of_pairs_does_not_matter(seed, batch):
    image, text = draw(seed, (batch, 5), (batch, 5))
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(clip_loss(image[order], text[order], 9.0), clip_loss(image, text, 9.0))
    torch.testing.assert_close(siglip_loss(image[order], text[order], 9.0, -3.0), siglip_loss(image, text, 9.0, -3.0))


@quick
@given(seeds, batches, st.floats(0.01, 100))
def test_lengths_of_features_do_not_matter_and_directions_swap(seed, batch, length):
    image, text = draw(seed, (batch, 5), (batch, 5))
    torch.testing.assert_close(clip_loss(length * image, text, 9.0), clip_loss(image, text, 9.0))
    losses, swapped = symmetric_info_nce_losses(image, text, 9.0), symmetric_info_nce_losses(text, image, 9.0)
    torch.testing.assert_close(losses.queries, swapped.keys)
    torch.testing.assert_close(losses.queries, info_nce_losses(image, text, 9.0))


def test_gradcheck():
    image, text, queue = (t.requires_grad_() for t in draw(0, (5, 4), (5, 4), (3, 4)))
    scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (3.0, -1.0))
    ids = torch.tensor([0, 1, 0, 2, 3])
    assert torch.autograd.gradcheck(lambda *a: clip_loss(a[0], a[1], a[2], ids=ids), (image, text, scale))
    assert torch.autograd.gradcheck(lambda *a: clip_loss(a[0], a[1], a[2], normalize=False), (image, text, scale))
    assert torch.autograd.gradcheck(
        lambda *a: info_nce_losses(a[0], a[1], a[2], queue=a[3]), (image, text, scale, queue)
    )
    assert torch.autograd.gradcheck(lambda *a: siglip_loss(*a, ids=ids), (image, text, scale, bias))
    assert torch.autograd.gradcheck(lambda *a: siglip_loss(*a, normalize=False), (image, text, scale, bias))


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_and_zero_vectors_stay_finite(scale, dtype):
    image, text = (t.to(dtype) for t in draw(0, (9, 5), (9, 5)))
    image[2], text[4] = 0, 0
    image[3] = 100 * text[3]
    for loss in (lambda i, t: clip_loss(i, t, scale), lambda i, t: siglip_loss(i, t, scale, -10.0)):
        leaves = [image.clone().requires_grad_(), text.clone().requires_grad_()]
        value = loss(*leaves)
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        for leaf in leaves:
            assert leaf.grad.isfinite().all()
            assert leaf.grad.dtype == dtype
        assert leaves[0].grad[2].eq(0).all(), "a zero vector has no direction to turn to"


def test_large_unnormalised_features_stay_finite():
    image, text = (100 * t for t in draw(0, (9, 5), (9, 5), dtype=torch.float32))
    for value in (clip_loss(image, text, 1.0, normalize=False), siglip_loss(image, text, 1.0, 0.0, normalize=False)):
        assert value.isfinite()


def test_float32_is_as_accurate_at_scale_100_as_the_dense_loss():
    image, text = draw(0, (64, 32), (64, 32))
    text += 2 * image

    def gradient(loss, dtype):
        leaf = image.to(dtype, copy=True).requires_grad_()
        loss(leaf, text.to(dtype), torch.tensor(100.0, dtype=dtype)).backward()
        return leaf.grad.double()

    def dense(image, text, scale):
        logits = scale * torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).T
        place = torch.arange(len(logits))
        cross_entropy = torch.nn.functional.cross_entropy
        return (cross_entropy(logits, place) + cross_entropy(logits.T, place)) / 2

    exact = gradient(oracles.clip_loss, torch.float64)
    ours, theirs = ((gradient(loss, torch.float32) - exact).abs().max() for loss in (clip_loss, dense))
    assert ours < 3 * theirs


def test_autocast_does_not_touch_the_arithmetic():
    image, text = (t.requires_grad_() for t in draw(0, (9, 5), (9, 5), dtype=torch.float32))
    expected = clip_loss(image, text, 50.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = clip_loss(image, text, 50.0)
    assert value == expected


def test_nothing_but_the_features_is_kept_for_backward():
    batch, width = 256, 8
    image, text = (t.requires_grad_() for t in draw(0, (batch, width), (batch, width), dtype=torch.float32))
    matrix = batch * batch * 4
    assert_saved_memory_below(matrix // 8, lambda: clip_loss(image, text, 9.0), existing=[image, text])
    assert_saved_memory_below(matrix // 8, lambda: siglip_loss(image, text, 9.0, -3.0), existing=[image, text])


def test_supcon_without_labels_is_the_two_view_contrast():
    (features,) = draw(0, (6, 2, 5))
    torch.testing.assert_close(supcon_loss(features), supcon_loss(features, torch.arange(6)))


def test_wrong_arguments_are_told():
    image, text = draw(0, (4, 5), (3, 5))
    with pytest.raises(ValueError, match="4 queries cannot be paired with 3 keys"):
        clip_loss(image, text, 1.0)
    with pytest.raises(ValueError, match="one width"):
        clip_loss(image, text[:, :2], 1.0)
    with pytest.raises(ValueError, match="spans the keys of all ranks"):
        clip_loss(image, image, 1.0, mask=torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="columns for 4 keys"):
        clip_loss(image, image, 1.0, targets=Weights(torch.ones(4, 3)))
    with pytest.raises(ValueError, match="samples, views, width"):
        supcon_loss(image)
    with pytest.raises(ValueError, match="not both"):
        supcon_loss(image[:, None], torch.arange(4), pair_weights=torch.eye(4))
