"""Sparse convolutions: equal to dense ones in values and gradients, in any order of sites; and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv3d, conv_transpose3d

from collimate.checkpoints.files import CheckpointError
from collimate_3d.sparse import (
    SiteNorm,
    SparseConv3d,
    SparseInverseConv3d,
    SparseSequential,
    SparseVoxels,
    SubmanifoldConv3d,
    VoxelSites,
    fitted_weights,
)

SHAPE = (5, 6, 7)
CLOUDS = 2


def voxels(count=60, channels=3, shape=SHAPE, seed=0, dtype=torch.float64) -> SparseVoxels:
    generator = torch.Generator().manual_seed(seed)
    depth, height, width = shape
    cells = torch.randperm(CLOUDS * depth * height * width, generator=generator)[:count]
    coords = torch.stack(
        [cells // (depth * height * width), cells // (height * width) % depth, cells // width % height, cells % width],
        1,
    )
    features = torch.randn(count, channels, generator=generator, dtype=dtype)
    return SparseVoxels.build(features, coords, shape, CLOUDS)


def dense_kernel(layer) -> torch.Tensor:
    return layer.weight.permute(0, 4, 1, 2, 3)


def occupied(found: SparseVoxels) -> torch.Tensor:
    return found.with_features(torch.ones_like(found.features[:, :1])).dense()


counts = st.integers(0, 120)
kernels = st.tuples(*[st.sampled_from([1, 3]) for _ in range(3)])
extents = st.tuples(st.integers(3, 6), st.integers(3, 6), st.integers(3, 6))


@given(counts, kernels, extents)
@settings(max_examples=30, deadline=None)
def test_submanifold_equals_dense_where_sites_are(count, kernel, shape):
    given = voxels(min(count, CLOUDS * shape[0] * shape[1] * shape[2]), shape=shape)
    layer = SubmanifoldConv3d(3, 4, kernel).double()
    found = layer(given)
    padding = [extent // 2 for extent in kernel]
    expected = conv3d(given.dense(), dense_kernel(layer), padding=padding) * occupied(given)
    assert found.sites is given.sites
    torch.testing.assert_close(found.dense(), expected)


@given(counts, st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 2)] * 3), st.integers(0, 1), extents)
@settings(max_examples=40, deadline=None)
def test_strided_equals_dense_and_has_a_site_wherever_a_window_holds_one(count, kernel, stride, padding, shape):
    given = voxels(min(count, CLOUDS * shape[0] * shape[1] * shape[2]), shape=shape)
    layer = SparseConv3d(3, 4, kernel, stride, padding).double()
    found = layer(given)
    expected = conv3d(given.dense(), dense_kernel(layer), stride=stride, padding=padding)
    touched = conv3d(occupied(given), torch.ones(1, 1, *kernel, dtype=torch.float64), stride=stride, padding=padding)
    assert found.shape == tuple(expected.shape[2:])
    torch.testing.assert_close(found.dense(), expected)
    assert torch.equal(occupied(found) > 0, touched > 0.5)
    assert bool((found.sites.keys.diff() > 0).all())


def test_gradients_equal_those_of_dense_convolutions():
    given = voxels()
    for layer, padding in ((SubmanifoldConv3d(3, 4, bias=True), 1), (SparseConv3d(3, 4, 3, 2, 1, bias=True), 1)):
        layer = layer.double()
        stride = getattr(layer, "stride", 1)
        features = given.features.clone().requires_grad_()
        found = layer(given.with_features(features))
        (found.features**3).sum().backward()
        got = [features.grad.clone(), layer.weight.grad.clone(), layer.bias.grad.clone()]
        layer.zero_grad()
        features.grad = None
        dense = conv3d(
            given.with_features(features).dense(), dense_kernel(layer), layer.bias, stride=stride, padding=padding
        )
        (dense**3 * occupied(found)).sum().backward()
        for one, two in zip(got, (features.grad, layer.weight.grad, layer.bias.grad), strict=True):
            torch.testing.assert_close(one, two)


def test_inverse_equals_the_transposed_convolution_at_the_old_sites():
    given = voxels()
    down, up = SparseConv3d(3, 4, 3, 2, 1).double(), SparseInverseConv3d(4, 5, 3, 2, 1).double()
    coarse = down(given)
    found = up(coarse, given.sites)
    kernel = up.weight.permute(4, 0, 1, 2, 3)
    rest = [SHAPE[i] - ((coarse.shape[i] - 1) * 2 - 2 + 3) for i in range(3)]
    expected = conv_transpose3d(coarse.dense(), kernel, stride=2, padding=1, output_padding=rest)
    assert found.sites is given.sites
    torch.testing.assert_close(found.dense(), expected * occupied(given))


def test_inverse_refuses_voxels_of_elsewhere():
    given, other = voxels(), voxels(seed=1)
    up = SparseInverseConv3d(4, 5, 3, 2, 1).double()
    elsewhere = SparseConv3d(3, 4, 3, 2, 1).double()(other)
    with pytest.raises(ValueError, match="not what a convolution of kernel"):
        up(elsewhere, given.sites)


def test_the_order_of_voxels_does_not_matter():
    given = voxels()
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(3))
    again = SparseVoxels.build(given.features[order], given.coords[order], SHAPE, CLOUDS)
    assert torch.equal(again.coords, given.coords)
    assert torch.equal(again.features, given.features)


def test_clouds_do_not_see_each_other():
    given = voxels()
    second = given.coords[:, 0] == 1
    changed = given.with_features(torch.where(second[:, None], given.features, 0.0))
    for layer in (SubmanifoldConv3d(3, 4).double(), SparseConv3d(3, 4, 3, 2, 1).double()):
        one, two = layer(given), layer(changed)
        kept = one.cloud == 1
        assert torch.equal(one.features[kept], two.features[kept])
        assert not torch.equal(one.features[~kept], two.features[~kept])


def test_rulebooks_are_made_once_for_a_resolution():
    given = voxels()
    assert given.sites.submanifold((3, 3, 3)) is given.with_features(given.features * 2).sites.submanifold((3, 3, 3))
    layers = SparseConv3d(3, 4, 3, 2, 1).double(), SparseConv3d(3, 5, 3, 2, 1).double()
    assert layers[0](given).sites is layers[1](given).sites


def test_find_tells_which_site_lies_where():
    given = voxels()
    assert torch.equal(given.sites.find(given.coords), torch.arange(len(given)))
    empty = (occupied(given)[:, 0] == 0).nonzero()
    assert bool((given.sites.find(empty) == -1).all())
    outside = torch.tensor([[0, 0, 0, -1], [0, 0, 0, SHAPE[2]], [CLOUDS, 0, 0, 0], [-1, 4, 5, 6]])
    assert given.sites.find(outside).tolist() == [-1] * 4


def test_sums_are_float32_under_autocast():
    """Of 256 and 26 times 1, a sum in bfloat16, whose steps there are 2, would lose every other one."""
    given = SparseVoxels.build(torch.ones(27, 1), (torch.ones(1, 3, 3, 3) > 0).nonzero(), (3, 3, 3), 1)
    layer = SubmanifoldConv3d(1, 1)
    torch.nn.init.ones_(layer.weight)
    with torch.no_grad():
        layer.weight[0, 0, 0, 0, 0] = 256
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(given).features
    assert found.dtype == torch.bfloat16
    assert found[13].item() == 256 + 26
    found.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_nothing_is_kept_of_what_was_gathered():
    """The backward pass holds inputs and kernels, not one row for each pair."""
    given = voxels(200, channels=16, dtype=torch.float32)
    layer, kept = SubmanifoldConv3d(16, 16), []
    features = given.features.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        layer(given.with_features(features))
    assert sum(kept) <= features.numel() + layer.weight.numel()
    assert sum(given.sites.submanifold((3, 3, 3)).counts) * 16 > 4 * features.numel()


@pytest.mark.parametrize("count", [0, 1])
def test_empty_clouds_and_single_voxels_pass_in_training(count):
    given = voxels(count, dtype=torch.float32)
    network = SparseSequential(
        SubmanifoldConv3d(3, 4), SiteNorm(4), torch.nn.ReLU(), SparseConv3d(4, 5, 3, 2, 1), SiteNorm(5)
    )
    found = network.train()(given.with_features(given.features.requires_grad_()))
    assert found.batch_size == CLOUDS
    assert found.maxima().shape == found.means().shape == (CLOUDS, 5)
    found.dense().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in network.parameters())


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ([[0, 0, 0, 7]], "outside the 2 clouds"),
        ([[2, 0, 0, 0]], "outside the 2 clouds"),
        ([[0, -1, 0, 0]], "outside the 2 clouds"),
        ([[0, 1, 1, 1], [0, 1, 1, 1]], "given twice"),
    ],
)
def test_voxels_that_cannot_be_are_refused(coords, message):
    with pytest.raises(ValueError, match=message):
        SparseVoxels.build(torch.zeros(len(coords), 3), torch.tensor(coords), SHAPE, CLOUDS)


def test_misfits_are_refused():
    given = voxels(dtype=torch.float32)
    with pytest.raises(ValueError, match="do not fit a weight"):
        SubmanifoldConv3d(4, 4)(given)
    with pytest.raises(ValueError, match="needs a kernel with a centre"):
        SubmanifoldConv3d(3, 4, 2)(given)
    with pytest.raises(ValueError, match="too small for a kernel"):
        SparseConv3d(3, 4, (7, 1, 1))(given)
    with pytest.raises(ValueError, match="3 feature vectors for 60 sites"):
        given.with_features(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="too large to be numbered"):
        SparseVoxels.build(torch.zeros(0, 3), torch.zeros(0, 4), (2**21, 2**21, 2**21), 2)


def test_weights_of_neither_layout_are_refused():
    layer = SubmanifoldConv3d(3, 4)
    with pytest.raises(CheckpointError, match="other widths"):
        fitted_weights(torch.nn.Sequential(layer), {"0.weight": torch.zeros(4, 3, 3, 3, 5)})


def test_spconv_stands_in():
    pytest.importorskip("spconv", reason="spconv is not installed")
    given = voxels(dtype=torch.float32)
    pairs = [
        (SubmanifoldConv3d(3, 4, bias=True), SubmanifoldConv3d(3, 4, bias=True, backend="spconv")),
        (SparseConv3d(3, 4, 3, 2, 1), SparseConv3d(3, 4, 3, 2, 1, backend="spconv")),
    ]
    for ours, theirs in pairs:
        theirs.load_state_dict(ours.state_dict())
        with torch.no_grad():
            for _ in range(2):  # with pairs that are new, and known
                one, two = ours(given), theirs(given)
                assert torch.equal(one.coords, two.coords)
                torch.testing.assert_close(one.features, two.features, atol=1e-5, rtol=1e-5)


def test_backends_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="'torch' or 'spconv'"):
        SubmanifoldConv3d(3, 4, backend="cuda")


def test_sites_count_clouds_without_voxels():
    sites = VoxelSites(torch.tensor([3]), (1, 2, 2), 3)
    found = SparseVoxels(torch.ones(1, 2), sites)
    assert found.dense().shape == (3, 2, 1, 2, 2)
    assert found.means().tolist() == [[1, 1], [0, 0], [0, 0]]
