"""OpenPCDet's voxels, sparse backbone, pillars and two-dimensional backbone, computed there with spconv."""

import pytest
import torch
from safetensors.torch import load_file

from collimate_3d.bev import BEVBackbone
from collimate_3d.grid import VoxelGrid
from collimate_3d.operators import Voxelisation, padded_voxels, segment_mean, voxelise_limited
from collimate_3d.pillars import PillarFeatures
from collimate_3d.sparse import SparseVoxels
from collimate_3d.voxel_backbone import VoxelBackBone8x
from collimate_3d.weights import load_weights

GOLDEN = "sparse_voxel"


@pytest.fixture
def weights(golden_set):
    return load_file(golden_set.folder / "weights.safetensors")


def close(golden_set, actual, expected):
    rule = golden_set.config["tolerance"]["all"]
    torch.testing.assert_close(actual, expected, atol=rule["atol"], rtol=rule["rtol"])


def under(weights, prefix):
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def box(golden_set, cell):
    extent = golden_set.config["point_cloud_range"]
    return VoxelGrid(extent[:3], extent[3:], cell)


def clouds(golden_set):
    points = [golden_set.inputs[f"points{number}"] for number in range(golden_set.config["clouds"])]
    return torch.cat(points), torch.arange(len(points)).repeat_interleave(torch.tensor([len(each) for each in points]))


def test_voxels_in_the_order_of_their_first_points(golden_set):
    settings, expected = golden_set.config["voxelization"], golden_set.expected
    points, cloud = clouds(golden_set)
    limits = settings["max_points"], settings["max_voxels"]
    found = voxelise_limited(points[:, :3], cloud, box(golden_set, settings["voxel_size"]), *limits)
    padded = padded_voxels(found, points, settings["max_points"])
    close(golden_set, segment_mean(points, found.voxel, len(found.coords)), expected["mean_vfe"])
    for number in range(golden_set.config["clouds"]):
        own = found.coords[:, 0] == number
        assert torch.equal(found.coords[own, 1:], expected[f"voxel_coords_zyx{number}"])
        assert torch.equal(found.points[own].int(), expected[f"voxel_num_points{number}"])
        close(golden_set, padded[own], expected[f"voxels{number}"])


@pytest.fixture
def backbone(golden_set, weights):
    settings = golden_set.config["backbone"]
    made = VoxelBackBone8x(settings["input_channels"], settings["widths"], settings["out_width"])
    load_weights(made, under(weights, "backbone3d."))
    return made.eval()


def voxels(golden_set):
    shape = tuple(golden_set.config["backbone"]["spatial_shape_zyx"])
    inputs = golden_set.inputs
    return SparseVoxels.build(
        inputs["backbone.features"], inputs["backbone.coords"], shape, golden_set.config["clouds"]
    )


def compare_levels(golden_set, levels):
    for name in golden_set.config["backbone"]["levels"]:
        level, expected = getattr(levels, name), golden_set.expected
        assert torch.equal(level.coords, expected[f"backbone.{name}.indices"])
        assert list(level.shape) == expected[f"backbone.{name}.spatial_shape"].tolist()
        close(golden_set, level.features, expected[f"backbone.{name}.features"])


def test_sparse_backbone(golden_set, backbone):
    with torch.no_grad():
        levels = backbone(voxels(golden_set))
    compare_levels(golden_set, levels)
    close(golden_set, levels.out.bev(), golden_set.expected["backbone.bev"])


def test_weights_of_spconv_1_load_alike(golden_set, backbone, weights):
    old = {
        name: value.permute(1, 2, 3, 4, 0).contiguous() if value.ndim == 5 else value
        for name, value in under(weights, "backbone3d.").items()
    }
    settings = golden_set.config["backbone"]
    again = VoxelBackBone8x(settings["input_channels"], settings["widths"], settings["out_width"])
    load_weights(again, old)
    for name, value in backbone.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_spconv_itself_gives_the_same(golden_set, weights):
    pytest.importorskip("spconv", reason="spconv is not installed")
    settings = golden_set.config["backbone"]
    made = VoxelBackBone8x(settings["input_channels"], settings["widths"], settings["out_width"], backend="spconv")
    load_weights(made, under(weights, "backbone3d."))
    with torch.no_grad():
        compare_levels(golden_set, made.eval()(voxels(golden_set)))


@pytest.fixture
def pillar_features(golden_set, weights):
    settings = golden_set.config["pillar"]
    made = PillarFeatures(
        box(golden_set, settings["voxel_size"]),
        golden_set.config["point_features"],
        settings["max_points"],
        settings["num_filters"],
        settings["with_distance"],
    )
    load_weights(made, under(weights, "vfe."))
    return made.eval()


def unpadded(inputs):
    """The points of padded pillars, and where they lie."""
    padded, counts = inputs["pillar.voxels"], inputs["pillar.num_points"].long()
    real = torch.arange(padded.shape[1]) < counts[:, None]
    pillar, slot = real.nonzero().unbind(1)
    return padded[real], Voxelisation(inputs["pillar.coords"], pillar, slot, counts)


def test_pillars_and_the_map_behind_them(golden_set, pillar_features, weights):
    expected, settings = golden_set.expected, golden_set.config["backbone2d"]
    points, pillars = unpadded(golden_set.inputs)
    with torch.no_grad():
        features = pillar_features(points, pillars)
    close(golden_set, features, expected["pillar.features"])
    width, height = golden_set.config["pillar"]["grid_xy"]
    scattered = SparseVoxels.build(features, pillars.coords, (1, height, width), golden_set.config["clouds"]).bev()
    close(golden_set, scattered, expected["pillar.bev"])
    neck = BEVBackbone(
        scattered.shape[1],
        settings["layer_nums"],
        settings["layer_strides"],
        settings["num_filters"],
        settings["upsample_strides"],
        settings["num_upsample_filters"],
    )
    load_weights(neck, under(weights, "backbone2d."))
    with torch.no_grad():
        close(golden_set, neck.eval()(scattered), expected["pillar.bev2d"])


def test_the_points_fall_into_those_pillars(golden_set):
    settings = golden_set.config["pillar"]
    points, cloud = clouds(golden_set)
    grid = box(golden_set, settings["voxel_size"])
    found = voxelise_limited(points[:, :3], cloud, grid, settings["max_points"], settings["max_voxels"])
    assert torch.equal(found.coords, golden_set.inputs["pillar.coords"])
    padded = padded_voxels(found, points, settings["max_points"])
    assert torch.equal(padded, golden_set.inputs["pillar.voxels"])
