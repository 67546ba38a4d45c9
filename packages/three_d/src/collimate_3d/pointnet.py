"""PointNet: every point by itself, then the largest of each number.

Qi et al. 2017, arXiv 1612.00593; yanx27/Pointnet_Pointnet2_pytorch, models/pointnet_utils.py (MIT), parameters under
its names. Small networks of the same kind find a matrix that turns the points of a cloud, and one that mixes its
features, before they go on:

    f = max_p h(T' g(T x_p)),

with T (3, 3) and T' (64, 64) of the whole cloud, each the identity plus what its network says.

Shape legend: B clouds, N points, C channels of a point, K rows of a matrix, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear

from collimate.encoders import Encoder
from collimate.encoders.base import waves
from collimate.encoding import Encoding
from collimate_3d.pointnet2.encoders import filled
from collimate_3d.pointnet2.shared_mlp import pointwise
from collimate_3d.weights import load_weights, published_weights


class PointNet(Encoder):
    """Clouds of one number of points; `tokens` are the points' own vectors, `pooled` is their maximum.

    Args:
        channels: C: x, y, z in the unit sphere, and what else a point has.
        feature_transform: whether features are mixed by a matrix, T', too.
    """

    def __init__(self, channels: int = 3, feature_transform: bool = False) -> None:
        super().__init__()
        self.channels, self.width = channels, 1024
        self.stn = Transformer(channels, 3)
        self.fstn = Transformer(64, 64) if feature_transform else None
        for number, (width_in, width) in enumerate(((channels, 64), (64, 128), (128, 1024)), 1):
            self.add_module(f"conv{number}", nn.Conv1d(width_in, width, 1))
            self.add_module(f"bn{number}", nn.BatchNorm1d(width))

    def forward(self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None) -> Encoding:
        """Encode objects.

        Args:
            mask: True where a point is real; all finite ones if None. Copies of the first real point stand in for the
                others.

        Raises:
            ValueError: the points have other channels.
        """
        rows = filled(inputs, self.channels, mask)
        rows = torch.cat([rows[..., :3] @ self.stn(rows), rows[..., 3:]], -1)
        rows = pointwise(rows, *self._layer(1))
        if self.fstn is not None:
            rows = rows @ self.fstn(rows)
        rows = pointwise(rows, *self._layer(2))
        convolution, norm = self._layer(3)
        rows = linear(rows, convolution.weight[..., 0], convolution.bias)  # type: ignore[index, arg-type]
        rows = norm(rows.flatten(0, 1)).view_as(rows)  # the last layer has no ReLU
        real = inputs.isfinite().all(-1) if mask is None else mask
        return Encoding(rows.amax(1), rows, None if bool(real.all()) else real)

    def example(self) -> Float[Tensor, "B N C"]:
        return waves(2, 64, self.channels)

    def load_official(self, checkpoint: str | PathLike[str] | Mapping[str, Tensor], prefix: str = "feat.") -> None:
        """Take published weights, without the classifier behind them.

        Args:
            prefix: what their names begin with.

        Raises:
            CheckpointError: the file is damaged, or its network has other sizes.
        """
        load_weights(self, published_weights(checkpoint, {prefix: ""}))

    def _layer(self, number: int) -> tuple[nn.Module, nn.Module]:
        return self.get_submodule(f"conv{number}"), self.get_submodule(f"bn{number}")


class Transformer(nn.Module):
    """The network that finds a matrix for each cloud (T-Net).

    Args:
        channels: C of its input.
        rows: K.
    """

    def __init__(self, channels: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.conv1, self.conv2 = nn.Conv1d(channels, 64, 1), nn.Conv1d(64, 128, 1)
        self.conv3 = nn.Conv1d(128, 1024, 1)
        self.fc1, self.fc2, self.fc3 = nn.Linear(1024, 512), nn.Linear(512, 256), nn.Linear(256, rows * rows)
        for number, width in enumerate((64, 128, 1024, 512, 256), 1):
            self.add_module(f"bn{number}", nn.BatchNorm1d(width))

    def forward(self, inputs: Float[Tensor, "B N C"]) -> Float[Tensor, "B K K"]:
        found = inputs
        for number in (1, 2, 3):
            found = pointwise(found, self.get_submodule(f"conv{number}"), self.get_submodule(f"bn{number}"))
        found = found.amax(1)
        for number in (1, 2):
            found = self.get_submodule(f"bn{number + 3}")(self.get_submodule(f"fc{number}")(found)).relu()
        return self.fc3(found).unflatten(1, (self.rows, self.rows)) + torch.eye(self.rows, device=found.device)
