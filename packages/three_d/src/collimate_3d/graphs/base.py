"""What every graph over a scene's objects is.

Shape legend: B scenes, M objects of a scene, D width.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from collimate.configurable import Configurable


class GraphLayers(nn.Module, Configurable):
    """Objects in, objects that know of each other out."""

    width: int
    """D."""

    def forward(
        self,
        nodes: Float[Tensor, "B M D"],
        boxes: Float[Tensor, "B M 6"],
        given: Bool[Tensor, "B M"],
        related: Bool[Tensor, "B M M"],
    ) -> Float[Tensor, "B M D"]:
        """Nodes after the graph.

        Args:
            nodes: one row an object.
            boxes: centre and extents, in metres. No gradient runs into them.
            given: which rows are objects; the others change nobody, and what they become means nothing.
            related: [subject, object], the edges that the scene's annotation has.
        """
        raise NotImplementedError


class NoGraph(GraphLayers):
    """Objects that know nothing of each other: what a graph is compared with.

    Args:
        width: D.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.width = width

    def forward(
        self,
        nodes: Float[Tensor, "B M D"],
        boxes: Float[Tensor, "B M 6"],
        given: Bool[Tensor, "B M"],
        related: Bool[Tensor, "B M M"],
    ) -> Float[Tensor, "B M D"]:
        return nodes
