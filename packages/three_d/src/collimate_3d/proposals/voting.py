"""From seeds to proposals: points vote for the centres of their objects, and votes that meet become a box.

Qi et al. 2019, VoteNet, arXiv 1904.09664, sections 4.2 and 4.3; the head as in leolyj/3D-VLP. With a seed at x with
features f, and MLPs of three layers,

    [dx, df] = MLP(f),       a vote at x + dx with (f + df) / |f + df|.

Votes are grouped around the farthest of them (set abstraction), and an MLP tells of each group whether it is an object,
how far the six faces of its box are from the group's centre, as in FCOS (Tian et al. 2019, arXiv 1904.01355), and its
class.

Departures: distances are exponentials, which are positive, as in FCOS. There is no heading: boxes of ScanRefer and of
rooms here are axis-aligned.

Shape legend: B rooms, S seeds, M proposals, K classes, D width of seeds, W width of proposals.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate_3d.pointnet2.encoders import Seeds
from collimate_3d.pointnet2.shared_mlp import SharedMLP
from collimate_3d.pointnet2.votenet import VoteSetAbstraction

FACES = 6
FARTHEST = 4.0  # ours: the exponent of a face's distance is at most that, 55 metres


class Proposals(NamedTuple):
    """What a head makes of the seeds.

    Attributes:
        votes: where each seed's vote lies, in metres.
        centers: of the groups, from which faces are measured.
        features: of the groups, after set abstraction.
        objectness: logits of no object and of an object.
        faces: distances in metres to the low and then the high faces along x, y and z.
        classes: logits.
    """

    votes: Float[Tensor, "B S 3"]
    centers: Float[Tensor, "B M 3"]
    features: Float[Tensor, "B M W"]
    objectness: Float[Tensor, "B M 2"]
    faces: Float[Tensor, "B M 6"]
    classes: Float[Tensor, "B M K"]

    @property
    def boxes(self) -> Float[Tensor, "B M 6"]:
        """Centre and full extents, in metres."""
        low, high = self.faces.split(3, -1)
        return torch.cat([self.centers + (high - low) / 2, high + low], -1)


class VoteHead(nn.Module):
    """Voting and proposing.

    Args:
        width: D.
        classes: K.
        proposals: M, 256 in VoteNet.
        radius: of a group of votes, in metres.
        neighbours: votes of a group at most.
        proposal_width: W.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        proposals: int = 256,
        radius: float = 0.3,
        neighbours: int = 16,
        proposal_width: int = 128,
    ) -> None:
        super().__init__()
        self.voting = nn.Sequential(SharedMLP([width, width, width]), nn.Linear(width, 3 + width))
        self.grouping = VoteSetAbstraction(
            proposals, radius, neighbours, width, (proposal_width,) * 3, normalize_xyz=True
        )
        self.proposing = nn.Sequential(
            SharedMLP([proposal_width] * 3), nn.Linear(proposal_width, 2 + FACES + max(1, classes))
        )

    def forward(self, seeds: Seeds) -> Proposals:
        offset, residual = self.voting(seeds.features).tensor_split([3], -1)
        votes = seeds.xyz + offset
        centers, features, _ = self.grouping(votes, normalize(seeds.features + residual, dim=-1))
        objectness, faces, classes = self.proposing(features).tensor_split([2, 2 + FACES], -1)
        return Proposals(votes, centers, features, objectness, faces.clamp_max(FARTHEST).exp(), classes)
