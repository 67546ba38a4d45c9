"""SiMHand: pictures of similar hands find each other, the more so the more alike their poses are.

Lin et al. 2025, arXiv 2502.15251; ut-vision/SiMHand. The two pictures of a pair are of different hands whose key points
are alike, mined beforehand (`pose_neighbours`). With unit vectors z of both sides of all pairs, z_i+ the partner of
z_i, τ = 0.5, and weights w that fall linearly with the distance of key points,

    L = mean_i - log [ exp(w_i z_i z_i+ / τ) / Σ_{a≠i} exp(w_ia z_i z_a / τ) ].

Departures: key points are those of the pictures as they are read, in shares of width and height, where the paper's are
those after augmentation, which here does not say where points come to lie; for the same reason the projection is not
turned back by the augmentation, as PeCLR's is. Poses are compared for mining by the cosine of centred key points of
unit length. The loss runs over the pairs of all ranks. The head is dropped after training, as published.

Shape legend: n samples of this rank, N of a data set, J key points, D width of the head's space, k neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate.encoders import BatchNormProjection, Encoder, Projection
from collimate.encoding import Encoding
from collimate.evaluation.neighbours import nearest_neighbours
from collimate.losses import matrix_weights_by_distance, pair_weights_by_distance, similarity_weighted_loss
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method
from collimate.training.pairs import side_by_side


@composed(
    similarity="cosine",
    targets="mined partner",
    weights="of logits, by distance of key points",
    negatives="all others of all ranks",
)
class SiMHand(Method):
    """An image tower trained on pairs of `collimate.data.WithNeighbours`.

    A sample's metadata (`json`; the other columns of a table) hold its key points: J lists of x and y.

    Args:
        image_encoder: the tower.
        image_processor: how pictures become its input.
        key: of the metadata, under which key points lie.
        head: the tower's vectors into the space of the loss; 512 and 128 with batch norm, as published, if None.
        temperature: τ.
    """

    modalities = ("image",)
    also = ("json",)

    def __init__(
        self,
        image_encoder: Encoder,
        image_processor: Processor,
        key: str = "keypoints",
        head: Projection | None = None,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        self.processors = {"image": image_processor}
        self.encoders = nn.ModuleDict({"image": image_encoder})
        self.head = head or BatchNormProjection(image_encoder.width, 128, hidden=512, layers=2)
        self.key, self.temperature = key, temperature

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoders[modality](inputs, mask)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"image": self.head(self.encode("image", batch["image"]).pooled)}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        pairs = side_by_side(embeddings["image"], sampling="WithNeighbours")
        points = side_by_side(key_points(batch["json"], self.key).to(embeddings["image"]))
        loss = similarity_weighted_loss(
            *pairs,
            self.temperature,
            pair_weights=pair_weights_by_distance(*points),
            matrix_weights=matrix_weights_by_distance(*points),
        )
        return {"pose": loss}


def key_points(metadata: list[dict[str, Any]], key: str) -> Float[Tensor, "n J 2"]:
    """Those of each sample.

    Raises:
        ValueError: a sample has none, or not as many as the others.
    """
    if any(key not in each for each in metadata):
        raise ValueError(f"Samples need key points, as lists of x and y, under {key!r} of their metadata.")
    return torch.tensor([each[key] for each in metadata], dtype=torch.float32)


def pose_neighbours(
    points: Float[Tensor, "N J 2"], videos: Int64[Tensor, " N"], count: int = 1, dims: int = 14
) -> Int64[Tensor, "N k"]:
    """The hands of other videos whose poses are most alike: a table for `WithNeighbours`.

    Args:
        points: key points of each hand, in one unit for both axes.
        videos: a number for the video that each hand is of.
        count: k.
        dims: principal components of the poses that are compared; 14 of 42 as published.
    """
    poses = points - points.mean(1, keepdim=True)
    poses = normalize(poses.flatten(1), dim=1)
    _, _, axes = torch.pca_lowrank(poses, q=min(dims, *poses.shape), center=False)
    return nearest_neighbours(poses @ axes, count, videos)
