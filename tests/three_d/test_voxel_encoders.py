"""Encoders of voxels and pillars: exact under the moves that a grid allows, equal to padded forms; and bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import collimate
from collimate.checkpoints.files import CheckpointError
from collimate_3d.bev import BEVBackbone, bev_encoding, bev_map
from collimate_3d.grid import VoxelGrid
from collimate_3d.operators import padded_voxels, voxelise_limited
from collimate_3d.pillars import PillarFeatures
from collimate_3d.points import PointBatch
from collimate_3d.sparse import SparseConvolution
from collimate_3d.sparse_unet import SparseUNet
from collimate_3d.voxel_encoder import BEVEncoder, PillarEncoder, VoxelEncoder

GRID = VoxelGrid((0, -4, -2), (8, 4, 2), (0.125, 0.125, 0.125))  # exact in float32: 32 x 64 x 64 cells
PILLARS = VoxelGrid((0, -4, -2), (8, 4, 2), (0.25, 0.25, 4.0))


def voxel_encoder(grid=GRID, **changes) -> VoxelEncoder:
    torch.manual_seed(0)
    made = VoxelEncoder(grid, **{"widths": (4, 6, 8, 8), "out_width": 8, "max_points": None, **changes})
    return awake(made)


def pillar_encoder(**changes) -> PillarEncoder:
    torch.manual_seed(0)
    return awake(PillarEncoder(PILLARS, widths=(8,), max_points=5, **changes))


def awake(encoder):
    """With statistics that are not those of an untrained network, in evaluation."""
    for module in encoder.modules():
        if hasattr(module, "running_mean"):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.bias, std=0.1)
    return encoder.eval()


def sweeps(count=120, low=(2.0, -2.0, -1.5), high=(6.0, 2.0, 1.5), seed=0) -> torch.Tensor:
    """Two sweeps (2, N, 4) in the middle of the grid, at places that are exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(low), torch.tensor(high)
    xyz = low + (high - low) * torch.rand(2, count, 3, generator=generator)
    xyz = (xyz * 256).round() / 256
    return torch.cat([xyz, torch.rand(2, count, 1, generator=generator)], -1)


def shifted(inputs, *metres):
    return inputs + torch.tensor([*metres, 0.0])


# Voxels ---------------------------------------------------------------------------------------------------------


def test_the_encoding_and_its_grid():
    made = voxel_encoder()
    found = made(sweeps())
    assert made.bev.shape == found.grid == (8, 8)
    assert made.bev.cell == (1.0, 1.0)
    assert found.tokens.shape == (2, 64, made.width)
    assert found.pooled.shape == (2, made.width)
    assert made.width % 8 == 0
    assert not bool(found.tokens[~found.token_mask].any())  # what holds no voxel is 0
    torch.testing.assert_close(found.pooled[0], found.tokens[0, found.mask[0]].mean(0))


@given(st.integers(-1, 1), st.integers(-1, 1))
@settings(max_examples=5, deadline=None)
def test_moved_by_eight_voxels_the_map_moves_by_a_cell(right, up):
    """Features of the points must not say where they are: the channels are then the intensity alone."""
    made, inputs = voxel_encoder(), sweeps()
    silence_positions(made.backbone_3d.conv_input[0])
    with torch.no_grad():
        one, two = (bev_map(made(each)) for each in (inputs, shifted(inputs, float(right), float(up), 0.0)))
    torch.testing.assert_close(torch.roll(one, (up, right), (2, 3)), two, rtol=0, atol=1e-5)
    assert bool(one.any())


def silence_positions(convolution) -> None:
    with torch.no_grad():
        convolution.weight[..., :3] = 0


@pytest.mark.parametrize("axis", [1, 2])
def test_flipped_with_flipped_kernels_the_map_is_flipped(axis):
    """On a grid of odd extents, where the middles of strided windows meet those of the flipped ones."""
    grid = VoxelGrid((0, -4.0625, -2), (8.125, 4.0625, 2), (0.125, 0.125, 0.125))  # 65 cells, 33, 17, 9
    made, mirrored = voxel_encoder(grid), voxel_encoder(grid)
    for encoder in (made, mirrored):
        silence_positions(encoder.backbone_3d.conv_input[0])
    mirrored.load_state_dict(made.state_dict())
    for layer in mirrored.modules():
        if isinstance(layer, SparseConvolution):
            layer.weight.data = layer.weight.data.flip(4 - axis)
    inputs = sweeps(low=(0.1, -3.9, -1.5), high=(8.0, 3.9, 1.5))
    inputs[..., :2] += 1 / 512  # no point on a border between cells
    other = inputs.clone()
    coordinate = axis - 1
    other[..., coordinate] = grid.low[coordinate] + grid.high[coordinate] - inputs[..., coordinate]
    with torch.no_grad():
        one, two = bev_map(made(inputs)), bev_map(mirrored(other))
    torch.testing.assert_close(one.flip(4 - axis), two, rtol=0, atol=1e-5)


@given(st.integers(0, 5))
@settings(max_examples=2, deadline=None)
def test_the_order_of_points_does_not_matter(seed):
    inputs = sweeps(seed=seed)
    order = torch.randperm(inputs.shape[1], generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for made in (voxel_encoder(), awake(SparseUNet(4, 0.25, (4, 6), 1))):
            one, two = made(inputs), made(inputs[:, order])
            torch.testing.assert_close(one.pooled, two.pooled, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.tokens[:, order], two.tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoder", [voxel_encoder, pillar_encoder, lambda: awake(SparseUNet(4, 0.25, (4, 6), 1))])
def test_padding_and_the_rest_of_the_batch_do_not_matter(encoder):
    made, inputs = encoder(), sweeps()
    padded = torch.cat([inputs, torch.full((2, 7, 4), torch.nan)], 1)
    hidden = torch.cat([inputs, sweeps(7, seed=1)], 1)
    mask = torch.arange(127).expand(2, -1) < 120
    with torch.no_grad():
        expected = made(inputs).pooled
        for found in (made(padded), made(hidden, mask)):
            torch.testing.assert_close(found.pooled, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(made(inputs[:1]).pooled, expected[:1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoder", [voxel_encoder, pillar_encoder, lambda: awake(SparseUNet(4, 0.25, (4, 6), 1))])
@pytest.mark.parametrize("training", [False, True])
def test_empty_sweeps_and_single_points(encoder, training):
    made = encoder().train(training)
    nothing = torch.full((2, 3, 4), torch.nan)
    one_point = nothing.clone()
    one_point[1, 2] = torch.tensor([4.0, 0.0, 0.0, 0.5])
    for inputs in (nothing, one_point, torch.zeros(2, 0, 4)):
        found = made(inputs)
        assert bool(found.pooled.isfinite().all())
        assert not bool(found.pooled[0].any())
        assert int(found.mask.sum()) == int(inputs[..., 0].isfinite().sum())


def test_points_outside_are_no_voxels():
    made, inputs = voxel_encoder(), sweeps()
    outside = shifted(inputs, 100.0, 0.0, 0.0)
    with torch.no_grad():
        torch.testing.assert_close(made(torch.cat([inputs, outside], 1)).pooled, made(inputs).pooled, rtol=0, atol=1e-6)
    assert made.voxelised(made.batch(outside)).left_out == outside.shape[0] * outside.shape[1]


def test_limits_keep_the_first_points_and_voxels():
    inputs = sweeps()
    made = voxel_encoder(max_points=1, max_voxels=10)
    voxels = made.voxels(made.batch(inputs))
    assert len(voxels) == 20
    free = voxel_encoder().voxels(made.batch(inputs[:, :10]))
    assert set(map(tuple, free.coords.tolist())) <= set(map(tuple, voxels.coords.tolist()))


def test_levels_for_detectors():
    made = voxel_encoder()
    levels = made.levels(made.batch(sweeps()))
    assert [level.shape[2] for level in levels] == [64, 32, 16, 8, 8]
    maps = made.features(sweeps())
    assert torch.equal(maps[-1], bev_map(made(sweeps())))


@pytest.mark.parametrize("wrong", [torch.zeros(2, 5, 3), torch.zeros(5, 4)])
def test_other_channels_are_refused(wrong):
    for encoder in (voxel_encoder(), pillar_encoder()):
        with pytest.raises(ValueError, match="reads points"):
            encoder(wrong)
    with pytest.raises(ValueError, match="Expected points"):
        SparseUNet(4, 0.25, (4,))(wrong)


def test_grids_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="too small for a kernel"):
        VoxelEncoder(VoxelGrid((0, 0, 0), (8, 8, 4), (0.5, 0.5, 1.0)))
    with pytest.raises(ValueError, match="one layer; the grid has 32"):
        PillarEncoder(GRID)
    with pytest.raises(ValueError, match="at least 1"):
        VoxelEncoder(GRID, max_points=0)
    with pytest.raises(ValueError, match="needs a level"):
        SparseUNet(4, 0.25, ())


@pytest.mark.parametrize("encoder", [voxel_encoder, pillar_encoder, lambda: awake(SparseUNet(4, 0.25, (4, 6), 1))])
def test_half_precision_is_near(encoder):
    made, inputs = encoder().train(), sweeps()
    for module in made.modules():
        module.momentum = 0.0  # batch statistics, without their traces
    exact = made(inputs).pooled
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(inputs).pooled
    assert float((rough.detach().float() - exact.detach()).norm() / exact.detach().norm()) < 0.05
    rough.float().sum().backward()
    assert all(bool(each.grad.isfinite().all()) and each.grad.dtype == torch.float32 for each in made.parameters())


# Pillars --------------------------------------------------------------------------------------------------------


def padded_features(net: PillarFeatures, padded, counts, coords):
    """PointPillars as its authors compute it: all K rows of every pillar, zeros where it has no points."""
    xyz = padded[..., :3]
    mean = xyz.sum(1, keepdim=True) / counts[:, None, None]
    centre = net.grid.centres_of(coords[:, 1:])[:, None]
    parts = [padded, xyz - mean, xyz - centre]
    if net.with_distance:
        parts.append(xyz.norm(dim=2, keepdim=True))
    rows = torch.cat(parts, -1) * (torch.arange(padded.shape[1]) < counts[:, None])[..., None]
    for layer in net.pfn_layers:
        norm = torch.nn.BatchNorm1d(layer.linear.out_features, 1e-3, 0.01).double().train(net.training)
        norm.load_state_dict(layer.norm.state_dict())
        rows = norm(layer.linear(rows).flatten(0, 1)).relu().unflatten(0, padded.shape[:2])
        most = rows.amax(1, keepdim=True)
        last, rows = (norm, most), torch.cat([rows, most.expand_as(rows)], -1)
    return last[1][:, 0], last[0].running_var


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("widths", "with_distance"), [((8,), False), ((16, 6), True)])
def test_pillars_equal_their_padded_form(training, widths, with_distance):
    torch.manual_seed(0)
    net = awake(PillarFeatures(PILLARS, 4, 5, widths, with_distance)).double().train(training)
    batch = PointBatch.of_padded(sweeps(800).double())
    found = voxelise_limited(batch.xyz, batch.cloud, PILLARS, 5, 1000)
    assert int(found.points.max()) == 5 > int(found.points.min())
    padded = padded_voxels(found, batch.points, 5)
    features = [each.detach().requires_grad_() for each in (batch.points, padded)]
    expected, variance = padded_features(net, features[1], found.points, found.coords)
    got = net(features[0], found)
    torch.testing.assert_close(got, expected)
    if training:
        torch.testing.assert_close(net.pfn_layers[-1].norm.running_var, variance)
    wanted = torch.autograd.grad((expected**2).sum(), net.pfn_layers[0].linear.weight)[0]
    torch.testing.assert_close(torch.autograd.grad((got**2).sum(), net.pfn_layers[0].linear.weight)[0], wanted)


def test_pillars_lie_where_their_points_do():
    made = pillar_encoder()
    point = torch.tensor([[[1.1, -3.9, 0.3, 0.5]]])
    found = made(point)
    assert made.bev.shape == found.grid == (32, 32)
    assert found.mask.nonzero().tolist() == [[0, 0 * 32 + 4]]
    assert made.bev.cells_of(point[0, :, :2]).round().tolist() == [[4, 0]]


# Maps -----------------------------------------------------------------------------------------------------------


def second(**changes) -> BEVEncoder:
    neck = {"layers": (1, 1), "widths": (6, 8), "upsample_widths": (5, 7), **changes}
    lift = voxel_encoder()
    return awake(BEVEncoder(lift, BEVBackbone(lift.width, **neck)))


def test_maps_and_encodings_are_each_other():
    bev = torch.randn(2, 3, 4, 5)
    assert torch.equal(bev_map(bev_encoding(bev)), bev)
    with pytest.raises(ValueError, match="grid of rows and columns"):
        bev_map(bev_encoding(bev).replace(grid=None))


def test_second_and_its_map():
    made = second()
    found = made(sweeps())
    assert found.grid == made.bev.shape == (8, 8)
    assert made.bev == made.lift.bev
    assert found.tokens.shape[-1] == made.width == 12
    assert torch.equal(bev_map(found), made.map(sweeps()))


def test_a_coarser_map_says_so():
    made = second(strides=(2, 2))
    assert made(sweeps()).grid == made.bev.shape == (4, 4)
    assert made.bev.cell == (2.0, 2.0)
    once_more = second(upsample_strides=(1, 2, 2))
    assert once_more(sweeps()).grid == once_more.bev.shape == (16, 16)


def test_maps_that_do_not_divide_are_refused():
    neck = BEVBackbone(3, (1, 1), (1, 2), (4, 4), (1, 2), (4, 4))
    with pytest.raises(ValueError, match=r"\(5, 6\) cells does not divide"):
        neck(torch.zeros(1, 3, 5, 6))
    with pytest.raises(ValueError, match="one thing a block"):
        BEVBackbone(3, (1, 1), (1,))


def test_a_detector_of_openpcdet_is_loaded():
    made, other = second(), second()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    official = {name.removeprefix("lift."): value for name, value in made.state_dict().items()}
    official["dense_head.conv_cls.weight"] = torch.zeros(1)
    other.load_official({"module." + name: value for name, value in official.items()})
    assert torch.equal(other(sweeps()).pooled, made(sweeps()).pooled)
    official.pop("backbone_3d.conv_out.0.weight")
    with pytest.raises(CheckpointError, match="not those of this BEVEncoder"):
        other.load_official(official)


@pytest.mark.parametrize("encoder", [second, pillar_encoder, lambda: awake(SparseUNet(4, 0.25, (4, 6), 1))])
def test_folders(encoder, tmp_path):
    made = encoder()
    made.save_pretrained(tmp_path)
    again = collimate.load(tmp_path)
    assert torch.equal(again.eval()(sweeps()).pooled, made(sweeps()).pooled)
    depths = made.depths()
    assert set(depths) == {name for name, _ in made.named_parameters()}
    assert min(depths.values()) >= 1


# U-Net ----------------------------------------------------------------------------------------------------------


@given(st.tuples(*[st.integers(-40, 40)] * 3))
@settings(max_examples=10, deadline=None)
def test_moved_by_whole_cells_every_point_keeps_its_feature(cells):
    made = awake(SparseUNet(4, 0.25, (4, 6, 8), 1))
    inputs = sweeps(60)
    with torch.no_grad():
        one, two = (made(each) for each in (inputs, shifted(inputs, *(0.25 * each for each in cells))))
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.pooled, two.pooled)


def test_features_of_points():
    made = awake(SparseUNet(4, 0.25, (4, 6), 1))
    inputs = sweeps(60)
    inputs[1, 50:] = torch.nan
    found = made(inputs)
    assert found.mask.sum(1).tolist() == [60, 50]
    same_voxel = inputs[:1, :1].repeat(1, 2, 1)
    tokens = made(torch.cat([inputs[:1], same_voxel], 1)).tokens
    assert torch.equal(tokens[0, 0], tokens[0, 61])
    assert [level.shape for level in made.features(inputs)] == [(2, 4), (2, 6)]


def test_every_parameter_learns():
    made = SparseUNet(4, 0.25, (4, 6, 8), 1).train()
    (made(sweeps()).tokens ** 3).sum().backward()
    assert all(bool(each.grad.any()) for each in made.parameters())
