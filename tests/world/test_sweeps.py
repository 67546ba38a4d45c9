"""Sweeps of streets: points lie where solids are, boxes hold them, flow leads where things go; the same every time."""

import numpy as np
import pytest
import torch

from collimate.data import open_source
from collimate.data.commands import write_shards
from collimate.data.decoding import value_of
from collimate_3d.boxes import box_corners, into_boxes, point_counts
from collimate_3d.lidar.flow import flow_of_tracks
from collimate_3d.lidar.objects import Objects
from collimate_3d.lidar.poses import apply_pose, check_pose, motion_between
from collimate_world import MOUNTED, ROAD_USERS, SURFACES, SWEEP_PERIOD, Pattern, SweepSource, sample_street
from collimate_world.lidar import NOISE
from collimate_world.street import SPEEDS, along_arc

PAIRS = 12


@pytest.fixture(scope="module")
def source():
    return SweepSource()


@pytest.fixture(scope="module")
def samples(source):
    return [source.read(index) for index in range(PAIRS)]


def opened(sample, key="sweep.npz"):
    return value_of(sample, (key,))


def objects(sample, key="objects.json"):
    return Objects.from_json(sample[key])


def test_samples_are_the_same_every_time(samples):
    again = open_source("world-sweeps:train")
    assert len(again) == 10_000
    assert again.read(5) == samples[5]
    others = (open_source("world-sweeps:val"), open_source("world-sweeps:train?seed=1"))
    assert all(other.read(5)["sweep.npz"] != samples[5]["sweep.npz"] for other in others)
    assert samples[5]["json"]["synthetic"]


def test_points_lie_on_what_they_say(samples):
    for sample in samples:
        sweep = opened(sample)
        ground = sweep.points[sweep.labels == SURFACES.index("ground")]
        assert np.abs(ground[:, 2] + MOUNTED).max() < 6 * NOISE
        assert (sweep.points[:, 2] > -MOUNTED - 6 * NOISE).all()
        assert 0 <= sweep.points[:, 3].min() < sweep.points[:, 3].max() <= 1
        listed = objects(sample)
        for track, name, box in zip(listed.tracks, listed.names, listed.boxes, strict=True):
            own = sweep.instances == track + 1
            assert (sweep.labels[own] == SURFACES.index(name)).all()
            inside = into_boxes(torch.from_numpy(sweep.xyz[own]).double(), torch.from_numpy(box)[None])[:, 0].abs()
            assert (inside <= torch.from_numpy(box[3:6]) / 2 + 6 * NOISE).all()


def test_every_box_with_points_is_listed_and_no_other_point_is_in_it(samples):
    for sample in samples:
        sweep, listed = opened(sample), objects(sample)
        strange = sweep.xyz[sweep.instances == 0]
        smaller = torch.from_numpy(listed.boxes) - torch.tensor([0, 0, 0, 0.2, 0.2, 0.2, 0])
        assert (point_counts(torch.from_numpy(strange).double(), smaller) == 0).all()
        counts = np.bincount(sweep.instances)
        assert set(listed.tracks) == {track - 1 for track in np.flatnonzero(counts >= 5) if track}
        assert [each["points"] for each in sample["objects.json"]] == counts[listed.tracks + 1].tolist()


def test_all_classes_are_seen_and_differ_in_shape(samples):
    names = [name for sample in samples for name in objects(sample).names]
    assert set(names) == set(ROAD_USERS)
    boxes = np.concatenate([objects(sample).boxes for sample in samples])
    means = {name: boxes[[each == name for each in names], 3:6].mean(0) for name in ROAD_USERS}
    assert means["Car"][1] > 1.4 > 0.8 > means["Cyclist"][1]
    assert means["Cyclist"][0] > 1.4 > 1.0 > means["Pedestrian"][0]


def test_what_looks_somewhere_is_higher_behind(samples):
    """Without that no detector could tell front from back: cabins and riders stand behind the middle."""
    for name, least in (("Car", 0.05), ("Cyclist", 0.05)):
        along = []
        for sample in samples:
            sweep, listed = opened(sample), objects(sample)
            for track, kind, box in zip(listed.tracks, listed.names, listed.boxes, strict=True):
                if kind == name:
                    own = torch.from_numpy(sweep.xyz[sweep.instances == track + 1]).double()
                    inside = into_boxes(own, torch.from_numpy(box)[None])[:, 0] / torch.from_numpy(box[3:6])
                    along += inside[inside[:, 2] > 0.2, 0].tolist()
        assert len(along) > 30
        assert np.mean(along) < -least, name


def test_nearer_things_hide_what_is_behind(samples):
    """Along no direction are there two points, and whoever is hidden from view has none."""
    sweep = opened(samples[0])
    ways = np.round(sweep.xyz / np.linalg.norm(sweep.xyz, axis=1, keepdims=True), 3)
    assert len(np.unique(ways, axis=0)) > 0.98 * len(ways)
    users = sum(len(sample["json"]["users"]) for sample in samples)
    assert sum(len(objects(sample)) for sample in samples) < users


def test_poses_and_flow_lead_to_the_next_sweep(samples):
    for sample in samples:
        now, before = opened(sample), opened(sample, "previous.npz")
        assert before.flow_includes_ego
        assert now.time - before.time == pytest.approx(SWEEP_PERIOD)
        check_pose(now.pose)
        still = before.instances == 0
        motion = motion_between(before.pose, now.pose)
        np.testing.assert_allclose((before.xyz + before.flow)[still], apply_pose(motion, before.xyz[still]), atol=1e-4)
        first, then = objects(sample, "previous_objects.json"), objects(sample)
        both = np.intersect1d(first.tracks, then.tracks)
        known = still | np.isin(before.instances, both + 1)
        tracked = flow_of_tracks(before.xyz, first, then, motion)
        apart = np.abs(tracked - before.flow)[known].max(1)
        assert np.median(apart) < 1e-4
        assert (apart > 1e-3).mean() < 0.05  # ground at the edge of a box
        assert np.linalg.norm(before.flow, axis=1).max() < 10


def test_things_move_where_they_look():
    moved = 0
    for index in range(20):
        for user in sample_street("train", index).users:
            start, stop = user.box(0.0), user.box(0.1)
            way = stop[:2] - start[:2]
            low, high = SPEEDS[user.name]
            assert low == 0 or user.speed >= low
            assert np.linalg.norm(way) == pytest.approx(0.1 * user.speed, rel=1e-2, abs=1e-9)
            assert user.speed <= high
            if user.speed > 0.5:
                middle = (start[6] + stop[6]) / 2
                np.testing.assert_allclose(way / np.linalg.norm(way), [np.cos(middle), np.sin(middle)], atol=1e-6)
                moved += 1
    assert moved > 50
    x, y, heading = along_arc((0.0, 0.0, 0.0), np.pi, np.pi, 1.0)  # half a circle of radius 1
    assert (x, y, heading) == pytest.approx((0, 2, np.pi))


def test_nothing_reaches_into_another():
    for index in range(10):
        corners = [user.box(0.0) for user in sample_street("train", index, objects=(12, 12)).users]
        seen = box_corners(torch.from_numpy(np.stack(corners)))
        inside = (into_boxes(seen.reshape(-1, 3), torch.from_numpy(np.stack(corners))).abs().clamp_min(0)
                  < torch.from_numpy(np.stack(corners))[:, 3:6] / 2 - 1e-6).all(-1)  # fmt: skip
        assert not inside.any()


def test_patterns():
    rays = Pattern(4, 6, 90, -10, 0).directions()
    assert rays.shape == (24, 3)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=1), 1)
    assert np.degrees(np.arcsin(rays[:, 2])).reshape(4, 6)[:, 0] == pytest.approx(np.linspace(-10, 0, 4))
    assert np.abs(np.degrees(np.arctan2(rays[:, 1], rays[:, 0]))).max() == pytest.approx(37.5)
    around = SweepSource(columns=64, rings=8, view=360, objects="1-3")
    assert opened(around.read(0)).xyz[:, 0].min() < -3


def test_through_shards(tmp_path, samples):
    write_shards(SweepSource(length=2), str(tmp_path), {}, shuffle=False)
    shards = open_source(str(tmp_path))
    np.testing.assert_array_equal(opened(shards.read(1), "previous.npz").flow, opened(samples[1], "previous.npz").flow)
    assert value_of(shards.read(1), ("objects.json",)) == samples[1]["objects.json"]


def test_what_is_refused(source):
    with pytest.raises(ValueError, match="up to 360 degrees"):
        SweepSource(view=0)
    with pytest.raises(ValueError, match="1 to 24 road users"):
        SweepSource(objects="0-3")
    with pytest.raises(ValueError, match="not 'dev'"):
        SweepSource("dev")
    with pytest.raises(IndexError, match="no sample 10000"):
        source.read(10_000)
