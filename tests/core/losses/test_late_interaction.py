"""Late interaction and the FILIP loss are the dense equations, whatever the blocks, masks, ranks and threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from collimate.kernels import late_interaction as kernel
from collimate.losses import (
    Paired,
    SharedLabels,
    Weights,
    filip_loss,
    late_interaction,
    select_tokens,
    symmetric_info_nce,
    symmetric_info_nce_of_scores,
)
from collimate.testing import assert_close, assert_same_on_ranks, assert_saved_memory_below, oracles

quick = settings(deadline=None, max_examples=25, derandomize=True)
seeds = st.integers(0, 2**16)
sizes = st.integers(1, 7)
WIDTH = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(kernel, "CPU_PRODUCTS", (6, 9))
    monkeypatch.setattr(kernel, "CPU_SUMS", (8, 5))
    monkeypatch.setattr(kernel, "LANES", 2)
    monkeypatch.setattr(kernel, "HELD", 12)


def draw(seed, *shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def masks(seed, *shapes):
    """Anything from a token to all of them, with holes."""
    generator = torch.Generator().manual_seed(seed + 1)
    found = []
    for shape in shapes:
        mask = torch.rand(shape, generator=generator) > torch.rand(shape[0], 1, generator=generator)
        mask[torch.arange(shape[0]), torch.randint(shape[1], shape[:1], generator=generator)] = True
        found.append(mask)
    return found


def value_and_gradients(function, inputs):
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    value = function(**leaves)
    value.backward()
    return {"value": value.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def agree(actual, expected, inputs, tolerance=1e-9):
    found, wanted = (value_and_gradients(function, inputs) for function in (actual, expected))
    assert_close(found, wanted, tolerance, "blocked against dense")


@quick
@given(seeds, sizes, sizes, sizes, sizes, st.booleans(), st.booleans(), st.integers(1, 12), st.integers(1, 12))
def test_blocks_of_any_size_give_the_dense_scores(
    seed, queries, keys, query_tokens, key_tokens, masked_queries, masked_keys, rows, columns
):
    query, key, cotangent = draw(seed, (queries, query_tokens, WIDTH), (keys, key_tokens, WIDTH), (queries, keys))
    query_mask, key_mask = masks(seed, query.shape[:2], key.shape[:2])
    query_mask, key_mask = query_mask if masked_queries else None, key_mask if masked_keys else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CPU_PRODUCTS", (rows, columns))
        patch.setattr(kernel, "CPU_SUMS", (columns, rows))
        agree(
            lambda query, key: (cotangent * late_interaction(query, key, query_mask, key_mask)).sum(),
            lambda query, key: (cotangent * oracles.late_interaction(query, key, query_mask, key_mask)).sum(),
            {"query": query, "key": key},
        )
        both = kernel.pair_late_interaction(query, key, query_mask, key_mask)
        torch.testing.assert_close(both[1], oracles.late_interaction(key, query, key_mask, query_mask))


@quick
@given(seeds, st.integers(1, 9), st.floats(0.0, 100.0))
def test_the_loss_is_the_dense_equation(seed, batch, scale):
    image, text = draw(seed, (batch, 6, WIDTH), (batch, 4, WIDTH))
    image_mask, text_mask = masks(seed, image.shape[:2], text.shape[:2])
    agree(
        lambda image, text, scale: filip_loss(image, text, scale, image_mask, text_mask),
        lambda image, text, scale: oracles.filip_loss(image, text, scale, image_mask, text_mask),
        {"image": image, "text": text, "scale": torch.tensor(scale, dtype=torch.float64)},
        tolerance=1e-8,
    )


@quick
@given(seeds, sizes, sizes)
def test_targets_ids_masks_and_weights_of_given_scores(seed, queries, keys):
    """One token a sample makes late interaction a cosine, whose contrast is known."""
    query, key, targets, kept = draw(seed, (queries, WIDTH), (keys, WIDTH), (queries, keys), (queries, keys))
    targets, kept = targets.clamp_min(0), kept > -0.7
    kept[:, 0] = True
    kept[0] = True
    inputs = {"query": query, "key": key, "scale": torch.tensor(7.0, dtype=torch.float64)}
    agree(
        lambda query, key, scale: filip_loss(query[:, None], key[:, None], scale, targets=Weights(targets), mask=kept),
        lambda query, key, scale: oracles.symmetric_info_nce(query, key, scale, targets, keep=kept),
        inputs,
    )
    rows, columns, ids = torch.arange(queries) % 3, torch.arange(keys) % 3, torch.arange(queries) % 2
    agree(
        lambda query, key, scale: filip_loss(query[:, None], key[:, None], scale, targets=SharedLabels(rows, columns)),
        lambda query, key, scale: symmetric_info_nce(query, key, scale, targets=SharedLabels(rows, columns)),
        inputs,
    )
    paired = inputs | {"key": draw(seed + 1, (queries, WIDTH))[0]}
    weights = torch.linspace(0.1, 2, queries, dtype=torch.float64)
    agree(
        lambda query, key, scale: filip_loss(query[:, None], key[:, None], scale, ids=ids, weights=weights),
        lambda query, key, scale: symmetric_info_nce(query, key, scale, ids=ids, weights=weights),
        paired,
    )


def test_the_captions_of_an_image_share_its_target():
    """The paper's fine-tuning: an image's c captions have 1/c each, a caption has its image."""
    image, text = draw(0, (3, 6, WIDTH), (6, 4, WIDTH))
    owner = torch.tensor([0, 0, 0, 1, 2, 2])
    found = filip_loss(image, text, 9.0, targets=SharedLabels(torch.arange(3), owner))
    by_image, by_text = oracles.late_interaction(image, text), oracles.late_interaction(text, image)
    captions = owner == torch.arange(3)[:, None]
    share = captions / captions.sum(1, keepdim=True)
    expected = (
        -(share * (9 * by_image).log_softmax(1)).sum(1).mean()
        - (9 * by_text).log_softmax(1)[torch.arange(6), owner].mean()
    ) / 2
    torch.testing.assert_close(found, expected)


def test_gradcheck():
    image, text = (side.requires_grad_() for side in draw(0, (4, 3, 4), (4, 5, 4)))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    image_mask, text_mask = masks(0, image.shape[:2], text.shape[:2])
    for normalized in (True, False):
        assert torch.autograd.gradcheck(
            lambda *leaves, normalized=normalized: filip_loss(*leaves, image_mask, text_mask, normalize=normalized),
            (image, text, scale),
        )


def test_what_padding_holds_does_not_matter_and_gets_no_gradient():
    image, text = draw(0, (4, 6, WIDTH), (4, 8, WIDTH), dtype=torch.float32)
    mask = torch.arange(8) < torch.tensor([[3], [8], [1], [5]])
    text[~mask] = torch.nan
    text.requires_grad_()
    with_padding = filip_loss(image, text, 9.0, text_mask=mask)
    with_padding.backward()
    assert with_padding.isfinite()
    assert text.grad[~mask].eq(0).all()
    assert text.grad[mask].isfinite().all()
    text = text.detach().masked_fill(~mask[..., None], 100.0)
    torch.testing.assert_close(filip_loss(image, text, 9.0, text_mask=mask), with_padding.detach())


def test_order_of_tokens_and_lengths_of_vectors_do_not_matter():
    image, text = draw(0, (4, 6, WIDTH), (4, 8, WIDTH))
    (mask,) = masks(0, (4, 8))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    expected = filip_loss(image, text, 9.0, text_mask=mask)
    torch.testing.assert_close(filip_loss(image, text[:, order], 9.0, text_mask=mask[:, order]), expected)
    torch.testing.assert_close(filip_loss(3 * image, text / 7, 9.0, text_mask=mask), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1000.0])
def test_half_precision_and_equal_tokens_stay_finite(dtype, scale):
    image, text = (side.to(dtype) for side in draw(0, (5, 6, WIDTH), (5, 4, WIDTH)))
    image[2], text[3] = 0, text[3, :1]
    leaves = [image.requires_grad_(), text.requires_grad_()]
    value = filip_loss(*leaves, scale)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    for leaf in leaves:
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()
    expected = oracles.filip_loss(image.detach().double(), text.detach().double(), scale)
    torch.testing.assert_close(value.detach().double(), expected, rtol=1e-4, atol=1e-4)


def test_autocast_and_inference_mode_do_not_touch_the_arithmetic():
    image, text = draw(0, (5, 6, WIDTH), (5, 4, WIDTH), dtype=torch.float32)
    expected = filip_loss(image, text, 9.0)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert filip_loss(image, text, 9.0) == expected


def test_threads_share_the_work_and_not_the_result():
    image, text = draw(0, (9, 6, WIDTH), (9, 4, WIDTH))
    (mask,) = masks(0, (9, 4))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(
                value_and_gradients(
                    lambda image, text: filip_loss(image, text, 9.0, text_mask=mask), {"image": image, "text": text}
                )
            )
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert_close(found[1], found[0], 1e-12, "three threads against one")


def test_places_are_kept_for_backward_and_not_products(monkeypatch):
    monkeypatch.undo()
    batch, patches, words = 24, 40, 30
    image, text = draw(0, (batch, patches, 8), (batch, words, 8), dtype=torch.float32)
    places = 2 * batch * batch * (patches + words)
    scores = 8 * batch * batch
    leaves = [image.requires_grad_(), text.requires_grad_()]
    assert_saved_memory_below(places + 10 * scores, lambda: filip_loss(*leaves, 9.0), existing=leaves)
    assert places + 10 * scores < 4 * batch * batch * patches * words / 20


# Selection ------------------------------------------------------------------------------------------------------


@quick
@given(seeds, sizes, sizes, st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_selection_keeps_what_is_nearest_to_any_real_token_of_the_other_side(seed, images, texts, share, other_share):
    image, text = draw(seed, (images, 7, WIDTH), (texts, 6, WIDTH))
    image_mask, text_mask = masks(seed, image.shape[:2], text.shape[:2])
    found = select_tokens(image, text, image_mask, text_mask, shares=(share, other_share))
    products = torch.einsum("ipd,jld->ijpl", normalize(image, dim=-1), normalize(text, dim=-1))
    real = image_mask[:, None, :, None] & text_mask[None, :, None]
    products = products.masked_fill(~real, -torch.inf)
    for one, tokens, mask, importance, part in (
        (found[0], image, image_mask, products.amax((1, 3)), share),
        (found[1], text, text_mask, products.amax((0, 2)), other_share),
    ):
        count = max(1, int(part * tokens.shape[1] + 1e-6))
        assert one.places.shape == (len(tokens), count)
        ranked = importance.sort(1, descending=True).values[:, :count]
        torch.testing.assert_close(importance.take_along_dim(one.places, 1), ranked)
        torch.testing.assert_close(one.tokens, tokens.take_along_dim(one.places[:, :, None], 1))
        assert torch.equal(one.mask.sum(1), mask.sum(1).clamp_max(count)), "padding comes after all that is real"


def test_the_loss_of_selected_tokens_and_where_its_gradient_goes():
    image, text = draw(0, (4, 8, WIDTH), (4, 8, WIDTH))
    (mask,) = masks(0, (4, 8))
    images, texts = select_tokens(image, text, None, mask, shares=(0.5, 0.25))
    inputs = {"image": image, "text": text}

    def selected(image, text):
        return filip_loss(image, text, 9.0, None, mask, image_share=0.5, text_share=0.25)

    def of_the_same(image, text):
        image, text = (side.take_along_dim(one.places[:, :, None], 1) for side, one in ((image, images), (text, texts)))
        return oracles.filip_loss(image, text, 9.0, None, texts.mask)

    agree(selected, of_the_same, inputs)
    gradient = value_and_gradients(selected, inputs)["image"]
    chosen = torch.zeros(4, 8, dtype=torch.bool).scatter(1, images.places, True)
    assert gradient[~chosen].eq(0).all()


# Ranks ----------------------------------------------------------------------------------------------------------

BATCH = 11


def ragged(image, text, image_mask, text_mask, scale):
    longest = int(text_mask.any(0).nonzero().max()) + 1  # each rank cuts its texts to its own longest
    return filip_loss(image, text[:, :longest], scale, image_mask, text_mask[:, :longest])


def unmasked(image, text, scale):
    return filip_loss(image, text, scale)


def with_labels_and_weights(image, text, labels, weights, scale):
    return filip_loss(image, text, scale, targets=SharedLabels(labels, labels), weights=weights)


def with_ids_and_one_target(image, text, labels, text_mask, scale):
    targets = SharedLabels(labels, labels)
    return filip_loss(image, text, scale, None, text_mask, ids=labels, targets=targets, key_targets=Paired())


def rank_rows(**further):
    image, text = draw(3, (BATCH, 6, WIDTH), (BATCH, 7, WIDTH), dtype=torch.float32)
    return {"image": image, "text": text, **further}


def rank_masks():
    image_mask, _ = masks(3, (BATCH, 6), (BATCH, 7))
    lengths = 1 + torch.arange(BATCH) * 5 % 7
    return {"image_mask": image_mask, "text_mask": torch.arange(7) < lengths[:, None]}


LABELS = {"labels": torch.arange(BATCH) % 4}
CASES = {
    ragged: rank_rows(**rank_masks()),
    unmasked: rank_rows(),
    with_labels_and_weights: rank_rows(**LABELS, weights=torch.linspace(0.1, 2, BATCH)),
    with_ids_and_one_target: rank_rows(**LABELS, text_mask=rank_masks()["text_mask"]),
}


@pytest.mark.parametrize("loss", CASES, ids=lambda loss: loss.__name__)
def test_value_and_gradients_are_those_of_one_process(loss):
    assert_same_on_ranks(loss, CASES[loss], {"scale": torch.tensor(9.0)}, tolerance=1e-5)


def test_an_empty_rank_is_exact():
    splits = [[BATCH, 0], [0, 4, BATCH - 4]]
    assert_same_on_ranks(unmasked, CASES[unmasked], {"scale": torch.tensor(9.0)}, splits=splits)


# Errors ---------------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_told():
    image, text = draw(0, (4, 6, WIDTH), (3, 4, WIDTH))
    with pytest.raises(ValueError, match="one width"):
        late_interaction(image, text[..., :2])
    with pytest.raises(ValueError, match=r"mask is \(3, 3\), the tokens are \(3, 4, 5\)"):
        late_interaction(image, text, None, torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="4 queries cannot be paired with 3 keys"):
        filip_loss(image, text, 1.0)
    with pytest.raises(ValueError, match="spans the keys of all ranks"):
        filip_loss(image, image, 1.0, mask=torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="above 0 and at most at 1"):
        select_tokens(image, text, shares=(0.0, 0.5))
    with pytest.raises(ValueError, match=r"\(n, M\) and \(M, n\)"):
        symmetric_info_nce_of_scores(image[0], text[0], 1.0)


@pytest.mark.parametrize("tokens", [3, 9])
@pytest.mark.parametrize("side", ["query", "key"])
def test_a_sample_of_padding_alone_is_told(side, tokens):
    image, text = draw(0, (4, 6 if side == "query" else tokens, WIDTH), (4, 6 if side == "key" else tokens, WIDTH))
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[2] = False
    with pytest.raises(ValueError, match=f"{side} 2 has no real token"):
        filip_loss(image, text, 1.0, **{"image_mask" if side == "query" else "text_mask": mask})
