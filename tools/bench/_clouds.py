"""Clouds for the benches: points on the walls of a room, and sweeps of a LiDAR over ground, walls and boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RANGE = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)
"""x0, y0, z0, x1, y1, z1 of KITTI in metres"""


def room(points: int, seed: int = 0) -> Tensor:
    """(N, 3): floor, ceiling and walls of 6 x 5 x 3 m."""
    generator = torch.Generator().manual_seed(seed)
    extents = torch.tensor([6.0, 5.0, 3.0])
    xyz = torch.rand(points, 3, generator=generator) * extents
    face = torch.randint(0, 6, (points,), generator=generator)
    for axis in range(3):
        xyz[face == 2 * axis, axis] = 0.0
        xyz[face == 2 * axis + 1, axis] = extents[axis]
    return xyz


def sweep(points: int = 120_000, seed: int = 0) -> Tensor:
    """(N, 4): 64 rings of a sensor 1.73 m above the ground that sees walls and forty boxes; in the order of azimuth."""
    generator = torch.Generator().manual_seed(seed)
    turns = points // 64
    azimuth = torch.linspace(-math.pi, math.pi, turns)[:, None].expand(-1, 64)
    elevation = torch.linspace(-0.43, 0.035, 64).expand(turns, -1)
    reach = torch.minimum(1.73 / (-elevation).clamp_min(1e-3).sin(), torch.full_like(azimuth, 60.0))
    places = torch.rand(40, 2, generator=generator) * torch.tensor([2 * math.pi, 40.0]) + torch.tensor([-math.pi, 5.0])
    for angle, distance in places.tolist():
        hidden = ((azimuth - angle).abs() < 1.5 / distance) & (elevation.sin() * distance < 0.2) & (reach > distance)
        reach = torch.where(hidden, torch.full_like(reach, distance), reach)
    reach = reach + 0.02 * torch.randn(reach.shape, generator=generator)
    flat = reach * elevation.cos()
    xyz = torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), reach * elevation.sin()], -1).flatten(0, 1)
    return torch.cat([xyz, torch.rand(len(xyz), 1, generator=generator)], 1)
