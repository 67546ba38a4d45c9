"""PointNet++ as encoders: of objects, and VoteNet's of rooms.

All take clouds of one number of points; where some are padding, copies of the first real one stand in for them, which
no maximum notices.

Shape legend: B clouds, N points, C channels of a point, M seeds, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from collimate.encoders import Encoder
from collimate.encoders.base import waves
from collimate.encoding import Encoding
from collimate_3d.pointnet2.plain import GlobalAbstraction, MultiScaleSetAbstraction, SetAbstraction
from collimate_3d.pointnet2.votenet import VoteFeaturePropagation, VoteSetAbstraction
from collimate_3d.weights import load_weights, published_weights

Scale = tuple[int | None, float | None, int | None, Sequence[int]] | list[Any]
"""samples, radius, neighbours and widths of a set abstraction"""

VISTA = ((32, 0.2, 32, (64, 64, 128)), (16, 0.4, 32, (128, 128, 256)), (None, None, None, (256, 512, 768)))
"""3d-vista/3D-VisTA, model/vision/point_encoder.py"""

VOTENET = (
    (2048, 0.2, 64, (64, 64, 128)),
    (1024, 0.4, 32, (128, 128, 256)),
    (512, 0.8, 16, (128, 128, 256)),
    (256, 1.2, 16, (128, 128, 256)),
)
"""VoteNet, and 3D-VLP with it: samples, radius in metres, neighbours, widths"""


class PointNet2(Encoder):
    """PointNet++ for classification, at one scale: two set abstractions and one of all points.

    yanx27/Pointnet_Pointnet2_pytorch, models/pointnet2_cls_ssg.py, whose classifier is left out. It has no tokens.

    Args:
        channels: C: x, y, z in the unit sphere, and what else a point has (there, its normal).
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels, self.width = channels, 1024
        self.sa1: nn.Module = SetAbstraction(512, 0.2, 32, channels - 3, (64, 64, 128))
        self.sa2: nn.Module = SetAbstraction(128, 0.4, 64, 128, (128, 128, 256))
        self.sa3 = GlobalAbstraction(256, (256, 512, 1024))

    def forward(self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None) -> Encoding:
        """Encode objects.

        Args:
            mask: True where a point is real; all finite ones if None.

        Raises:
            ValueError: the points have other channels.
        """
        xyz, features = _divided(filled(inputs, self.channels, mask))
        for abstraction in (self.sa1, self.sa2, self.sa3):
            xyz, features = abstraction(xyz, features)
        return Encoding(features[:, 0])  # type: ignore[index]

    def example(self) -> Float[Tensor, "B N C"]:
        return waves(2, 256, self.channels)

    def load_official(self, checkpoint: str | PathLike[str] | Mapping[str, Tensor], prefix: str = "sa") -> None:
        """Take published weights, without the classifier behind them.

        Args:
            prefix: what the names of the set abstractions begin with.

        Raises:
            CheckpointError: the file is damaged, or its network has other sizes.
        """
        load_weights(self, published_weights(checkpoint, {prefix: "sa"}))


class PointNet2MultiScale(PointNet2):
    """The same at three scales; yanx27/Pointnet_Pointnet2_pytorch, models/pointnet2_cls_msg.py.

    Args:
        channels: as of `PointNet2`.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__(channels)
        widths = ((32, 32, 64), (64, 64, 128), (64, 96, 128))
        self.sa1 = MultiScaleSetAbstraction(512, (0.1, 0.2, 0.4), (16, 32, 128), channels - 3, widths)
        widths = ((64, 64, 128), (128, 128, 256), (128, 128, 256))
        self.sa2 = MultiScaleSetAbstraction(128, (0.2, 0.4, 0.8), (32, 64, 128), 320, widths)
        self.sa3 = GlobalAbstraction(640, (256, 512, 1024))


class ObjectPointNet2(Encoder):
    """The points of single objects to one vector each, as 3D-VisTA, SceneVerse and ReferIt3D have it.

    3d-vista/3D-VisTA, model/vision/point_encoder.py, `PointNetPP` (MIT): set abstractions of VoteNet's family whose
    relative positions are not divided by the radius, and a matrix. It has no tokens.

    Args:
        channels: C: x, y, z in the unit sphere, and colours from -1 to 1.
        scales: samples, radius, neighbours and widths of each set abstraction; None, None, None for all points, at the
            end. D is the last width.
    """

    def __init__(self, channels: int = 6, scales: Sequence[Scale] = VISTA) -> None:
        super().__init__()
        self.channels, self.width = channels, scales[-1][3][-1]
        self.encoder = nn.ModuleList()
        features = channels - 3
        for samples, radius, neighbours, widths in scales:
            self.encoder.append(VoteSetAbstraction(samples, radius, neighbours, features, widths))
            features = widths[-1]
        self.fc = nn.Linear(self.width * (scales[-1][0] or 1), self.width)

    def forward(self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None) -> Encoding:
        """Encode objects; arguments as of `PointNet2`."""
        xyz, features = _divided(filled(inputs, self.channels, mask))
        for abstraction in self.encoder:
            xyz, features, _ = abstraction(xyz, features)
        # Published weights expect the channels of all points before those of the next.
        return Encoding(self.fc(features.mT.flatten(1)))  # type: ignore[union-attr]

    def example(self) -> Float[Tensor, "B N C"]:
        return waves(2, 128, self.channels)

    def load_official(
        self, checkpoint: str | PathLike[str] | Mapping[str, Tensor], prefix: str = "obj_encoder.pcd_net."
    ) -> None:
        """Take published weights.

        Args:
            prefix: what their names begin with, such as `point_feature_extractor.` in 3D-VisTA's later files.

        Raises:
            CheckpointError: the file is damaged, or its network has other sizes.
        """
        found = published_weights(checkpoint, {prefix: ""})
        load_weights(self, {name.replace(".mlps.0.", ".mlp_module."): value for name, value in found.items()})


class Seeds(NamedTuple):
    """What VoteNet's backbone makes of a room."""

    xyz: Float[Tensor, "B M 3"]
    features: Float[Tensor, "B M D"]
    index: Int[Tensor, "B M"]
    """int64: which of the points they are"""


class VoteNetBackbone(Encoder):
    """VoteNet's encoder of rooms: four set abstractions, two feature propagations; `tokens` are the seeds.

    Qi et al. 2019, arXiv 1904.09664, as of 3D-VLP, models/base_module/backbone_module.py (MIT). `pooled` is the maximum
    over the seeds, ours: VoteNet has none.

    Args:
        channels: C: x, y, z in metres, and what else a point has: height, colours, normals.
        scales: samples, radius, neighbours and widths of the four set abstractions.
        width: D.
    """

    def __init__(self, channels: int = 4, scales: Sequence[Scale] = VOTENET, width: int = 256) -> None:
        super().__init__()
        if len(scales) != 4:
            raise ValueError(f"VoteNet has four set abstractions, not {len(scales)}.")
        self.channels, self.width = channels, width
        features = [channels - 3, *(scale[3][-1] for scale in scales)]
        self.sa1, self.sa2, self.sa3, self.sa4 = (
            VoteSetAbstraction(samples, radius, neighbours, before, widths, normalize_xyz=True)
            for (samples, radius, neighbours, widths), before in zip(scales, features, strict=False)
        )
        self.fp1 = VoteFeaturePropagation(features[3] + features[4], (width, width))
        self.fp2 = VoteFeaturePropagation(features[2] + width, (width, width))

    def forward(self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None) -> Encoding:
        """Encode rooms; arguments as of `PointNet2`."""
        found = self.seeds(inputs, mask).features
        return Encoding(found.amax(1), found)

    def seeds(self, inputs: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None) -> Seeds:
        """Where the seeds are, and their features, from which objects are voted for."""
        xyz, features = _divided(filled(inputs, self.channels, mask))
        first = self.sa1(xyz, features)
        second = self.sa2(*first[:2])
        third = self.sa3(*second[:2])
        fourth = self.sa4(*third[:2])
        found = self.fp1(third[0], fourth[0], third[1], fourth[1])
        found = self.fp2(second[0], third[0], second[1], found)
        return Seeds(second[0], found, first[2].gather(1, second[2]))

    def features(self, inputs: Float[Tensor, "B N C"]) -> list[Float[Tensor, "B _ _"]]:
        """The features after each set abstraction, of fewer and fewer points."""
        xyz, features = _divided(filled(inputs, self.channels, None))
        found = []
        for abstraction in (self.sa1, self.sa2, self.sa3, self.sa4):
            xyz, features, _ = abstraction(xyz, features)
            found.append(features)
        return found

    def example(self) -> Float[Tensor, "B N C"]:
        return 2 * waves(2, 512, self.channels)

    def load_official(
        self, checkpoint: str | PathLike[str] | Mapping[str, Tensor], prefix: str = "backbone_net."
    ) -> None:
        """Take published weights.

        Args:
            prefix: what their names begin with.

        Raises:
            CheckpointError: the file is damaged, or its network has other sizes.
        """
        load_weights(self, published_weights(checkpoint, {prefix: ""}))


def filled(
    inputs: Float[Tensor, "B N C"], channels: int, mask: Bool[Tensor, "B N"] | None = None
) -> Float[Tensor, "B N C"]:
    """Clouds in which copies of the first real point stand in for what is padding; zeros, where none is real.

    Raises:
        ValueError: the points have other channels, or there are none.
    """
    if inputs.ndim != 3 or inputs.shape[2] != channels or not inputs.shape[1]:
        raise ValueError(
            f"This encoder reads points (clouds, points, {channels}): x, y, z and {channels - 3} features; got "
            f"{tuple(inputs.shape)}."
        )
    real = inputs.isfinite().all(-1)
    real = real if mask is None else real & mask
    if bool(real.all()):
        return inputs
    first = real.int().argmax(1)
    stand_in = inputs[torch.arange(len(inputs), device=inputs.device), first][:, None]
    stand_in = stand_in.where(real.any(1)[:, None, None], torch.zeros_like(stand_in))
    return torch.where(real[..., None], inputs, stand_in)


def _divided(inputs: Tensor) -> tuple[Tensor, Any]:
    """Positions, and the rest, None where there is none."""
    return inputs[..., :3].contiguous(), inputs[..., 3:].contiguous() if inputs.shape[2] > 3 else None
