"""PointNet: any order of points, copies, padding, the matrices, and published names."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate_3d.pointnet import PointNet


def objects(count=20, channels=6, seed=0) -> torch.Tensor:
    return torch.rand(2, count, channels, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def encoder() -> PointNet:
    torch.manual_seed(0)
    return PointNet(6, feature_transform=True).eval()


@given(st.integers(0, 10))
@settings(max_examples=5, deadline=None)
def test_the_order_of_points_does_not_matter(encoder, seed):
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        one, two = encoder(objects()), encoder(objects()[:, order])
    torch.testing.assert_close(one.pooled, two.pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.tokens[:, order], two.tokens, rtol=0, atol=1e-5)


def test_copies_and_padding_do_not_matter(encoder):
    inputs = objects()
    mask = torch.arange(25).expand(2, -1) < 20
    with torch.no_grad():
        expected = encoder(inputs).pooled
        for found in (
            encoder(torch.cat([inputs, inputs[:, :5]], 1)),
            encoder(torch.cat([inputs, torch.full((2, 5, 6), torch.nan)], 1)),
            encoder(torch.cat([inputs, objects(5, seed=1)], 1), mask),
        ):
            torch.testing.assert_close(found.pooled, expected, rtol=0, atol=1e-5)
        assert bool(encoder(torch.full((2, 3, 6), torch.nan)).pooled.isfinite().all())


def test_matrices_are_the_identity_where_their_networks_are_silent(encoder):
    for network in (encoder.stn, encoder.fstn):
        silent = torch.zeros_like(network.fc3.weight), torch.zeros_like(network.fc3.bias)
        kept = [each.data for each in (network.fc3.weight, network.fc3.bias)]
        network.fc3.weight.data, network.fc3.bias.data = silent
        with torch.no_grad():
            found = network(torch.rand(2, 5, network.conv1.in_channels))
        network.fc3.weight.data, network.fc3.bias.data = kept
        assert torch.equal(found, torch.eye(network.rows).expand(2, -1, -1))


def test_the_formula(encoder):
    """By torch's own convolutions, channels first."""
    inputs = objects()
    with torch.no_grad():
        turned = torch.cat([inputs[..., :3] @ encoder.stn(inputs), inputs[..., 3:]], -1).mT
        first = encoder.bn1(encoder.conv1(turned)).relu()
        mixed = (first.mT @ encoder.fstn(first.mT)).mT
        last = encoder.bn3(encoder.conv3(encoder.bn2(encoder.conv2(mixed)).relu()))
        torch.testing.assert_close(encoder(inputs).pooled, last.amax(2), rtol=1e-4, atol=1e-5)


def test_published_weights(encoder):
    other = PointNet(6, feature_transform=True).eval()
    other.load_official(
        {"feat." + name: value for name, value in encoder.state_dict().items()} | {"fc1.bias": torch.ones(1)}
    )
    with torch.no_grad():
        assert torch.equal(other(objects()).pooled, encoder(objects()).pooled)


def test_other_channels_are_refused(encoder):
    with pytest.raises(ValueError, match="reads points"):
        encoder(torch.zeros(2, 5, 3))
