"""Graph convolution over triplets of subject, relation and object.

Wald et al. 2020, Learning 3D Semantic Scene Graphs from 3D Indoor Reconstructions (3DSSG), arXiv 2004.03967, section
4.2. For each edge e from a subject s to an object o, and each node i,

    (m_o, e', m_s) = g1([x_o, e, x_s]),        x'_i = x_i + g2(mean of the messages that reach i),

with g1 and g2 of two layers. In the paper m_s reaches the subject and m_o the object; in its code both are added and
reach the object. A node that nothing reaches becomes x_i + g2(0).

Departures: none in the layer. `TripletGraph` finds edges and their features itself, and normalises what it gives.

Shape legend: N nodes, E edges, D width of nodes, W width of edges, B scenes, M objects of a scene.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from collimate_3d.graphs.base import GraphLayers
from collimate_3d.graphs.geometry import PLACES, box_numbers, nearest, pair_numbers, places_of

Ends = Literal["object", "both"]
Aggregation = Literal["mean", "add"]
PAIR_NUMBERS = 8 + PLACES


class TripletConvolution(nn.Module):
    """One layer, under the names that the published weights of 3DSSG carry.

    Args:
        width: D.
        edge_width: W.
        hidden: of g1 and g2, and of messages.
        ends: whether both halves of a message reach the object, as in the code, or each its own end, as in the paper.
        aggregation: of messages.
        batch_norm: after the matrices of g1 and the first of g2, as published. It sees all edges of a batch.
    """

    def __init__(
        self,
        width: int,
        edge_width: int,
        hidden: int,
        ends: Ends = "object",
        aggregation: Aggregation = "mean",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.hidden, self.edge_width, self.ends, self.aggregation = hidden, edge_width, ends, aggregation
        self.nn1 = _layers([2 * width + edge_width, hidden, 2 * hidden + edge_width], batch_norm, last=True)
        self.nn2 = _layers([hidden, hidden, width], batch_norm, last=False)

    def forward(
        self, nodes: Float[Tensor, "N D"], edges: Int64[Tensor, "2 E"], features: Float[Tensor, "E W"]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "E W"]]:
        """Nodes and edge features after the layer.

        Args:
            nodes: x.
            edges: subject and object of each edge; one that is named twice counts twice.
            features: e.
        """
        subject, target = edges
        told = self.nn1(torch.cat([nodes[target], features, nodes[subject]], 1))
        to_object, features, to_subject = told.split([self.hidden, self.edge_width, self.hidden], 1)
        if self.ends == "object":
            messages, place = to_object + to_subject, target
        else:
            messages, place = torch.cat([to_object, to_subject]), torch.cat([target, subject])
        reached = nodes.new_zeros(len(nodes), self.hidden).index_add(0, place, messages.to(nodes.dtype))
        if self.aggregation == "mean":
            reached = (
                reached
                / nodes.new_zeros(len(nodes)).index_add(0, place, nodes.new_ones(len(place))).clamp_min(1)[:, None]
            )
        return nodes + self.nn2(reached), features


class TripletGraph(GraphLayers):
    """Objects that know their neighbours: triplet convolutions over the k nearest objects and over given relations.

    Edge features are the eight numbers of 3DSSG (`pair_numbers`) and the five of 3D-VisTA (`places_of`), without
    gradient, through one matrix [ours]: the former have no distance, which much of what is said of objects is about.
    Nodes are normalised at the end, as the layer adds to them without bound [ours].

    Args:
        width: D.
        edge_width: W.
        hidden: of the layers' networks and messages.
        layers: convolutions; between them nodes and edges pass a ReLU.
        k: neighbours of each object.
        ends, aggregation, batch_norm: of `TripletConvolution`.
    """

    def __init__(
        self,
        width: int = 128,
        edge_width: int = 128,
        hidden: int = 128,
        layers: int = 2,
        k: int = 8,
        ends: Ends = "object",
        aggregation: Aggregation = "mean",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.k = width, k
        self.edge_features = nn.Linear(PAIR_NUMBERS, edge_width)
        self.gconvs = nn.ModuleList(
            TripletConvolution(width, edge_width, hidden, ends, aggregation, batch_norm) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        nodes: Float[Tensor, "B M D"],
        boxes: Float[Tensor, "B M 6"],
        given: Bool[Tensor, "B M"],
        related: Bool[Tensor, "B M M"],
    ) -> Float[Tensor, "B M D"]:
        edges = edges_between(boxes, given, related, self.k)
        features = self.edge_features(edge_numbers(boxes, edges))
        flat, _ = convolved(self.gconvs, nodes.flatten(0, 1), edges, features)
        return self.norm(flat).unflatten(0, nodes.shape[:2])


def edges_between(
    boxes: Float[Tensor, "B M 6"], given: Bool[Tensor, "B M"], related: Bool[Tensor, "B M M"], k: int
) -> Int64[Tensor, "2 E"]:
    """Subjects and objects of the edges from each object's k nearest ones, and of given relations.

    Objects are numbered through all scenes.
    """
    kept = (nearest(boxes[..., :3], given, k) | related) & given[:, :, None] & given[:, None]
    scene, subject, target = kept.nonzero(as_tuple=True)
    return torch.stack([subject, target]) + scene * given.shape[1]


def edge_numbers(boxes: Float[Tensor, "B M 6"], edges: Int64[Tensor, "2 E"]) -> Float[Tensor, "E 13"]:
    """What the boxes at the two ends of each edge say of each other. No gradient."""
    flat = boxes.detach().flatten(0, 1)
    offset = flat[edges[0], :3] - flat[edges[1], :3]
    return torch.cat([pair_numbers(box_numbers(flat), edges), places_of(offset)], 1)


def convolved(
    layers: nn.ModuleList, nodes: Float[Tensor, "N D"], edges: Int64[Tensor, "2 E"], features: Float[Tensor, "E W"]
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "E W"]]:
    """Nodes and edge features after several layers, with a ReLU between them and none after the last."""
    for number, layer in enumerate(layers):
        if number:
            nodes, features = nodes.relu(), features.relu()
        nodes, features = layer(nodes, edges, features)
    return nodes, features


def _layers(widths: list[int], batch_norm: bool, last: bool) -> nn.Sequential:
    """Matrices with ReLUs between, and after the last one if asked for."""
    parts: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        parts.append(nn.Linear(inputs, outputs))
        if last or number < len(widths) - 2:
            parts += [nn.BatchNorm1d(outputs), nn.ReLU()] if batch_norm else [nn.ReLU()]
    return nn.Sequential(*parts)
