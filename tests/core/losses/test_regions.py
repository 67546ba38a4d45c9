"""The contrast of regions with their texts: the equations, the filter, empty ranks, and all of it across ranks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from collimate import distributed
from collimate.kernels import tiles
from collimate.losses import box_loss, region_losses, region_text_loss
from collimate.losses.regions import different_texts, kept_share, share_with_regions
from collimate.testing import assert_close, assert_same_on_ranks, assert_saved_memory_below, oracles, run_on_ranks

SCALE = {"scale": torch.tensor(9.0)}


def draw(seed, size, repeats=True, dtype=torch.float32):
    """Regions, and texts of which some nearly repeat others."""
    generator = torch.Generator().manual_seed(seed)
    region, text = torch.randn(2, size, 6, generator=generator, dtype=dtype)
    if repeats and size > 2:
        text[size // 2 :] = text[: size - size // 2] + 0.05 * text[size // 2 :]
    return {"region": region + text, "text": text}


def added(region, text, scale):
    return region_text_loss(region, text, scale)


def dense(region, text, scale, similar=0.9):
    cosines = oracles.cosines(text, text)
    keep = (cosines <= similar) | torch.eye(len(text), dtype=torch.bool)
    return oracles.symmetric_info_nce(region, text, scale, keep=keep)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 2**16), st.integers(1, 17), st.integers(1, 5), st.integers(1, 5))
def test_it_is_the_equation_whatever_the_tiles(seed, size, height, width):
    inputs = {**draw(seed, size, dtype=torch.float64), "scale": torch.tensor(9.0, dtype=torch.float64)}
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CPU_TILE", (height, width))
        for loss in (added, dense):
            leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
            value = loss(**leaves)
            gradients = torch.autograd.grad(value, list(leaves.values()))
            results.append({"loss": value, **dict(zip(leaves, gradients, strict=True))})
    assert_close(*results, 1e-9, "tiled against dense")


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 2**16), st.integers(1, 17))
def test_the_filter_is_symmetric_and_keeps_every_true_pair(seed, size):
    everyone = slice(0, size)
    keep = different_texts(draw(seed, size)["text"], 0.9)(everyone, everyone)
    assert keep.diagonal().all()
    assert torch.equal(keep, keep.T)
    if size > 3:
        assert not keep[0, size // 2]  # nearly the same words


def test_one_text_for_all_leaves_no_negative():
    rows = draw(0, 5)
    same = rows["text"][:1].expand(5, -1).clone().requires_grad_()
    loss = region_text_loss(rows["region"].requires_grad_(), same, 9.0)
    loss.backward()
    assert loss == 0
    assert (rows["region"].grad == 0).all()
    assert kept_share(same) == 0
    assert region_text_loss(rows["region"], same, 9.0, similar=None) > 1


def test_the_filter_carries_no_gradient():
    assert not different_texts(draw(0, 4)["text"].requires_grad_(), 0.9).key_texts.requires_grad


def test_the_kept_share_by_hand(monkeypatch):
    text = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=1)  # the first two are alike
    monkeypatch.setattr("collimate.losses.regions.ROWS", 2)
    assert kept_share(text) == pytest.approx(4 / 6)
    assert kept_share(text[:1]).isnan()
    assert kept_share(text[:0]).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradients_are_those_of_one_process(dtype):
    """Unequal counts, and ranks without any region."""
    rows = draw(3, 13, dtype=dtype)
    splits = [[5, 8], [13, 0], [0, 6, 7], [1, 0, 12], [4, 4, 5]]
    assert_same_on_ranks(added, rows, {"scale": SCALE["scale"].to(dtype)}, splits=splits, tolerance=1e-5)


def grounding(found, boxes):
    return box_loss(found, boxes)


def test_boxes_are_averaged_over_all_ranks():
    found, boxes = torch.rand(2, 11, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(box_loss(found, boxes), ((found - boxes) ** 2).mean())
    assert_same_on_ranks(grounding, {"found": found, "boxes": boxes}, splits=[[4, 7], [11, 0], [0, 1, 10]])


def padded(region, text, found, boxes, given, scale):
    return sum(region_losses(region, text, given, scale, found, boxes))


def test_unequal_regions_a_picture_are_exact_across_ranks():
    """Padded rows, pictures without a region, and ranks of which no picture has one."""
    draw = torch.Generator().manual_seed(0)
    rows = dict(zip(("region", "text"), torch.randn(2, 7, 3, 6, generator=draw), strict=True))
    rows["text"][5] = rows["text"][0]
    rows |= dict(zip(("found", "boxes"), torch.rand(2, 7, 3, 4, generator=draw), strict=True))
    rows["given"] = torch.arange(3) < torch.tensor([3, 1, 0, 0, 2, 3, 1])[:, None]
    leaves = {name: each.clone().requires_grad_() for name, each in rows.items() if name != "given"}
    padded(**leaves, given=rows["given"], **SCALE).backward()
    assert all((leaf.grad[~rows["given"]] == 0).all() for leaf in leaves.values())
    splits = [[3, 4], [2, 2, 3], [7, 0], [1, 5, 1], [2, 1, 4]]
    assert_same_on_ranks(padded, rows, SCALE, splits=splits, tolerance=1e-5)


def test_the_added_losses_are_their_parts_times_the_share():
    rows, given = draw(0, 6), torch.tensor([[True, True], [False, False], [True, False]])
    region, text = (value.view(3, 2, -1) for value in rows.values())
    found, boxes = torch.rand(2, 3, 2, 4)
    losses = region_losses(region, text, given, 9.0, found, boxes)
    expected = 2 / 3 * added(region[given], text[given], 9.0), 2 / 3 * box_loss(found[given], boxes[given])
    torch.testing.assert_close(tuple(losses), expected)
    assert region_losses(region, text, given, 9.0).grounding is None


def no_regions(features):
    features.requires_grad_()
    some = features[:0]
    loss = region_text_loss(some, some, torch.tensor(9.0)) + box_loss(some[:, :4], some[:, :4])
    loss.backward()
    return loss.detach(), features.grad


def test_without_regions_it_is_an_exact_zero_tied_to_the_graph():
    for loss, gradient in [no_regions(torch.rand(3, 6)), *run_on_ranks(no_regions, [(torch.rand(3, 6),)] * 2)]:
        assert loss == 0
        assert torch.equal(gradient, torch.zeros(3, 6))


def share(given):
    return share_with_regions(given)


def test_the_share_of_images_counts_those_of_all_ranks():
    given = torch.tensor([[1, 1], [0, 0], [1, 0], [0, 0], [0, 1]], dtype=torch.bool)
    assert share(given) == pytest.approx(3 / 5)
    assert share(given[:0]) == 0
    assert run_on_ranks(share, [(given[:4],), (given[4:],)]) == [pytest.approx(3 / 5)] * 2


def test_ranks_may_be_apart():
    rows = draw(1, 6)
    assert region_text_loss(**rows, logit_scale=9.0, group=distributed.LOCAL) == added(**rows, **SCALE)


def test_no_pairs_are_kept_for_backward():
    rows = {name: value.requires_grad_() for name, value in draw(0, 512).items()}
    assert_saved_memory_below(512 * 512, lambda: added(**rows, **SCALE), existing=list(rows.values()))


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="3 queries cannot be paired with 2 keys"):
        region_text_loss(torch.zeros(3, 5), torch.zeros(2, 5), 1.0, None)
    with pytest.raises(ValueError, match=r"Boxes are \(regions, 4\)"):
        box_loss(torch.zeros(3, 4), torch.zeros(2, 4))
