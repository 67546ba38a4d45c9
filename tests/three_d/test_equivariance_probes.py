"""Probes of equivariance: exact for a network that is, not for one that is not, and what turns leave behind."""

import torch

from collimate.encoders import Encoder
from collimate_3d.bev import bev_encoding, bev_map
from collimate_3d.evaluation.equivariance import (
    equivariance_errors,
    evaluate_equivariance,
    evaluate_rotation_probe,
    exact_transforms,
)
from collimate_3d.grid import BEVGrid
from collimate_3d.points import PointBatch
from collimate_3d.pretraining import PointContrast

from .sweep_toys import GRID, Streets, encoder, processor


class Counts(Encoder):
    """How many points lie in each cell: as equivariant as can be, but for what `place` adds to it."""

    def __init__(self, place: float = 0.0) -> None:
        super().__init__()
        self.bev, self.place, self.width = BEVGrid((16, 16), (1.6, 1.6), (0.0, -12.8)), place, 1

    def forward(self, inputs, mask=None):
        batch = PointBatch.of_padded(inputs, mask)
        column, row = (self.bev.cells_of(batch.xyz[:, :2]) + 0.5).floor().long().unbind(1)
        inside = (column >= 0) & (column < 16) & (row >= 0) & (row < 16)
        cells = (batch.cloud * 256 + row * 16 + column)[inside]
        counts = torch.bincount(cells, minlength=256 * len(inputs)).float().view(-1, 1, 16, 16)
        return bev_encoding(counts + self.place * torch.rand(16, 16, generator=torch.Generator().manual_seed(0)))


def points():
    low, high = torch.tensor(GRID.low), torch.tensor(GRID.high)
    torch.manual_seed(0)
    return torch.cat([low + (high - low) * torch.rand(3, 300, 3), torch.rand(3, 300, 1)], 2)


def test_errors_are_zero_for_what_moves_with_the_scene():
    named = exact_transforms(Counts().bev)
    assert set(named) == {"flip", "shift ahead", "shift left", "right angle"}
    for name, transform in named.items():
        assert equivariance_errors(Counts(), points(), transform).max() < 1e-6, name
        assert equivariance_errors(Counts(5.0), points(), transform).min() > 0.1, name
    assert "right angle" not in exact_transforms(BEVGrid((16, 12), (1.6, 1.6), (0.0, 0.0)))
    assert (equivariance_errors(Counts(), points() * torch.nan, named["flip"]) == 0).all()


def test_a_voxel_backbone_moves_with_shifts_but_at_its_borders():
    f = encoder().eval()
    inner = points()
    inner[..., 0] = inner[..., 0] / 4 + 8
    inner[..., 1] /= 4
    transforms = exact_transforms(f.bev)
    f.max_points = None
    with torch.no_grad():
        coordinates = equivariance_errors(f, inner, transforms["shift ahead"])
        f.backbone_3d.get_parameter("conv_input.0.weight")[..., :3] = 0  # sites and intensities are left
    assert coordinates.min() > 0.05
    for name in ("shift ahead", "shift left"):
        assert equivariance_errors(f, inner, transforms[name]).max() < 1e-4, name
    assert equivariance_errors(f, inner, transforms["flip"]).min() > 0.01
    assert bev_map(f(inner)).shape[2:] == f.bev.shape


def test_both_probes_of_a_method():
    method = PointContrast(encoder(), processor(), 8, 16)
    errors = evaluate_equivariance(method, Streets(4), device="cpu")
    assert set(errors.metrics) == {"error flip", "error shift ahead", "error shift left", "error right angle"}
    assert all(0 <= value < 3 for value in errors.metrics.values())
    found = evaluate_rotation_probe(method, Streets(16), Streets(4, seed=1), views=2, classes=2, device="cpu")
    assert found.protocol["chance"] == 0.5
    assert 0 <= found.metrics["rotation accuracy"] <= 1
