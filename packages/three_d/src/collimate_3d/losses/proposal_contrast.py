"""ProposalContrast (Yin et al. 2022, arXiv 2207.12654): regions of a sweep, the same in two views of it.

A proposal is a place and the points in a sphere about it; its embedding is what vector attention from the place to the
points makes of their features. Embeddings of the views, x and y,

- are told apart from those of all other proposals, L_ins: the NT-Xent of SimCLR over the 2n of them, and
- predict each other's assignments to prototypes, L_clu: SwAV's loss, the SUM of both directions.

L = L_ins + 0.005 L_clu in the released code, with τ = 0.1, ε = 0.03 and 3 iterations of 128 prototypes.

Shape legend: n proposals of this rank, K neighbours or prototypes, D width, d inner width.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from collimate.distributed import Group
from collimate.losses import supcon_loss, swapped_assignment_loss

CLUSTER_WEIGHT = 0.005  # yinjunbo/ProposalContrast, single_stage.py


def proposal_instance_loss(
    views: Float[Tensor, "n 2 D"], temperature: Float[Tensor, ""] | float = 0.1, group: Group = None
) -> Float[Tensor, ""]:
    """L_ins of both views of each proposal, normalised inside: each contrasted with all others of all ranks."""
    return supcon_loss(views, temperature=temperature, group=group)


def proposal_cluster_loss(
    first: Float[Tensor, "n K"],
    second: Float[Tensor, "n K"],
    temperature: Float[Tensor, ""] | float = 0.1,
    epsilon: float = 0.03,
    iterations: int = 3,
    group: Group = None,
) -> Float[Tensor, ""]:
    """L_clu of the cosines of both views with the prototypes."""
    return 2 * swapped_assignment_loss(first, second, 1 / temperature, epsilon, iterations, group=group)


class ProposalEncoding(nn.Module):
    """Vector attention from a proposal to the points about it, added to what the proposal was.

    With queries, keys and values in D / downsample channels, and p the embedded offset of proposal and neighbour,

        x + W Σ_k softmax_k( MLP(q - k + p) ) * (v + p),

    the softmax over neighbours, channel by channel. Names of parameters are those of the released code.

    Args:
        width: D.
        position_width: inner width of the MLP of offsets.
        attention_factor: inner width of the attention's MLP, in multiples of its channels.
        downsample: by how much attention is narrower.

    Raises:
        ValueError: the width cannot be divided so.
    """

    def __init__(self, width: int, position_width: int = 64, attention_factor: int = 4, downsample: int = 4) -> None:
        super().__init__()
        if width % downsample:
            raise ValueError(f"A width of {width} cannot be divided by {downsample}.")
        inner = width // downsample
        self.theta, self.phi, self.g = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.pos_mlp = nn.Sequential(nn.Linear(3, position_width), nn.ReLU(), nn.Linear(position_width, inner))
        hidden = inner * attention_factor
        self.attn_mlp = nn.Sequential(nn.Linear(inner, hidden), nn.ReLU(), nn.Linear(hidden, inner))
        self.conv_out = nn.Linear(inner, width, bias=False)

    def forward(
        self,
        proposal: Float[Tensor, "n D"],
        place: Float[Tensor, "n 3"],
        neighbours: Float[Tensor, "n K D"],
        neighbour_places: Float[Tensor, "n K 3"],
    ) -> Float[Tensor, "n D"]:
        """The embedding of each proposal; places in metres."""
        offset = self.pos_mlp(place[:, None] - neighbour_places)
        attention = self.attn_mlp(self.theta(proposal)[:, None] - self.phi(neighbours) + offset).softmax(1)
        return proposal + self.conv_out((attention * (self.g(neighbours) + offset)).sum(1))
