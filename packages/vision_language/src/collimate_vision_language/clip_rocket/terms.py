"""Terms without negatives beside clip-rocket's contrast, each with its own projectors (Fini et al. 2023, section 3.2).

- `BarLIP`: a picture's and its text's coordinates agree, and different ones are decorrelated (Barlow Twins);
- `SiamLIP`: each predicts the other, whose gradient is stopped (SimSiam); `BYOLIP` from a momentum model (BYOL);
- `SwALIP`: strong views predict the assignments of the others (SwAV).

facebookresearch/clip-rocket, losses.py and models.py. What the paper finds is that a strong recipe leaves them little
to add. Sums run over all 1 + K x K pairs of a view of the picture and one of the text: both weak, or both strong.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate.configurable import Configurable
from collimate.encoders import BatchNormProjection
from collimate.losses import cross_correlation_loss, predictive_loss
from collimate.training import momentum_copy
from collimate_vision_language.clip_rocket.losses import Vectors, swapped_view_loss


class Views(NamedTuple):
    """Of each view, the weak one first: the towers' vectors, and those of the local projections.

    Attributes:
        image, text: the towers' vectors.
        image_local, text_local: h of the strong views.
        image_target, text_target: the momentum towers' vectors of all views; those of the towers without momentum.
        local_logit_scale: s'.
    """

    image: Vectors
    text: Vectors
    image_local: Vectors
    text_local: Vectors
    image_target: Vectors
    text_target: Vectors
    local_logit_scale: Float[Tensor, ""]


class ViewTerm(nn.Module, Configurable):
    """A further loss of the views.

    Attributes:
        name: of the loss term.
        momentum: of the momentum model that gives the targets; None for none.
    """

    name: str
    momentum: float | None = None

    def forward(self, views: Views) -> Float[Tensor, ""]:
        raise NotImplementedError


class BarLIP(ViewTerm):
    """Cross-correlation of pictures and texts, mean of all pairs of views.

    Args:
        image_width, text_width: of the towers.
        dim: of the projectors' layers; 8192 as published, after two of 3000.
        hidden: width of the layers before; 3000 as published.
        off_diagonal: λ; 5e-3 as published.
        scale: of the term; 0.025 as published.
    """

    name = "barlow"

    def __init__(
        self,
        image_width: int,
        text_width: int,
        dim: int = 8192,
        hidden: int = 3000,
        off_diagonal: float = 5e-3,
        scale: float = 0.025,
    ) -> None:
        super().__init__()
        self.projectors = _projectors(image_width, text_width, dim, hidden)
        self.off_diagonal, self.scale = off_diagonal, scale

    def forward(self, views: Views) -> Float[Tensor, ""]:
        image, text = _through(self.projectors["image"], views.image), _through(self.projectors["text"], views.text)
        return barlow_of_views(image, text, self.off_diagonal, self.scale)


class SiamLIP(ViewTerm):
    """Each modality's predictor meets the other's projection, which is not differentiated; the mean of all terms.

    Args:
        image_width, text_width: of the towers.
        dim: of projectors and predictors.
        hidden: width of their hidden layers.
    """

    name = "prediction"

    def __init__(self, image_width: int, text_width: int, dim: int = 256, hidden: int = 4096) -> None:
        super().__init__()
        self.projectors = _projectors(image_width, text_width, dim, hidden)
        self.predictors = nn.ModuleDict(
            {name: BatchNormProjection(dim, dim, hidden, layers=2) for name in ("image", "text")}
        )

    def forward(self, views: Views) -> Float[Tensor, ""]:
        image, text = self._projected(self.projectors, views.image, views.text)
        image_target, text_target = self._targets(views, image, text)
        image, text = self._projected(self.predictors, image, text)
        return prediction_of_views(image, text, image_target, text_target)

    def _projected(self, projectors: nn.ModuleDict, image: Vectors, text: Vectors) -> tuple[list[Tensor], list[Tensor]]:
        return _through(projectors["image"], image), _through(projectors["text"], text)

    def _targets(self, views: Views, image: list[Tensor], text: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return image, text


class BYOLIP(SiamLIP):
    """`SiamLIP` with targets from momentum copies of towers and projectors.

    Args:
        image_width, text_width, dim, hidden: as of `SiamLIP`.
        momentum: of the copies; 0.99 as published.
    """

    def __init__(
        self, image_width: int, text_width: int, dim: int = 256, hidden: int = 4096, momentum: float = 0.99
    ) -> None:
        super().__init__(image_width, text_width, dim, hidden)
        self.momentum = momentum
        self.target_projectors = momentum_copy(self.projectors)

    def _targets(self, views: Views, image: list[Tensor], text: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        with torch.no_grad():
            return self._projected(self.target_projectors, views.image_target, views.text_target)


class SwALIP(ViewTerm):
    """Two strong views' assignments of pictures and texts to each other, swapped. Published without label smoothing.

    Args:
        epsilon: of the assignments; 0.05 as published.
        iterations: of Sinkhorn's; 3 as published.
        scale: of the term; 0.2 as published.
    """

    name = "assignment"

    def __init__(self, epsilon: float = 0.05, iterations: int = 3, scale: float = 0.2) -> None:
        super().__init__()
        self.epsilon, self.iterations, self.scale = epsilon, iterations, scale

    def forward(self, views: Views) -> Float[Tensor, ""]:
        scale, how = views.local_logit_scale, (self.epsilon, self.iterations)
        return self.scale * swapped_view_loss(views.image_local, views.text_local, scale, *how)


def barlow_of_views(
    image: Vectors, text: Vectors, off_diagonal: float = 5e-3, scale: float = 0.025
) -> Float[Tensor, ""]:
    """The mean cross-correlation loss over the pair of weak views and all pairs of strong ones, times `scale`."""
    return scale * torch.stack([cross_correlation_loss(a, b, off_diagonal) for a, b in view_pairs(image, text)]).mean()


def prediction_of_views(
    image: Vectors, text: Vectors, image_target: Vectors, text_target: Vectors
) -> Float[Tensor, ""]:
    """The mean over both directions of 2 - 2 cos(p, v) over the pair of weak views and all pairs of strong ones."""
    across = [predictive_loss(p, v) for p, v in view_pairs(image, text_target)]
    back = [predictive_loss(p, v) for v, p in view_pairs(image_target, text)]
    return torch.stack(across + back).mean()


def view_pairs(image: Vectors, text: Vectors) -> Sequence[tuple[Tensor, Tensor]]:
    """The weak views, then each two strong ones."""
    return [(image[0], text[0]), *product(image[1:], text[1:])]


def _projectors(image_width: int, text_width: int, dim: int, hidden: int) -> nn.ModuleDict:
    widths = {"image": image_width, "text": text_width}
    return nn.ModuleDict(
        {name: BatchNormProjection(width, dim, hidden, final_norm=True) for name, width in widths.items()}
    )


def _through(network: nn.Module, views: Vectors) -> list[Tensor]:
    """Each view on its own, so that norms see one view at a time."""
    return [network(each) for each in views]
