"""Encoders of PointNet++: any order of points, padding, published names, folders, and what is refused."""

import pytest
import torch

import collimate
from collimate.checkpoints.files import CheckpointError
from collimate_3d.pointnet2 import (
    MultiScaleSetAbstraction,
    ObjectPointNet2,
    PointNet2,
    PointNet2MultiScale,
    VoteNetBackbone,
    VoteSetAbstraction,
)

SCALES = ((16, 0.4, 8, (8, 8)), (8, 0.8, 8, (12, 12)), (None, None, None, (16, 20)))
ROOM = ((32, 0.4, 8, (8, 8)), (16, 0.8, 8, (8, 12)), (8, 1.2, 8, (12, 12)), (4, 2.0, 4, (12, 16)))


def objects(count=64, channels=6, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, count, channels, generator=generator) * 2 - 1


def awake(encoder):
    for module in encoder.modules():
        if hasattr(module, "running_mean"):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return encoder.eval()


def per_object() -> ObjectPointNet2:
    torch.manual_seed(0)
    return awake(ObjectPointNet2(6, SCALES))


def room() -> VoteNetBackbone:
    torch.manual_seed(0)
    return awake(VoteNetBackbone(6, ROOM, width=10))


def test_the_published_sizes():
    assert ObjectPointNet2()(objects(128)).pooled.shape == (2, 768)
    assert PointNet2(6)(objects(128)).pooled.shape == (2, 1024)
    made = VoteNetBackbone(4)
    assert made.width == 256
    assert [layer.samples for layer in (made.sa1, made.sa2, made.sa3, made.sa4)] == [2048, 1024, 512, 256]
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    assert shapes["sa1.mlp_module.layer0.conv.weight"] == (64, 4, 1, 1)
    assert shapes["fp1.mlp.layer0.conv.weight"] == (256, 512, 1, 1)
    assert shapes["fp2.mlp.layer0.conv.weight"] == (256, 512, 1, 1)


def test_several_scales():
    made = PointNet2MultiScale(3)
    assert isinstance(made.sa1, MultiScaleSetAbstraction)
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    assert shapes["sa2.conv_blocks.0.0.weight"] == (64, 323, 1, 1)
    assert shapes["sa3.mlp_convs.0.weight"] == (256, 643, 1, 1)
    assert made.eval()(objects(64, 3)).pooled.shape == (2, 1024)


def test_seeds_are_points_of_the_room():
    made, inputs = room(), objects(200)
    found = made.seeds(inputs)
    assert found.xyz.shape == (2, 16, 3)
    at = inputs[..., :3].gather(1, found.index[..., None].expand(-1, -1, 3))
    assert torch.equal(at, found.xyz)
    encoding = made(inputs)
    assert torch.equal(encoding.tokens, found.features)
    assert torch.equal(encoding.pooled, found.features.amax(1))
    assert [level.shape[1:] for level in made.features(inputs)] == [(32, 8), (16, 12), (8, 12), (4, 16)]


@pytest.mark.parametrize("encoder", [per_object, room])
def test_points_behind_the_first_may_come_in_any_order_as_far_as_groups_hold_all(encoder):
    """Sampling begins with the first point, and small groups take the first ones: here none is too small."""
    made, inputs = encoder(), objects(24)
    for module in made.modules():
        if isinstance(module, VoteSetAbstraction):
            module.neighbours = 64
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(23)])
    with torch.no_grad():
        torch.testing.assert_close(made(inputs[:, order]).pooled, made(inputs).pooled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoder", [per_object, room])
def test_padding_does_not_matter(encoder):
    made, inputs = encoder(), objects(40)
    padded = torch.cat([inputs, torch.full((2, 9, 6), torch.nan)], 1)
    masked = torch.cat([inputs, objects(9, seed=1)], 1)
    with torch.no_grad():
        expected = made(inputs).pooled
        for found in (made(padded), made(masked, torch.arange(49).expand(2, -1) < 40)):
            torch.testing.assert_close(found.pooled, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoder", [per_object, room])
def test_one_point_copies_and_none(encoder):
    made = encoder()
    one = objects(1)
    with torch.no_grad():
        torch.testing.assert_close(made(one.expand(-1, 30, -1)).pooled, made(one).pooled)
        assert bool(made(torch.full((2, 5, 6), torch.nan)).pooled.isfinite().all())


def test_refused():
    for encoder in (per_object(), room(), PointNet2(6)):
        for wrong in (torch.zeros(2, 5, 3), torch.zeros(5, 6), torch.zeros(2, 0, 6)):
            with pytest.raises(ValueError, match="reads points"):
                encoder(wrong)
    with pytest.raises(ValueError, match="four set abstractions, not 3"):
        VoteNetBackbone(6, SCALES)
    with pytest.raises(ValueError, match="'max' or 'avg'"):
        VoteSetAbstraction(4, 0.2, 4, 0, (4,), pooling="rbf")
    with pytest.raises(ValueError, match="Each scale has"):
        MultiScaleSetAbstraction(4, (0.1,), (4, 8), 0, ((4,),))


def test_weights_of_3d_vista_are_loaded():
    made, other = per_object(), ObjectPointNet2(6, SCALES).eval()
    official = {
        "obj_encoder.pcd_net." + name.replace(".mlp_module.", ".mlps.0."): value
        for name, value in made.state_dict().items()
    }
    official["obj_encoder.obj3d_clf_pre_head.0.weight"] = torch.zeros(1)
    other.load_official(official)
    assert torch.equal(other(objects()).pooled, made(objects()).pooled)
    with pytest.raises(CheckpointError, match="No weights begin with"):
        other.load_official(official, "point_feature_extractor.")
    official.pop("obj_encoder.pcd_net.fc.bias")
    with pytest.raises(CheckpointError, match="not those of this ObjectPointNet2"):
        other.load_official(official)


def test_weights_of_votenet_are_loaded():
    made, other = room(), VoteNetBackbone(6, ROOM, width=10).eval()
    other.load_official({"module.backbone_net." + name: value for name, value in made.state_dict().items()})
    assert torch.equal(other(objects()).pooled, made(objects()).pooled)


@pytest.mark.parametrize("encoder", [per_object, room])
def test_folders(encoder, tmp_path):
    made = encoder()
    made.save_pretrained(tmp_path)
    assert torch.equal(collimate.load(tmp_path).eval()(objects()).pooled, made(objects()).pooled)


@pytest.mark.parametrize("encoder", [per_object, room])
def test_every_parameter_learns(encoder):
    made = encoder().train()
    (made(objects(200)).pooled ** 3).sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in made.parameters())
