"""A detector of centres: targets and what is read back from them, losses on ranks, one real frame, the report."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

import collimate
from collimate.checkpoints import save
from collimate.checkpoints.files import CheckpointError
from collimate.data import DataModule
from collimate.testing import assert_same_on_ranks
from collimate_3d.bev import BEVBackbone
from collimate_3d.boxes import limit_angle
from collimate_3d.detection import (
    CenterPoint,
    center_targets,
    decoded,
    evaluate_detection,
    rotated_nms,
    write_detections,
)
from collimate_3d.detection.center_head import Targets, box_loss, heat_loss
from collimate_3d.grid import BEVGrid, VoxelGrid
from collimate_3d.lidar.kitti import KittiSource
from collimate_3d.lidar.processing import SweepProcessor, SweepView
from collimate_3d.pretraining import PointContrast
from collimate_3d.rotated_iou import bev_iou
from collimate_3d.voxel_encoder import BEVEncoder, VoxelEncoder

from .sweep_toys import Streets, batch_of, encoder, processor

KITTI = Path(__file__).parents[3] / "shared" / "data" / "lidar_kitti_object"
GRID = BEVGrid((40, 60), (0.8, 0.5), (0.0, -16.0))
SOURCE = Streets()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def boxes(count: int) -> torch.Tensor:
    places = torch.rand(count, 2) * torch.tensor([48.0, 20.0]) + torch.tensor([0.0, -16.0])
    rest = torch.rand(count, 4) * torch.tensor([2.0, 3.0, 1.0, 1.0]) + torch.tensor([-2.0, 0.5, 0.5, 1.0])
    return torch.cat([places, rest, 6 * torch.rand(count, 1) - 3], 1)


def center_point(**changed) -> CenterPoint:
    lift = encoder()
    neck = BEVBackbone(lift.width, (1, 1), (1, 2), (16, 16), (2, 4), (16, 16))
    return CenterPoint(BEVEncoder(lift, neck), processor(), head_width=16, **changed)


def said(targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of a head that has learned its targets."""
    heat = torch.logit(targets.heat.clamp(1e-4, 1 - 1e-4))
    values = torch.zeros(len(heat), 8, *heat.shape[2:])
    sweep, _, row, column = targets.cells.unbind(1)
    values[sweep, :, row, column] = targets.values
    return heat, values


# The head -------------------------------------------------------------------------------------------------------


def test_boxes_come_back_from_their_targets():
    given = [boxes(7), boxes(0), boxes(5)]
    kinds = [torch.randint(0, 3, (len(each),)) for each in given]
    targets = center_targets(given, kinds, GRID, 3)
    found = decoded(*said(targets), GRID, least_score=0.9, most=50, overlap=1.0)
    for own, kind, each in zip(given, kinds, found, strict=True):
        peaks = {
            (int(k), *(each.tolist())) for k, each in zip(kind, (GRID.cells_of(own[:, :2]) + 0.5).floor(), strict=True)
        }
        assert len(each.boxes) == len(peaks)
        for box, name in zip(own, kind, strict=True):
            nearest = (each.boxes - box)[:, :6].abs().sum(1) + 100 * (each.classes != name)
            place = nearest.argmin()
            assert nearest[place] < 1e-3
            assert limit_angle(each.boxes[place, 6] - box[6]).abs() < 1e-4
    assert center_targets([boxes(3) + 1000], [torch.zeros(3, dtype=torch.int64)], GRID, 3).cells.shape == (0, 4)


def test_heat_is_a_gaussian_of_the_object_alone():
    car = torch.tensor([[20.2, 0.3, -1, 3.9, 1.6, 1.5, 0.0]])
    heat = center_targets([car], [torch.tensor([1])], GRID, 3).heat[0]
    column, row = int(20.2 / 0.8), int(16.3 / 0.5)
    assert heat[1, row, column] == 1
    assert heat[[0, 2]].sum() == 0
    assert heat[1, row, column + 1] == heat[1, row + 1, column] == pytest.approx(math.exp(-1 / (2 * (5 / 6) ** 2)))
    assert heat[1, row, column + 3] == 0


def test_losses_are_the_written_out_ones():
    targets = center_targets(
        [boxes(4), boxes(0)], [torch.tensor([0, 1, 2, 0]), torch.zeros(0, dtype=torch.int64)], GRID, 3
    )
    logits, predicted = torch.randn_like(targets.heat), torch.randn(2, 8, *GRID.shape)
    p, total = logits.double().sigmoid(), 0.0
    for place in np.ndindex(*targets.heat.shape):
        h = float(targets.heat[place])
        peak = list(place) in targets.cells.tolist()
        total -= float(
            (1 - p[place]) ** 2 * p[place].log() if peak else (1 - h) ** 4 * p[place] ** 2 * (1 - p[place]).log()
        )
    torch.testing.assert_close(float(heat_loss(logits, targets)), total / 4, rtol=1e-4, atol=1e-4)
    apart = sum(
        (predicted[b, :, y, x] - v).abs().sum()
        for (b, _, y, x), v in zip(targets.cells.tolist(), targets.values, strict=True)
    )
    torch.testing.assert_close(box_loss(predicted, targets), apart / 4)
    none = center_targets([boxes(0)], [torch.zeros(0, dtype=torch.int64)], GRID, 3)
    empty = torch.randn(1, 8, *GRID.shape, requires_grad=True)
    assert box_loss(empty, none) == 0
    assert box_loss(empty, none).requires_grad
    assert heat_loss(logits[:1], none).isfinite()


def test_losses_on_ranks():
    kinds = torch.randint(0, 3, (4, 3))
    given = torch.stack([boxes(3) for _ in range(4)])

    def loss(heat, values, given, kinds):
        targets = center_targets(list(given.detach()), list(kinds.detach().long()), GRID, 3)
        return heat_loss(heat, targets) + box_loss(values, targets)

    rows = {"heat": torch.randn(4, 3, *GRID.shape), "values": torch.randn(4, 8, *GRID.shape), "given": given}
    assert_same_on_ranks(loss, rows | {"kinds": kinds.float()}, ranks=(2,))


def test_of_overlapping_boxes_the_surest_stays():
    given = boxes(60)
    given[:, :2] /= 4
    scores = torch.rand(60)
    kept = rotated_nms(given, scores, 0.2)
    assert (scores[kept].diff() <= 0).all()
    overlaps = bev_iou(given, given)
    assert (overlaps[kept][:, kept].triu(1) <= 0.2).all()
    for place in set(range(60)) - set(kept.tolist()):
        surer = [each for each in kept.tolist() if scores[each] > scores[place]]
        assert overlaps[place, surer].max() > 0.2
    assert len(rotated_nms(given[:0], scores[:0], 0.2)) == 0


def test_averages_follow_as_they_are_told():
    method = center_point(norm_momentum=0.2)
    norms = [each for each in method.encoders.modules() if hasattr(each, "running_mean")]
    assert len(norms) > 5
    assert {norm.momentum for norm in norms} == {0.2}
    with pytest.raises(ValueError, match="share"):
        center_point(norm_momentum=0.0)


# The method -----------------------------------------------------------------------------------------------------


def test_targets_follow_the_augmentation():
    method = center_point()
    batch = batch_of(method, SOURCE, range(3), lidar=SweepView(0.5, 0.4, (0.95, 1.05), 0.3))
    heat, values = said(method.targets(batch))
    found = method._objects({"heat": heat, "boxes": values}, batch["lidar"])
    for entries, own in zip(batch["objects.json"], found, strict=True):
        truth = {tuple(np.round(entry["box"][:6], 2)) for entry in entries}
        assert len(own) >= 2
        assert all(min(np.abs(np.subtract(box[:6], each)).max() for each in truth) < 0.02 for box in own.boxes)


def test_a_step_teaches_all_of_it():
    method = center_point()
    terms = method.loss_terms(batch_of(method, SOURCE, range(3)))
    method.total_loss(terms).backward()
    assert set(terms) == {"heat", "box"}
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_it_begins_with_a_backbone(tmp_path):
    taught = PointContrast(encoder(), processor(), 8, 16)
    with torch.no_grad():
        for parameter in taught.parameters():
            parameter.add_(0.1)
    save(taught.eval(), tmp_path / "taught")
    method = center_point(pretrained=str(tmp_path / "taught"))
    for name, value in taught.encoder.state_dict().items():
        torch.testing.assert_close(method.encoders["lidar"].lift.state_dict()[name], value)
    save(method.eval(), tmp_path / "detector")
    again = collimate.load(tmp_path / "detector")
    torch.testing.assert_close(again.head.state_dict(), method.head.state_dict())
    again = center_point(pretrained=str(tmp_path / "detector"))  # a detector's backbone will do, too
    torch.testing.assert_close(again.encoders["lidar"].lift.state_dict(), method.encoders["lidar"].lift.state_dict())
    wide = VoxelEncoder(
        VoxelGrid((0.0, -12.8, -3.0), (25.6, 12.8, 1.0), (0.2, 0.2, 0.16)), widths=(4, 4, 8, 8), out_width=8
    )
    with pytest.raises(ValueError, match="cells"):
        CenterPoint(
            BEVEncoder(wide, BEVBackbone(16, (1,), (1,), (8,), (1,), (8,))),
            processor(),
            pretrained=str(tmp_path / "taught"),
        )
    big = VoxelEncoder(encoder().grid, widths=(8, 8, 8, 8), out_width=8)
    with pytest.raises(CheckpointError, match="other widths"):
        CenterPoint(
            BEVEncoder(big, BEVBackbone(16, (1,), (1,), (8,), (1,), (8,))),
            processor(),
            pretrained=str(tmp_path / "taught"),
        )


def test_detections_are_reported(tmp_path):
    from collimate.evaluation.report import Report

    method = center_point(least_score=0.05).eval()
    found = evaluate_detection(method, SOURCE, device="cpu", limit=6)
    assert {"bev Car all", "3d mean all", "heading error Cyclist"} <= found.metrics.keys()
    assert found.protocol["frames"] == 6
    path = write_detections(found.frames, tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["key"] for line in lines] == [frame.key for frame in found.frames]
    report = Report("detection")
    found.add_to(report)
    assert report.html().count("data:image") == 6


def test_validation_logs_average_precision():
    method = center_point()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(method, DataModule(SOURCE, Streets(5, seed=1), 2, epoch_samples=2))
    logged = trainer.callback_metrics
    assert {"val/bev_Car_all", "val/3d_Cyclist_all", "val/3d_mean_all"} <= logged.keys()
    assert all(0 <= value <= 1 for name, value in logged.items() if name.startswith("val/"))
    assert not method._validated


# Real frames ----------------------------------------------------------------------------------------------------


@pytest.fixture
def frames() -> KittiSource:
    if not KITTI.is_dir():
        pytest.skip(f"There is no {KITTI}.")
    return KittiSource(str(KITTI))


def kitti_detector() -> CenterPoint:
    grid = VoxelGrid((0.0, -25.6, -3.0), (51.2, 25.6, 1.0), (0.2, 0.2, 0.16))
    lift = VoxelEncoder(grid, widths=(8, 16, 16, 16), out_width=16)
    neck = BEVBackbone(lift.width, (1, 1), (1, 2), (32, 32), (2, 4), (32, 32))
    return CenterPoint(BEVEncoder(lift, neck), SweepProcessor(20_000), head_width=32, norm_momentum=0.1)


@pytest.mark.slow
def test_one_frame_is_learned_by_heart(frames):
    method = kitti_detector()
    batch = batch_of(method, frames, [3], drawn=False)
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        method.total_loss(method.loss_terms(batch)).backward()
        optimizer.step()

    frames.frames = frames.frames[3:]
    found = evaluate_detection(method, frames, device="cpu").frames[0]
    cars = [torch.from_numpy(objects.named("Car").boxes) for objects in (found.truth, found.found)]
    assert len(cars[0]) >= 4
    assert len(cars[0]) == len(found.found)  # KITTI's AP has 41 recalls, of which so few objects reach but some
    assert bev_iou(*cars).amax(1).min() > 0.7
