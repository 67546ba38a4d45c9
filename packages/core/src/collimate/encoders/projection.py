"""Heads that carry a tower's vectors into a joint space. They work on pooled vectors and on tokens alike.

Shape legend: W the tower's width, D the joint width.
"""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from collimate.configurable import Configurable, at_least
from collimate.encoding import Encoding


class Projection(nn.Module, Configurable):
    """A map from `width` to `dim` that looks at one vector at a time."""

    width: int
    dim: int

    def project(self, encoding: Encoding) -> Encoding:
        """The encoding with its pooled vectors and its tokens in the joint space."""
        tokens = None if encoding.tokens is None else self(encoding.tokens)
        return encoding.replace(pooled=self(encoding.pooled), tokens=tokens)

    def forward(self, vectors: Float[Tensor, "... W"]) -> Float[Tensor, "... D"]:
        raise NotImplementedError


class LinearProjection(Projection):
    """One matrix, as in CLIP.

    Args:
        width: W.
        dim: D.
        bias: whether a bias is added. CLIP's towers have none, its ResNets' attention pool has one.
    """

    def __init__(self, width: int, dim: int, bias: bool = False) -> None:
        super().__init__()
        self.width, self.dim = width, dim
        self.linear = nn.Linear(width, dim, bias)
        nn.init.normal_(self.linear.weight, std=width**-0.5)  # openai/CLIP, clip/model.py
        if bias:
            nn.init.zeros_(self.linear.bias)

    def forward(self, vectors: Float[Tensor, "... W"]) -> Float[Tensor, "... D"]:
        return self.linear(vectors)


class MLPProjection(Projection):
    """Two layers with a GELU between, as in SimCLR and its descendants.

    Args:
        width: W.
        dim: D.
        hidden: width of the hidden layer; W if None.
        activation: what stands between; LAION's CLAP has a ReLU.
    """

    def __init__(
        self, width: int, dim: int, hidden: int | None = None, activation: Literal["gelu", "relu"] = "gelu"
    ) -> None:
        super().__init__()
        self.width, self.dim = width, dim
        between = {"gelu": nn.GELU, "relu": nn.ReLU}[activation]()
        self.layers = nn.Sequential(nn.Linear(width, hidden or width), between, nn.Linear(hidden or width, dim))

    def forward(self, vectors: Float[Tensor, "... W"]) -> Float[Tensor, "... D"]:
        return self.layers(vectors)


class BatchNormProjection(Projection):
    """Layers with batch norm and ReLU between, as projectors of Barlow Twins, SimSiam and clip-rocket are.

    Across ranks the norms see a rank's own vectors unless `trainer.sync_batchnorm` is on.

    Args:
        width: W.
        dim: D.
        hidden: width of the hidden layers.
        layers: matrices, the last one among them.
        final_norm: whether a batch norm without scale follows the last.
    """

    def __init__(self, width: int, dim: int, hidden: int = 4096, layers: int = 3, final_norm: bool = False) -> None:
        super().__init__()
        self.width, self.dim = width, dim
        parts: list[nn.Module] = []
        for given in [width, *[hidden] * (layers - 2)][: layers - 1]:
            parts += [nn.Linear(given, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        parts.append(nn.Linear(hidden if layers > 1 else width, dim, bias=not final_norm))
        if final_norm:
            parts.append(nn.BatchNorm1d(dim, affine=False))
        self.layers = nn.Sequential(*parts)

    def forward(self, vectors: Float[Tensor, "B W"]) -> Float[Tensor, "B D"]:
        return self.layers(vectors)


class NoProjection(Projection):
    """The tower's own space is the joint space, as in SigLIP's image tower.

    Args:
        width: W, which is D too.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = self.dim = width

    def forward(self, vectors: Float[Tensor, "... W"]) -> Float[Tensor, "... W"]:
        return vectors


def projections_for(encoders: nn.ModuleDict, dim: int, **given: Projection | None) -> nn.ModuleDict:
    """Each encoder's projection into the joint space, by its modality.

    Args:
        encoders: modality -> encoder.
        dim: D, for those that are made here.
        given: by modality, its projection; one matrix if None.

    Raises:
        ValueError: D is not positive.
    """
    at_least(1, embed_dim=dim)
    widths: dict[str, Any] = {modality: encoder.width for modality, encoder in encoders.items()}
    return nn.ModuleDict({name: given.get(name) or LinearProjection(width, dim) for name, width in widths.items()})
