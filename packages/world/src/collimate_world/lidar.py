"""The LiDAR of the world: rays in rings, the nearest solid that each meets, and where that point will be.

Shape legend: R rays, K solids, N points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64

from collimate_world.street import MOUNTED, ROAD_USERS, Solid, Street, upright

SURFACES = ("ground", "fixture", *ROAD_USERS)
"""What a point may lie on, in the order of the numbers in `labels`."""

REACH = 60.0  # metres
NOISE = 0.02  # metres along the ray, one standard deviation
LOST = 0.05  # the share of rays that do not come back
_RAYS = 1  # of a street's random numbers


@dataclass(frozen=True)
class Pattern:
    """Where rays go: `rings` of equal elevation, each with `columns` of equal azimuth.

    Attributes:
        view: degrees of azimuth, half to either side of straight ahead.
        lowest, highest: degrees of elevation of the outermost rings.
    """

    rings: int = 24
    columns: int = 240
    view: float = 120.0
    lowest: float = -20.0
    highest: float = 3.0

    def directions(self) -> Float[np.ndarray, "R 3"]:
        """Unit vectors, ring by ring."""
        elevation = np.radians(np.linspace(self.lowest, self.highest, self.rings))[:, None]
        azimuth = np.radians(self.view * ((np.arange(self.columns) + 0.5) / self.columns - 0.5))
        level = np.cos(elevation)
        across = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.tile(np.sin(elevation), azimuth.shape)])
        return across.reshape(3, -1).T


class Scan(NamedTuple):
    """What came back.

    Attributes:
        points: x, y, z in metres in the LiDAR's frame, intensity from 0 to 1.
        labels: what each lies on, by its number in `SURFACES`.
        instances: the road user, counted from 1; 0 for everything else.
    """

    points: Float32[np.ndarray, "N 4"]
    labels: Int64[np.ndarray, " N"]
    instances: Int64[np.ndarray, " N"]


def scan(street: Street, time: float, pattern: Pattern) -> Scan:
    """One sweep, taken in a moment."""
    rays, solids = pattern.directions(), _solids(street, time)
    distance = np.concatenate([_to_ground(rays)[:, None], _to_solids(rays, solids)], 1)
    nearest = distance.argmin(1)
    distance = distance.min(1)
    rng = street.generator(_RAYS, round(time * 1000))
    noise, lost = rng.normal(0, NOISE, len(rays)), rng.random(len(rays)) < LOST
    seen = (distance < REACH) & ~lost
    paint = street.generator(_RAYS).uniform(0.1, 0.9, 1 + solids.owner.max(initial=0) + 1)  # no class has its own
    owner = np.concatenate([[0], solids.owner])[nearest][seen]
    bright = paint[owner] * np.exp(-distance[seen] / REACH) + rng.normal(0, 0.03, int(seen.sum()))
    xyz = rays[seen] * (distance + noise)[seen, None]
    points = np.concatenate([xyz, np.clip(bright, 0, 1)[:, None]], 1).astype(np.float32)
    label = np.concatenate([[0], solids.label])[nearest][seen]
    return Scan(points, label, np.where(label > 1, owner, 0))


def scan_flow(street: Street, scanned: Scan, time: float, following: float) -> Float32[np.ndarray, "N 3"]:
    """By how many metres each point moves until the following time, the motion of the LiDAR included."""
    xyz = scanned.points[:, :3].astype(np.float64)
    start, stop = street.pose(time), np.linalg.inv(street.pose(following))
    motions = [stop @ start]
    for user in street.users:
        before, after = (_pose_of(user.box(each)) for each in (time, following))
        motions.append(stop @ after @ np.linalg.inv(before) @ start)
    motion = np.stack(motions)[scanned.instances]
    moved = (motion[:, :3, :3] @ xyz[..., None])[..., 0] + motion[:, :3, 3]
    return (moved - xyz).astype(np.float32)


def boxes_seen(street: Street, time: float) -> Float[np.ndarray, "M 7"]:
    """The boxes of all road users in the LiDAR's frame."""
    pose = street.pose(time)
    boxes = np.stack([user.box(time) for user in street.users])
    boxes[:, :3] = (boxes[:, :3] - pose[:3, 3]) @ pose[:3, :3]
    boxes[:, 6] -= np.arctan2(pose[1, 0], pose[0, 0])
    return boxes


class _Solids(NamedTuple):
    """All solids in the LiDAR's frame: places, half sizes, headings; road users counted from 1, fixtures after them."""

    centre: Float[np.ndarray, "K 3"]
    half: Float[np.ndarray, "K 3"]
    heading: Float[np.ndarray, " K"]
    round: np.ndarray
    label: Int64[np.ndarray, " K"]
    owner: Int64[np.ndarray, " K"]


def _solids(street: Street, time: float) -> _Solids:
    rows: list[tuple[Solid, Float[np.ndarray, "4 4"], int, int]] = []
    for number, (user, box) in enumerate(zip(street.users, boxes_seen(street, time), strict=True), 1):
        pose, label = _pose_of(box), 2 + ROAD_USERS.index(user.name)
        rows += [(solid, pose, label, number) for solid in user.solids()]
    to_lidar = np.linalg.inv(street.pose(time))
    for number, (solid, heading) in enumerate(street.fixtures, len(street.users) + 1):
        pose = to_lidar @ upright(*solid.centre, heading)
        rows.append((Solid(solid.round, (0, 0, 0), solid.size), pose, 1, number))
    poses = np.stack([pose for _, pose, _, _ in rows])
    centre = np.array([solid.centre for solid, *_ in rows])
    return _Solids(
        (poses[:, :3, :3] @ centre[..., None])[..., 0] + poses[:, :3, 3],
        np.array([solid.size for solid, *_ in rows]) / 2,
        np.arctan2(poses[:, 1, 0], poses[:, 0, 0]),
        np.array([solid.round for solid, *_ in rows]),
        np.array([label for _, _, label, _ in rows]),
        np.array([owner for *_, owner in rows]),
    )


def _pose_of(box: Float[np.ndarray, " 7"]) -> Float[np.ndarray, "4 4"]:
    x, y, z, *_, heading = box.tolist()
    return upright(x, y, z, heading)


def _to_ground(rays: Float[np.ndarray, "R 3"]) -> Float[np.ndarray, " R"]:
    down = -rays[:, 2]
    return np.where(down > 1e-6, MOUNTED / np.maximum(down, 1e-6), np.inf)


def _to_solids(rays: Float[np.ndarray, "R 3"], solids: _Solids) -> Float[np.ndarray, "R K"]:
    """Metres along each ray to each solid; infinity where it passes by."""
    distance = np.full((len(rays), len(solids.label)), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for crossing, own in ((_across_box, ~solids.round), (_across_disc, solids.round)):
            places = np.flatnonzero(own)
            centre, half, heading = (each[places] for each in (solids.centre, solids.half, solids.heading))
            enter, leave = crossing(rays, centre, half, heading)
            enter_z, leave_z = _slab(-centre[:, 2], rays[:, 2:], half[:, 2])
            enter, leave = np.maximum(enter, enter_z), np.minimum(leave, leave_z)
            # NaN, of a ray along a side or beside a disc, is a miss.
            distance[:, places] = np.where((enter <= leave) & (enter > 0), enter, np.inf)
    return distance


def _across_box(
    rays: Float[np.ndarray, "R 3"],
    centre: Float[np.ndarray, "k 3"],
    half: Float[np.ndarray, "k 3"],
    heading: Float[np.ndarray, " k"],
) -> tuple[Float[np.ndarray, "R k"], Float[np.ndarray, "R k"]]:
    """Where rays enter and leave boxes, as seen from above."""
    cosine, sine = np.cos(heading), np.sin(heading)
    x, y = rays[:, :1], rays[:, 1:2]
    enter, leave = _slab(-(centre[:, 0] * cosine + centre[:, 1] * sine), x * cosine + y * sine, half[:, 0])
    enter_y, leave_y = _slab(centre[:, 0] * sine - centre[:, 1] * cosine, y * cosine - x * sine, half[:, 1])
    return np.maximum(enter, enter_y), np.minimum(leave, leave_y)


def _across_disc(
    rays: Float[np.ndarray, "R 3"],
    centre: Float[np.ndarray, "k 3"],
    half: Float[np.ndarray, "k 3"],
    heading: Float[np.ndarray, " k"],
) -> tuple[Float[np.ndarray, "R k"], Float[np.ndarray, "R k"]]:
    """Where rays enter and leave cylinders, as seen from above; NaN where they pass by."""
    x, y = rays[:, :1], rays[:, 1:2]
    square = x * x + y * y
    aside = centre[:, 0] * y - centre[:, 1] * x
    middle = (centre[:, 0] * x + centre[:, 1] * y) / square
    chord = np.sqrt(half[:, 0] ** 2 * square - aside * aside) / square
    return middle - chord, middle + chord


def _slab(
    start: Float[np.ndarray, " k"], step: Float[np.ndarray, "R k"], half: Float[np.ndarray, " k"]
) -> tuple[Float[np.ndarray, "R k"], Float[np.ndarray, "R k"]]:
    """Where rays enter and leave what lies between -half and half."""
    inverse = 1 / step
    middle, reach = -start * inverse, half * np.abs(inverse)
    return middle - reach, middle + reach
