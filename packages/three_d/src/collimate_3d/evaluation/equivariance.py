"""Whether a map from above moves with the scene: equivariance of frozen encoders, and what they know of turns.

For a transform T that takes cells of the map to cells, so that the answer is exact,

    error(T) = | f(T p) - T f(p) | / | f(p) |    over the cells that both maps have,

0 for a network that moves with its input, about √2 for one whose features are strangers after the transform. T is a
mirror image of left and right, a right angle, both about the middle of the map, or a shift by whole cells of the map.
Backbones that read coordinates, as SECOND's does, are not exactly equivariant even to shifts.

Shape legend: B sweeps, N rows of stacked points, H W rows and columns of the map, D width, V views.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from collimate.data import EvalLoader, Source
from collimate.evaluation.features import Precision, autocast, evaluating, place, progress, settings_of
from collimate.evaluation.probes import LinearProbe
from collimate.evaluation.result import Result
from collimate.training import Method
from collimate_3d.bev import bev_map
from collimate_3d.grid import BEVGrid
from collimate_3d.lidar.processing import unpacked_sweeps
from collimate_3d.lidar.transforms import Transform
from collimate_3d.losses import rotation_class
from collimate_3d.voxel_encoder import VoxelEncoder

CELLS = 2  # ours: of the map, by which scenes are shifted


def evaluate_equivariance(
    method: Method,
    data: Source,
    batch_size: int = 4,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
) -> Result:
    """Errors of equivariance, the mean over sweeps.

    Args:
        method: one that encodes `lidar`; its map is that of the encoder, or of the sparse backbone where layers are
            behind it.
        data: sweeps.
        batch_size, num_workers, device, precision, limit: as of all evaluations.

    Raises:
        ValueError: no sweep can be read.
    """
    encoder = _backbone(method)
    where = place(method, device)
    loader = EvalLoader(data, {"lidar": method.processors["lidar"]}, batch_size, num_workers, limit=limit)
    transforms = exact_transforms(encoder.bev)
    errors: dict[str, list[Tensor]] = {name: [] for name in transforms}
    with evaluating(method):
        for batch in progress(loader, f"Moving {data.name}"):
            with torch.inference_mode(), autocast(where, precision):
                points = unpacked_sweeps(batch["lidar"][batch["valid"]]).points.to(where)
                for name, transform in transforms.items():
                    errors[name].append(equivariance_errors(encoder, points, transform).cpu())
    found = {f"error {name}": float(torch.cat(each).mean()) for name, each in errors.items()}
    count = len(torch.cat(next(iter(errors.values()))))
    if not count:
        raise ValueError(f"{data.name}: there is no sweep that can be read.")
    return Result("Equivariance", found, {}, settings_of(method, ["lidar"], data, count, limit, precision))


def evaluate_rotation_probe(
    method: Method,
    data: Source,
    test: Source,
    views: int = 4,
    classes: int = 10,
    largest_angle: float = math.pi / 2,
    batch_size: int = 4,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    seed: int = 0,
) -> Result:
    """Whether a linear probe tells, from what a frozen encoder pools, by how much a sweep was turned.

    Args:
        method: one that encodes `lidar`.
        data, test: sweeps to fit on, and others.
        views: V of each sweep, each turned by an angle that is drawn.
        classes: bins of the angle.
        largest_angle: radians, either way.
        batch_size, num_workers, device, precision, limit: as of all evaluations.
        seed: of the angles.
    """
    where = place(method, device)
    options: Any = (views, classes, largest_angle, batch_size, num_workers, where, precision, limit)
    features, labels = _turned_features(method, data, random.Random(seed), *options)
    unseen, wanted = _turned_features(method, test, random.Random(seed + 1), *options)
    probe = LinearProbe.fit_best(features, labels, classes)
    right = (probe.scores(unseen).argmax(1) == wanted).float()
    protocol = settings_of(method, ["lidar"], data, len(labels) // views, limit, precision)
    protocol |= {"test": test.name, "views of a sweep": views, "bins": classes, "chance": 1 / classes}
    return Result("Rotation probe", {"rotation accuracy": float(right.mean())}, {}, protocol)


def exact_transforms(grid: BEVGrid) -> dict[str, Transform]:
    """Transforms of the scene that take cells of a map to cells; a right angle only where the map is square."""
    rows, columns = grid.shape
    x, y = (grid.origin[0] + columns * grid.cell[0] / 2, grid.origin[1] + rows * grid.cell[1] / 2)
    found = {
        "flip": Transform(flip=True, shift=(0.0, 2 * y, 0.0)),
        "shift ahead": Transform(shift=(CELLS * grid.cell[0], 0.0, 0.0)),
        "shift left": Transform(shift=(0.0, CELLS * grid.cell[1], 0.0)),
    }
    if rows == columns and grid.cell[0] == grid.cell[1]:
        found["right angle"] = Transform(angle=math.pi / 2, shift=(x + y, y - x, 0.0))
    return found


def equivariance_errors(
    encoder: VoxelEncoder, points: Float[Tensor, "B N C"], transform: Transform
) -> Float[Tensor, " B"]:
    """error(T) of each sweep, 0 for one without any point in range.

    Args:
        points: x, y, z first, NaN where there is none.
        transform: that takes cells of the map to cells.
    """
    still = bev_map(encoder(points)).float()
    moved = bev_map(encoder(torch.stack([transform.points(each) for each in points]))).float()
    wanted = transform.map(still, encoder.bev)
    shared = transform.map(torch.ones_like(still[:, :1]), encoder.bev) > 0.5
    apart = ((moved - wanted) * shared).flatten(1).norm(dim=1)
    return apart / (wanted * shared).flatten(1).norm(dim=1).clamp_min(1e-12)


def _turned_features(
    method: Method,
    data: Source,
    draw: random.Random,
    views: int,
    classes: int,
    largest: float,
    batch_size: int,
    num_workers: int,
    where: torch.device,
    precision: Precision,
    limit: int | None,
) -> tuple[Float[Tensor, "BV D"], Int64[Tensor, " BV"]]:
    loader = EvalLoader(data, {"lidar": method.processors["lidar"]}, batch_size, num_workers, limit=limit)
    encoder = _backbone(method)
    features, angles = [], []
    with evaluating(method):
        for batch in progress(loader, f"Turning {data.name}"):
            points = unpacked_sweeps(batch["lidar"][batch["valid"]]).points
            for _ in range(views if len(points) else 0):
                drawn = [draw.uniform(-largest, largest) for _ in points]
                turned = [Transform(angle=angle).points(each) for angle, each in zip(drawn, points, strict=True)]
                with torch.inference_mode(), autocast(where, precision):
                    features.append(encoder(torch.stack(turned).to(where)).pooled.float().cpu())
                angles += drawn
    if not angles:
        raise ValueError(f"{data.name}: there is no sweep that can be read.")
    return torch.cat(features), rotation_class(torch.tensor(angles), classes, largest)


def _backbone(method: Method) -> Any:
    encoder = method.encoders["lidar"]
    return getattr(encoder, "lift", encoder)
