"""Point clouds as records and in batches: what is not finite, empty or far away, and what does not fit."""

import numpy as np
import pytest
import torch

from collimate_3d.points import PointBatch, PointCloud


def cloud(count=5, fields=("red", "intensity")) -> PointCloud:
    generator = np.random.default_rng(count)
    return PointCloud.of(generator.normal(size=(count, 3)), generator.random((count, len(fields))), fields)


def test_points_that_are_not_finite_are_left_out_and_counted():
    xyz = np.zeros((5, 3))
    xyz[1, 2], xyz[3, 0] = np.nan, np.inf
    made = PointCloud.of(xyz, np.arange(5.0)[:, None], ("intensity",))
    assert made.left_out == 2
    assert made.features[:, 0].tolist() == [0, 2, 4]
    assert made.xyz.dtype == made.features.dtype == np.float32


def test_coordinates_of_a_map_keep_their_millimetres():
    centre = np.array([500_000.0, 5_400_000.0, 300.0])
    xyz = centre + np.array([[0.001, 0.002, 0.003], [10.5, -20.25, 3.125]])
    made = PointCloud.of(xyz)
    assert np.abs(made.world - xyz).max() < 1e-5
    assert all(part == round(part) for part in made.origin)
    assert np.abs(xyz.astype(np.float32) - xyz).max() > 0.01  # what would have been lost


def test_an_origin_that_is_given_stays():
    made = PointCloud.of(np.ones((2, 3)), origin=(1e6, 2e6, 3.0))
    assert made.origin == (1e6, 2e6, 3.0)
    assert made.world[0].tolist() == [1e6 + 1, 2e6 + 1, 4.0]


def test_near_coordinates_stay_where_they_are():
    made = PointCloud.of(np.array([[100.0, -70.0, 2.0]]))
    assert made.origin == (0.0, 0.0, 0.0)
    assert made.xyz.tolist() == [[100.0, -70.0, 2.0]]


def test_channels_by_name():
    made = cloud()
    assert np.array_equal(made.channels(["intensity"])[:, 0], made.features[:, 1])
    with pytest.raises(ValueError, match="has no green; it has red, intensity"):
        made.channels(["red", "green"])


@pytest.mark.parametrize("xyz", [np.zeros((3, 2)), np.zeros(3), np.zeros((0,))])
def test_what_is_no_list_of_points_is_refused(xyz):
    with pytest.raises(ValueError, match=r"Points are \(N, 3\)"):
        PointCloud.of(xyz)


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 1\) is expected"):
        PointCloud.of(np.zeros((4, 3)), np.zeros((3, 1)), ("red",))
    with pytest.raises(ValueError, match=r"\(4, 0\) is expected"):
        PointCloud.of(np.zeros((4, 3)), np.zeros((4, 1)))


def test_clouds_side_by_side_and_back():
    clouds = [cloud(3), cloud(0), cloud(5)]
    batch = PointBatch.collate(clouds)
    assert batch.ptr.tolist() == [0, 3, 3, 8]
    assert batch.cloud.tolist() == [0] * 3 + [2] * 5
    padded = batch.padded()
    assert padded.shape == (3, 5, 5)
    assert padded.isnan().all(-1).sum(1).tolist() == [2, 5, 0]
    again = PointBatch.of_padded(padded)
    for one, two in zip((batch.points, batch.cloud, batch.ptr), (again.points, again.cloud, again.ptr), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(batch.points[3:, :3], torch.from_numpy(clouds[2].xyz))


def test_origins_travel_with_the_batch():
    far = PointCloud.of(np.array([[5e5, 5e6, 0.0]]))
    batch = PointBatch.collate([cloud(2, ()), far])
    assert batch.origins.tolist() == [[0, 0, 0], [5e5, 5e6, 0]]
    assert batch.origins.dtype == torch.float64


def test_a_mask_and_what_is_not_finite_are_left_out():
    inputs = torch.zeros(2, 4, 3)
    inputs[0, 1, 2] = torch.inf
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[1, 3] = False
    assert PointBatch.of_padded(inputs, mask).ptr.tolist() == [0, 3, 6]


def test_what_does_not_fit_in_a_batch_is_refused():
    with pytest.raises(ValueError, match="no cloud to collate"):
        PointBatch.collate([])
    with pytest.raises(ValueError, match="have intensity and none"):
        PointBatch.collate([cloud(2, ("intensity",)), cloud(2, ())])
    with pytest.raises(ValueError, match="does not fit into 2 rows"):
        PointBatch.collate([cloud(3)]).padded(2)
    with pytest.raises(ValueError, match="Stacked points are"):
        PointBatch.of_padded(torch.zeros(4, 3))
