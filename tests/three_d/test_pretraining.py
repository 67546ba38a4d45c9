"""E-SSL3D, BEVContrast and PointContrast: what they see and compare, on ranks, in chunks, of nothing."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

import collimate
from collimate.checkpoints import save
from collimate.data import open_source
from collimate.data.decoding import Undecodable, value_of
from collimate.testing import assert_same_on_ranks
from collimate.training.gradient_cache import embed_in_chunks
from collimate_3d.lidar.processing import MARKS, FlowProcessor, SweepProcessor, SweepView, unpacked_sweeps
from collimate_3d.lidar.sweep import Sweep
from collimate_3d.lidar.transforms import Transform
from collimate_3d.points import PointBatch
from collimate_3d.pretraining import ESSL3D, BEVContrast, PointContrast, ProposalContrast
from collimate_3d.pretraining.parts import drawn_pairs, ramped_momentum, voxels_of_points

from .sweep_toys import GRID, Streets, batch_of, encoder, processor

SOURCE = Streets()
KITTI = Path(__file__).parents[3] / "shared" / "data" / "lidar_kitti_object"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    random.seed(0)


def essl3d(**changed) -> ESSL3D:
    settings = {"embed_dim": 8, "projector_width": 16, "predictor_width": 16, "classifier_width": 16, "pairs": 40}
    return ESSL3D(encoder(), processor(), **settings | changed)


# Stacked sweeps -------------------------------------------------------------------------------------------------


def test_views_come_back_with_what_was_done():
    sweep = Sweep(np.random.default_rng(0).normal(0, 5, (50, 4)).astype(np.float32))
    pose = np.eye(4)
    pose[:3, 3] = 5_000_123.456, -400_000.125, 17.5
    done = Transform(True, 0.7, 1.02, (0.1, 0.05, 0.15))
    known = Sweep(sweep.points, pose=pose)
    packed = torch.stack([SweepProcessor(60)(known, done), SweepProcessor(60)(sweep)])
    found = unpacked_sweeps(packed)
    torch.testing.assert_close(found.points[0, :50], done.points(torch.from_numpy(sweep.points)))
    assert found.points[0, 50:].isnan().all()
    assert found.points.shape == (2, 60, 4)
    assert found.transforms[0].flip
    assert found.transforms[0].angle == pytest.approx(0.7, abs=1e-7)
    assert found.transforms[1] == Transform()
    np.testing.assert_allclose(found.poses[0], pose, atol=1e-6)
    assert found.poses[1].isnan().all()
    torch.testing.assert_close(PointBatch.of_padded(packed).points[:50], found.points[0, :50])


def test_thinned_sweeps_keep_rows_that_correspond():
    points = np.arange(400, dtype=np.float32).reshape(100, 4) / 400
    first, second = (SweepView()(Sweep(points), SweepProcessor(30)) for _ in range(2))
    one, other = unpacked_sweeps(torch.stack([first, second])).transforms
    back = [each.inverse_points(rows[:30]) for each, rows in ((one, first), (other, second))]
    torch.testing.assert_close(back[0], back[1], atol=1e-5, rtol=0)
    assert len(first) == 30 + MARKS


def test_bad_sweeps_are_refused():
    sweep = Sweep(np.zeros((5, 3), np.float32))
    with pytest.raises(Undecodable, match="3 of the 4"):
        SweepProcessor(10)(sweep)
    with pytest.raises(Undecodable, match="no flow"):
        FlowProcessor(10)(Sweep(np.zeros((5, 4), np.float32)))
    far = Sweep(np.zeros((5, 4), np.float32), flow=np.full((5, 3), 9.0, np.float32), flow_includes_ego=True)
    with pytest.raises(Undecodable, match="metres"):
        FlowProcessor(10)(far)
    with pytest.raises(ValueError, match="SweepProcessor"):
        unpacked_sweeps(torch.zeros(2, 100, 4))
    with pytest.raises(ValueError, match="4 values"):
        SweepProcessor(10, 3)
    stacked = unpacked_sweeps(SweepProcessor(10)(Sweep(np.zeros((5, 4), np.float32)))[None])
    with pytest.raises(ValueError, match="poses"):
        stacked.motion_to(stacked)


# Points and voxels ----------------------------------------------------------------------------------------------


def test_every_point_has_a_voxel_at_every_level():
    f = encoder()
    low, high = torch.tensor(GRID.low), torch.tensor(GRID.high)
    xyz = low + (high - low) * torch.rand(2, 500, 3)
    batch = PointBatch.of_padded(torch.cat([xyz, torch.rand(2, 500, 1)], 2))
    f.max_points = None
    levels = f.levels(batch)
    for level in levels._fields:
        found = voxels_of_points(batch, GRID, levels, level)
        assert (found >= 0).all()
        own = getattr(levels, level).coords[found].long()
        stride = {"conv1": 1, "conv2": 2, "conv3": 4}.get(level, 8)
        wanted = ((batch.xyz[:, :2] - low[:2]) / torch.tensor(GRID.cell[:2]) / stride).floor().long()
        assert torch.equal(own[:, [3, 2]], wanted)
    outside = PointBatch.of_padded(torch.full((1, 3, 4), -50.0))
    assert (voxels_of_points(outside, GRID, f.levels(outside), "out") == -1).all()


def test_pairs_are_of_both_views_and_one_a_voxel():
    first = torch.randint(-1, 30, (300,))
    second = torch.randint(-1, 30, (300,))
    cloud = torch.arange(300) // 100
    first, second = (torch.where(each >= 0, each + 30 * cloud, -1) for each in (first, second))
    drawn = drawn_pairs(first, second, cloud, 4, 20)
    assert drawn.given.sum(1).tolist()[:3] == [20, 20, 20] or drawn.given.sum(1).max() <= 20
    assert not drawn.given[3].any()
    points = {(int(a), int(b)) for a, b in zip(first, second, strict=True)}
    for sweep in range(3):
        one, other = drawn.first[sweep][drawn.given[sweep]], drawn.second[sweep][drawn.given[sweep]]
        assert len(one.unique()) == len(one)
        assert len(other.unique()) == len(other) > 5
        assert {(int(a), int(b)) for a, b in zip(one, other, strict=True)} <= points
        assert (one // 30 == sweep).all()


# E-SSL3D --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"rotation": "relative", "negatives": "sweep", "normalise": "occupied"},
        {"point_level": "conv3", "reduction": "mean", "negatives": "all"},
    ],
)
def test_a_step_teaches_the_online_networks_alone(changed):
    method = essl3d(**changed)
    batch = batch_of(method, SOURCE, range(3))
    terms = method.loss_terms(batch)
    assert set(terms) == {"contrast", "rotation", "flow"}
    assert all(term > 0 for term in terms.values())
    method.total_loss(terms).backward()
    for name, parameter in method.named_parameters():
        assert parameter.requires_grad != name.startswith("slow."), name
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0 or name.endswith("3.bias"), name
    assert method.statistics["matched/points"] > 5


def test_losses_are_the_written_out_ones():
    method = essl3d()
    batch = batch_of(method, SOURCE, range(3))
    found = method.embed(batch)
    terms = method.losses(found, batch)
    given = found["paired"]
    one, other = (normalize(found[name][given], dim=1) for name in ("first", "second"))
    summed = cross_entropy(one @ other.T / 0.07, torch.arange(len(one)), reduction="sum")
    torch.testing.assert_close(terms["contrast"], summed / 3)
    apart = normalize(found["warped"], dim=1) - normalize(found["predicted"], dim=1)
    both = found["warped_cells"] & found["predicted_cells"]
    assert both.sum() > 20
    torch.testing.assert_close(terms["flow"], (apart.square().sum(1) * both).sum() / 3 / both[0].numel())
    angles = [
        transform.angle
        for pair in zip(*(unpacked_sweeps(batch[key]).transforms for key in ("lidar", "lidar_view")), strict=True)
        for transform in pair
    ]
    bins = torch.tensor([min(9, math.floor((angle + math.pi / 2) / math.pi * 10)) for angle in angles])
    torch.testing.assert_close(terms["rotation"], cross_entropy(found["rotation"].flatten(0, 1), bins))
    weights = method.optimization.loss_weights
    assert weights == {"contrast": 0.01, "rotation": 1.0, "flow": 300.0}


def test_features_are_carried_to_where_points_will_be():
    """Where the sweep before, moved by its flow, is the sweep, and the copies are the networks, z equals m(f(p))."""
    method = essl3d().eval()
    batch = batch_of(method, SOURCE, range(2), drawn=False)
    still = batch["previous_sweep"].clone()
    still[:, :-MARKS, :4] = batch["lidar"][:, :-MARKS]
    still[:, :-MARKS, 4:] = 0.0
    still[:, :-MARKS, 4:][batch["lidar"][:, :-MARKS, :3].isnan()] = torch.nan
    with torch.no_grad():
        view = unpacked_sweeps(batch["lidar"])
        warped = method._warped(unpacked_sweeps(still), view)
        levels = method.encoder.levels(PointBatch.of_padded(view.points))
        wanted = method.projector(levels.out).dense()
        here = warped.dense()
    some = here.abs().sum(1) > 0
    assert some.sum() > 20
    torch.testing.assert_close(here.movedim(1, -1)[some], wanted.movedim(1, -1)[some], atol=1e-5, rtol=1e-4)
    # The flow of whole cells of the map moves the features by as many.
    step = GRID.cell[0] * 8
    still[:, :-MARKS, 4] += 2 * step
    with torch.no_grad():
        moved = method._warped(unpacked_sweeps(still), view).dense()
    torch.testing.assert_close(moved[..., 2:], here[..., :-2], atol=1e-5, rtol=1e-4)
    # Without the sensor's motion, the same flow, where the poses say that the sensor has moved by it.
    still[:, :-MARKS, 4:] *= 0
    still[:, -1, 3] = 0
    found = unpacked_sweeps(still)
    found.poses[:, 0, 3] += 2 * step
    with torch.no_grad():
        torch.testing.assert_close(method._warped(found, view).dense(), moved, atol=1e-5, rtol=1e-4)


def test_empty_sweeps_give_zero_with_a_graph():
    method = essl3d()
    batch = batch_of(method, SOURCE, range(2))
    for key in ("lidar", "lidar_view", "previous_sweep"):
        batch[key][:, :-MARKS] = torch.nan
    terms = method.loss_terms(batch)
    assert terms["contrast"] == 0
    assert terms["flow"] == 0
    assert terms["rotation"].isfinite()
    method.total_loss(terms).backward()
    one = batch_of(method, SOURCE, range(2))
    for key in ("lidar", "lidar_view", "previous_sweep"):
        one[key][0, :-MARKS] = torch.nan
    assert all(term.isfinite() for term in method.loss_terms(one).values())


@pytest.mark.parametrize("changed", [{}, {"negatives": "all", "reduction": "mean"}, {"negatives": "sweep"}])
def test_essl3d_on_ranks(changed):
    method = essl3d(**changed)
    batch = batch_of(method, SOURCE, range(4))
    found = {name: value.detach() for name, value in method.embed(batch).items()}
    trained = {name: found[name] for name in ("first", "second", "rotation", "predicted")}
    local = changed.get("negatives", "rank") == "rank"
    fixed = {name: found[name].float() for name in ("paired", "predicted_cells", "warped_cells", "warped")}

    def loss(lidar, lidar_view, **rows):
        rows = {
            name: value > 0 if name in ("paired", "predicted_cells", "warped_cells") else value
            for name, value in rows.items()
        }
        terms = method.losses(rows, {"lidar": lidar.detach(), "lidar_view": lidar_view.detach()})
        return terms["rotation"] + terms["flow"] + (0 if local else terms["contrast"])

    given = {**trained, **fixed, "lidar": batch["lidar"], "lidar_view": batch["lidar_view"]}
    if local:
        given.pop("first"), given.pop("second")
        method._contrast = lambda _: torch.zeros(())
    assert_same_on_ranks(loss, given, ranks=(2,))


def test_slow_networks_follow_along_the_ramp():
    method = essl3d(momentum=0.5)
    before = [parameter.clone() for parameter in method.slow.parameters()]
    leaders = [*method.encoder.parameters(), *method.projector.parameters()]
    with torch.no_grad():
        for parameter in leaders:
            parameter.add_(1.0)
    method.after_optimizer_step()
    for was, now in zip(before, method.slow.parameters(), strict=True):
        torch.testing.assert_close(now, was + 0.5)
    assert ramped_momentum(0.999, 0, 100) == pytest.approx(0.999)
    assert ramped_momentum(0.999, 50, 100) == pytest.approx(0.9995)
    assert ramped_momentum(0.999, 100, 100) == 1


def test_essl3d_is_saved_and_loaded(tmp_path):
    method = essl3d().eval()
    save(method, tmp_path / "model")
    again = collimate.load(tmp_path / "model")
    sweep = again.processors["lidar"].example()
    torch.testing.assert_close(again.encode("lidar", [sweep]).pooled, method.encode("lidar", [sweep]).pooled)


def test_steps_on_real_sweeps():
    """Of one sweep and of itself a little later: the losses fall."""
    if not KITTI.is_dir():
        pytest.skip(f"There is no {KITTI}.")
    method = essl3d()
    method.processors["lidar"].points = method.processors["previous_sweep"].points = 15_000
    sweep = value_of(open_source(f"kitti:{KITTI}?front=true").read(1), ("sweep.npz",))
    shift = np.tile(np.float32([[-1.0, 0.2, 0.0]]), (len(sweep), 1))
    before = Sweep(sweep.points - np.pad(shift, ((0, 0), (0, 1))), flow=shift, flow_includes_ego=True)
    batch = {key: SweepView()(sweep, method.processors["lidar"])[None] for key in ("lidar", "lidar_view")}
    batch["previous_sweep"] = method.processors["previous_sweep"](before)[None]
    optimizer = torch.optim.Adam([each for each in method.parameters() if each.requires_grad], 3e-3)
    totals = []
    for _ in range(12):
        optimizer.zero_grad()
        totals.append(method.total_loss(method.loss_terms(batch)))
        totals[-1].backward()
        optimizer.step()
        method.after_optimizer_step()
    assert method.statistics["matched/points"] > 5
    assert sum(totals[-3:]) < 0.9 * sum(totals[:3])


# BEVContrast and PointContrast ----------------------------------------------------------------------------------


def bev_contrast(**changed) -> BEVContrast:
    return BEVContrast(encoder(), processor(), **{"embed_dim": 8, "max_cells": 10**6} | changed)


def test_bev_contrast_warps_by_motion_and_transforms():
    """The sweep before is a mirror image: its map is compared as if it were turned back."""
    method = bev_contrast().eval()
    batch = batch_of(method, SOURCE, range(2), drawn=False)
    sweeps = [method.processors["lidar"].example(), method.processors["lidar"].example()]
    sweeps = [Sweep(sweep.points, pose=np.eye(4)) for sweep in sweeps]
    flipped = Transform(flip=True)
    batch["lidar"] = torch.stack([method.processors["lidar"](sweep) for sweep in sweeps])
    batch["previous_sweep"] = torch.stack([method.processors["lidar"](sweep, flipped) for sweep in sweeps])
    with torch.no_grad():
        found = method.embed(batch)
        shown = found["before_cells"].flip(1) & found["now_cells"]
        assert shown.sum() >= 0.6 * found["now_cells"].sum() > 10
        loss = method.losses(found, batch)["contrast"]
        turned = {name: value.flip(-2) if "before" in name else value for name, value in found.items()}
        same = method.losses(turned, {**batch, "previous_sweep": batch["lidar"]})["contrast"]
        other = method.losses(found, {**batch, "previous_sweep": batch["lidar"]})["contrast"]
    torch.testing.assert_close(loss, same)
    assert (loss - other).abs() > 1e-3


def test_bev_contrast_trains_and_has_no_empty_trouble():
    method = bev_contrast()
    batch = batch_of(method, SOURCE, range(2), previous_sweep=SweepView())
    loss = method.loss_terms(batch)["contrast"]
    assert loss > 0
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())
    batch["previous_sweep"][:, :-MARKS] = torch.nan
    assert method.loss_terms(batch)["contrast"] == 0


@pytest.mark.parametrize("loss", ["nce", "hardest"])
def test_point_contrast_trains(loss):
    method = PointContrast(encoder(), processor(), 8, 16, "conv3", pairs=60, loss=loss)
    batch = batch_of(method, SOURCE, range(3))
    terms = method.loss_terms(batch)
    method.total_loss(terms).backward()
    names = {"encoders.lidar.backbone_3d.conv4", "encoders.lidar.backbone_3d.conv_out"}  # behind what is read
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) == any(name.startswith(each) for each in names), name
    with pytest.raises(ValueError, match="rank"):
        PointContrast(encoder(), processor(), loss="hardest", gather=True)


def proposal_contrast(**changed) -> ProposalContrast:
    return ProposalContrast(encoder(), processor(), 8, 16, "conv3", **{"proposals": 20, "prototypes": 6} | changed)


def test_proposals_are_regions_of_both_views():
    method = proposal_contrast()
    batch = batch_of(method, SOURCE, range(3))
    found = method.embed(batch)
    assert found["given"].sum(1).tolist() == [20, 20, 20]
    terms = method.losses(found, batch)
    assert set(terms) == {"instance", "cluster"}
    method.total_loss(terms).backward()
    for part in (method.attention, method.projector, method.prototypes):
        assert all(parameter.grad.isfinite().all() for parameter in part.parameters())
    weights = method.optimization.loss_weights
    assert weights == {"cluster": 0.005}
    same = method.eval().embed({**batch, "lidar_view": batch["lidar"]})["regions"]
    torch.testing.assert_close(same[:, :, 0], same[:, :, 1])
    batch["lidar"][:, :-MARKS] = torch.nan
    with pytest.raises(ValueError, match="same points"):
        method.loss_terms(batch)
    batch["lidar_view"][:, :-MARKS] = torch.nan
    none = method.loss_terms(batch)
    assert all(term == 0 and term.requires_grad for term in none.values())


def test_proposal_contrast_on_ranks():
    method = proposal_contrast()

    def loss(regions, given):
        terms = method.losses({"regions": regions, "given": given > 0}, {})
        return terms["instance"] + terms["cluster"]

    given = (torch.rand(4, 20) > 0.3).float()
    assert_same_on_ranks(loss, {"regions": torch.randn(4, 20, 2, 8), "given": given}, ranks=(2,))


@pytest.mark.parametrize("make", [essl3d, bev_contrast], ids=["essl3d", "bev_contrast"])
def test_in_chunks(make):
    method = make()
    batch = batch_of(method, SOURCE, range(4))
    method.eval()  # batch norm sees the chunk it is given

    def full(**_):
        torch.manual_seed(1)
        return method.total_loss(method.losses(method.embed(batch), batch))

    def cached(**_):
        torch.manual_seed(1)
        return method.total_loss(method.losses(embed_in_chunks(method.embed, batch, 4, method), batch))

    weights = [parameter for parameter in method.parameters() if parameter.requires_grad]
    grads = [torch.autograd.grad(run(), weights) for run in (full, cached)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
