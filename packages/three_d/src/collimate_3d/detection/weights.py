"""Backbones that begin with what pre-training has taught them."""

from __future__ import annotations

from collimate.checkpoints import load
from collimate.checkpoints.files import CheckpointError
from collimate.encoders import Encoder
from collimate.training import Method
from collimate_3d.voxel_encoder import OFFICIAL, VoxelEncoder
from collimate_3d.weights import load_weights, published_weights


def fill_backbone(backbone: Encoder, pretrained: str) -> None:
    """Give a sparse backbone the weights of another run.

    Args:
        backbone: a `VoxelEncoder`.
        pretrained: a model folder or .ckpt of a method or encoder with a `VoxelEncoder`, or a .pth of OpenPCDet.

    Raises:
        CheckpointError: there is no such backbone in it, or one of other sizes.
        ValueError: the voxels or channels differ, so that weights would mean something else.
    """
    if pretrained.endswith(".pth"):
        theirs = {name: ours.removeprefix("lift.") for name, ours in OFFICIAL.items() if name.startswith("backbone_3d")}
        load_weights(backbone, published_weights(pretrained, theirs))
        return
    loaded = load(pretrained)
    source = loaded.encoders["lidar"] if isinstance(loaded, Method) and "lidar" in loaded.encoders else loaded
    source = getattr(source, "lift", source)
    if not isinstance(source, VoxelEncoder) or not isinstance(backbone, VoxelEncoder):
        raise CheckpointError(f"{pretrained} holds a {type(loaded).__name__}: there is no backbone on voxels in it.")
    for name, mine, other in (
        ("cells of (x, y, z) metres", backbone.grid.cell, source.grid.cell),
        ("values a point", backbone.channels, source.channels),
    ):
        if mine != other:
            raise ValueError(f"The backbone has {mine} {name}, {pretrained} has {other}: they must be the same.")
    load_weights(backbone, source.state_dict())
