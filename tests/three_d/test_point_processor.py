"""Clouds to so many points: the same ones each time, centre, extent and height; and what training changes."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import collimate
from collimate.data.decoding import Undecodable
from collimate.evaluation.modalities import manner_of, registered_templates
from collimate_3d.exhibits import show_points
from collimate_3d.pointnet2 import ObjectPointNet2
from collimate_3d.points import PointCloud
from collimate_3d.processor import PointAugmentation, PointProcessor

COLOURS = ("red", "green", "blue")


def cloud(count=500, seed=0) -> PointCloud:
    generator = np.random.default_rng(seed)
    normals = generator.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    features = np.concatenate([generator.random((count, 3)), normals], 1)
    return PointCloud.of(generator.normal(size=(count, 3)) * [1, 2, 3] + 5, features, (*COLOURS, "nx", "ny", "nz"))


@given(st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_points_are_those_of_the_cloud_and_spread_evenly(count, wanted):
    given_cloud = cloud(count)
    rows = PointProcessor(wanted, unit=False)(given_cloud)
    assert rows.shape == (wanted, 3)
    known = {tuple(point): number for number, point in enumerate(given_cloud.xyz.tolist())}
    uses = np.bincount([known[tuple(point)] for point in rows.tolist()], minlength=count)
    assert uses.max() - uses.min() <= 1
    assert torch.equal(PointProcessor(wanted, unit=False)(given_cloud), rows)


def test_objects_fill_the_unit_sphere():
    rows = PointProcessor(500)(cloud())
    torch.testing.assert_close(rows.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    assert float(rows.norm(dim=1).max()) == pytest.approx(1)
    few = PointProcessor(10)(cloud())  # centre and extent are those of the whole cloud
    assert float(few.norm(dim=1).max()) < 1


def test_colours_and_the_height_above_the_floor():
    given_cloud = cloud()
    rows = PointProcessor(500, (*COLOURS, "height"), unit=False)(given_cloud)
    assert float(rows[:, 3:6].min()) >= -1
    assert float(rows[:, 3:6].max()) <= 1
    assert float(rows[:, 3:6].min()) < -0.9
    floor = np.percentile(given_cloud.xyz[:, 2], 0.99)
    torch.testing.assert_close(rows[:, 6], rows[:, 2] - float(floor), rtol=0, atol=1e-5)


def test_one_point_copies_and_unknown_colours():
    one = PointCloud.of(np.array([[3.0, 4, 5]]), np.array([[np.nan, 0.5, 1.0]]), COLOURS)
    assert PointProcessor(3, COLOURS)(one).tolist() == [[0, 0, 0, 0, 0, 1]] * 3
    assert bool(PointProcessor(3)(np.ones((50, 3))).isfinite().all())


def test_refused():
    with pytest.raises(ValueError, match="at least one point"):
        PointProcessor(0)
    with pytest.raises(ValueError, match="has no intensity"):
        PointProcessor(4, ("intensity",))(cloud())
    with pytest.raises(Undecodable, match="no points"):
        PointProcessor(4)(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="lie in"):
        PointAugmentation(flip=1.5)
    with pytest.raises(ValueError, match="scale is positive"):
        PointAugmentation(scale=(0.0, 1.0))


def test_other_numbers_of_points():
    processor = PointProcessor(100, COLOURS)
    assert torch.equal(processor.shaped(40)(cloud()), PointProcessor(40, COLOURS)(cloud()))


def test_reports_show_clouds_with_and_without_colours():
    for raw in (cloud(), cloud().xyz, np.zeros((1, 3))):
        picture = np.asarray(show_points(raw).picture)
        assert picture.shape[2] == 3
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1
    assert manner_of("points").templates in registered_templates()


def seeded(augmentation, processor, raw, seed=0):
    random.seed(seed)
    torch.manual_seed(seed)
    return augmentation(raw, processor)


def test_nothing_asked_for_is_only_another_choice_of_points():
    processor = PointProcessor(100, ("nx",))
    still = PointAugmentation(turn=0, scale=(1.0, 1.0))
    everything = set(map(tuple, PointProcessor(500, ("nx",))(cloud()).tolist()))
    rows = seeded(still, processor, cloud())
    assert set(map(tuple, rows.tolist())) <= everything
    assert not torch.equal(rows, seeded(still, processor, cloud(), seed=1))
    assert torch.equal(rows, seeded(still, processor, cloud()))


def test_normals_turn_with_their_points():
    """Turns and mirroring keep the angle between a point and its normal; scaling does too."""
    processor = PointProcessor(100, ("nx", "ny", "nz"))
    for seed in range(5):
        moved = seeded(PointAugmentation(tilt=30, flip=0.5), processor, cloud(), seed)
        still = seeded(PointAugmentation(turn=0, scale=(1.0, 1.0)), processor, cloud(), seed)
        inside = [torch.cosine_similarity(rows[:, :3], rows[:, 3:], dim=1) for rows in (moved, still)]
        torch.testing.assert_close(inside[0], inside[1], rtol=0, atol=1e-5)
        assert not torch.allclose(moved, still, atol=0.01)


def test_turns_about_z_keep_heights():
    processor = PointProcessor(100)
    moved = seeded(PointAugmentation(scale=(1.0, 1.0), flip=1.0), processor, cloud())
    still = seeded(PointAugmentation(turn=0, scale=(1.0, 1.0)), processor, cloud())
    torch.testing.assert_close(moved[:, 2], still[:, 2])
    torch.testing.assert_close(moved[:, :2].norm(dim=1), still[:, :2].norm(dim=1))


def test_shifts_noise_and_loss_are_as_large_as_asked():
    processor = PointProcessor(400, COLOURS)
    still = PointAugmentation(turn=0, scale=(1.0, 1.0))
    base = seeded(still, processor, cloud())
    shifted = seeded(PointAugmentation(turn=0, scale=(1.0, 1.0), shift=0.3), processor, cloud()) - base
    assert float(shifted[:, :3].abs().max()) <= 0.3
    assert float(shifted[:, :3].std(0).max()) < 1e-6
    noise = seeded(PointAugmentation(turn=0, scale=(1.0, 1.0), jitter=0.01), processor, cloud()) - base
    assert 0.008 < float(noise[:, :3].std()) < 0.012
    assert not bool(noise[:, 3:].any())
    thinned = seeded(PointAugmentation(turn=0, scale=(1.0, 1.0), drop=0.9), processor, cloud())
    assert 40 <= len(thinned.unique(dim=0)) < 390
    grey = seeded(PointAugmentation(turn=0, scale=(1.0, 1.0), grey=1.0), processor, cloud())
    assert not bool(grey[:, 3:].any())


def test_a_folder_keeps_the_processor(tmp_path):
    made = ObjectPointNet2(6, ((8, 0.4, 4, (8, 8)), (None, None, None, (8, 12)))).eval()
    made.save_pretrained(tmp_path, PointProcessor(64, COLOURS))
    again = collimate.load(tmp_path).eval()
    assert again.processor.config() == made.processor.config()
    assert torch.equal(again.encode([cloud()]).pooled, made.encode([cloud()]).pooled)
