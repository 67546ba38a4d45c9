"""Graph convolution with attention over features: each neighbour is weighed number by number.

Wu et al. 2021, SceneGraphFusion, arXiv 2103.14898, section 4.2 (FAN). For each edge e_ij from a subject i to an object
j, with matrices W and networks g of two layers,

    m_ij = softmax(g_a([W_q x_i, W_k e_ij]) / sqrt(F / H)) * W_v x_j,     the softmax over the F / H channels of a head
    x'_i = g_v([x_i, max over j of m_ij]),        e'_ij = g_e([x_i, e_ij, x_j]).

Messages reach the subject. A node that is the subject of no edge has 0 in the place of the maximum.

Departures: none in the layer, which follows ShunChengWu/3DSSG. `FeatureAttentionGraph` finds edges and their features
as `TripletGraph` does, and normalises what it gives.

Shape legend: N nodes, E edges, D width of nodes, F width of edges and of attention, H heads, B scenes, M objects of a
scene.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from collimate_3d.graphs.base import GraphLayers
from collimate_3d.graphs.triplets import PAIR_NUMBERS, edge_numbers, edges_between

Reduction = Literal["max", "sum"]


class FeatureAttention(nn.Module):
    """One layer, under the names that the published weights of 3DSSG carry; without batch norms.

    Args:
        width: D.
        edge_width: F.
        heads: H, which divide both widths.
        aggregation: of messages.

    Raises:
        ValueError: the heads do not divide the widths.
    """

    def __init__(self, width: int, edge_width: int, heads: int, aggregation: Reduction = "max") -> None:
        super().__init__()
        if width % heads or edge_width % heads:
            raise ValueError(f"{heads} heads share {width} and {edge_width} numbers evenly; choose divisors of both.")
        self.heads, self.aggregation = heads, aggregation
        attended, shared = edge_width // heads, (width + edge_width) // heads
        self.nn_edge = _layers(2 * width + edge_width, width + edge_width, edge_width)
        self.proj_q = nn.Sequential(nn.Linear(width, width))
        self.proj_k = nn.Sequential(nn.Linear(edge_width, edge_width))
        self.proj_v = nn.Sequential(nn.Linear(width, edge_width))
        self.nn_att = nn.Sequential(nn.Conv1d(shared, shared, 1), nn.ReLU(), nn.Conv1d(shared, attended, 1))
        self.update_node = _layers(width + edge_width, width + edge_width, width)

    def forward(
        self, nodes: Float[Tensor, "N D"], edges: Int64[Tensor, "2 E"], features: Float[Tensor, "E F"]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "E F"], Float[Tensor, "E C H"]]:
        """Nodes and edge features after the layer, and the weights of each edge.

        Args:
            nodes: x.
            edges: subject and object of each edge; one that is named twice counts twice.
            features: e.
        """
        subject, target = edges
        query = self.proj_q(nodes[subject]).unflatten(1, (-1, self.heads))  # heads vary fastest
        key = self.proj_k(features).unflatten(1, (-1, self.heads))
        logits = self.nn_att(torch.cat([query, key], 1))
        weights = (logits / math.sqrt(features.shape[1] / self.heads)).softmax(1)
        messages = weights.flatten(1) * self.proj_v(nodes[target])
        place = subject[:, None].expand_as(messages)
        reduce = "amax" if self.aggregation == "max" else "sum"
        reached = messages.new_zeros(len(nodes), messages.shape[1])
        reached = reached.scatter_reduce(0, place, messages, reduce, include_self=False)
        told = self.nn_edge(torch.cat([nodes[subject], features, nodes[target]], 1))
        return self.update_node(torch.cat([nodes, reached], 1)), told, weights


class FeatureAttentionGraph(GraphLayers):
    """Objects that weigh what their neighbours say, over the k nearest objects and over given relations.

    Args:
        width: D.
        edge_width: F.
        heads: H.
        layers: convolutions; between them nodes and edges pass a ReLU.
        k: neighbours of each object.
        aggregation: of messages.
    """

    def __init__(
        self,
        width: int = 128,
        edge_width: int = 128,
        heads: int = 8,
        layers: int = 2,
        k: int = 8,
        aggregation: Reduction = "max",
    ) -> None:
        super().__init__()
        self.width, self.k = width, k
        self.edge_features = nn.Linear(PAIR_NUMBERS, edge_width)
        self.gconvs = nn.ModuleList(FeatureAttention(width, edge_width, heads, aggregation) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        nodes: Float[Tensor, "B M D"],
        boxes: Float[Tensor, "B M 6"],
        given: Bool[Tensor, "B M"],
        related: Bool[Tensor, "B M M"],
    ) -> Float[Tensor, "B M D"]:
        edges = edges_between(boxes, given, related, self.k).flip(0)  # here it is the subject that is told
        features = self.edge_features(edge_numbers(boxes, edges))
        flat, _, _ = attended(self.gconvs, nodes.flatten(0, 1), edges, features)
        return self.norm(flat).unflatten(0, nodes.shape[:2])


def attended(
    layers: nn.ModuleList, nodes: Float[Tensor, "N D"], edges: Int64[Tensor, "2 E"], features: Float[Tensor, "E F"]
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "E F"], list[Float[Tensor, "E C H"]]]:
    """Nodes and edge features after several layers, with a ReLU between them, and every layer's weights.

    A single layer is followed by a ReLU, too, as published.
    """
    weights = []
    for number, layer in enumerate(layers, 1):
        nodes, features, own = layer(nodes, edges, features)
        weights.append(own)
        if number < len(layers) or len(layers) == 1:
            nodes, features = nodes.relu(), features.relu()
    return nodes, features, weights


def _layers(*widths: int) -> nn.Sequential:
    """Matrices with ReLUs between them."""
    parts = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*parts[:-1])
