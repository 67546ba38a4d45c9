"""Parts of a trained method as frozen parts of another, so that both live in one space. In a recipe:

    text_encoder:
      class_path: collimate.checkpoints.trained_tower
      init_args: {source: runs/clip_join_demo/model, modality: text}
    text_projection: {class_path: collimate.encoders.NoProjection, init_args: {width: 64}} # the joint space already
    tokenizer:
      class_path: collimate.checkpoints.trained_processor
      init_args: {source: runs/clip_join_demo/model, modality: text}

What is built from it holds the weights, so that checkpoints and model folders do not need the source.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from collimate.checkpoints.files import CheckpointError
from collimate.checkpoints.folder import load
from collimate.encoders import Encoder, Frozen, NoProjection, Projected, Projection
from collimate.processing import Processor
from collimate.training.method import Method

TOLERANCE = 1e-4  # ours, of a unit vector's length: float32 differs by 1e-6


def trained_tower(source: str, modality: str = "text") -> Frozen:
    """A method's tower with its projection, frozen: a LiT-type lock on the space that the method trained.

    Args:
        source: the model folder of a run (`runs/clip_demo/model`), or the hub id of one: safetensors, not a `.ckpt`.
        modality: whose tower.

    Raises:
        CheckpointError: there is no such folder, or it holds no method.
        ValueError: the method has no such tower, or its vectors are not the tower's projected ones.
    """
    method = _method(source)
    encoder, projection = parts_of(method, modality)
    return Frozen(encoder if isinstance(projection, NoProjection) else Projected(encoder, projection))


def trained_processor(source: str, modality: str = "text") -> Processor:
    """What a method reads a modality with: its tokenizer, for texts.

    Args:
        source, modality: as for `trained_tower`.

    Raises:
        CheckpointError: there is no such folder, or it holds no method.
        ValueError: the method has no processor of the modality.
    """
    processors = _method(source).processors
    if modality not in processors:
        raise ValueError(f"{source} has no processor of {modality!r}; it has those of {', '.join(processors)}.")
    return processors[modality]


def parts_of(method: Method, modality: str) -> tuple[Encoder, Projection]:
    """The tower of a modality and its way into the joint space, out of what they are wrapped in.

    Raises:
        ValueError: the method keeps no such parts, or its vectors are made of them in another way.
    """
    encoders: Any = getattr(method, "encoders", {})
    projections: Any = getattr(method, "projections", {})
    if modality not in encoders or modality not in projections:
        raise ValueError(f"{type(method).__name__} keeps no tower of {modality!r} with a projection of its own.")
    encoder, projection = encoders[modality], projections[modality]
    _require_plain(method, modality, Projected(encoder, projection))
    while isinstance(encoder, Frozen | Projected):
        if isinstance(encoder, Projected) and isinstance(projection, NoProjection):
            projection = encoder.projection
        elif isinstance(encoder, Projected):
            break  # two projections, one after the other: the first belongs to the tower
        encoder = encoder.encoder
    return encoder, projection


def _require_plain(method: Method, modality: str, tower: Projected) -> None:
    """Some methods pool anew, or give tokens alone: their towers' vectors are not what they rank by."""
    processor = method.processors[modality]
    example = processor.example()
    batch = processor.batch([example]).to(method.device)
    was = method.training
    method.eval()
    with torch.no_grad():
        own, plain = method.encode(modality, batch).pooled, tower(processor.finish(batch), processor.mask(batch)).pooled
    method.train(was)
    if own.shape != plain.shape or (normalize(own, dim=-1) - normalize(plain, dim=-1)).norm() > TOLERANCE:
        raise ValueError(
            f"{type(method).__name__} does not rank by the projected vectors of its {modality} tower, so that tower "
            "alone does not make its space. Take a method that does, such as CLIP, CLAP or MERL."
        )


def _method(source: str | PathLike[str]) -> Method:
    if Path(source).is_file():
        raise CheckpointError(f"{source} is a file: name the run's model folder, whose weights are safetensors.")
    loaded = load(source)
    if not isinstance(loaded, Method):
        raise CheckpointError(f"{source} holds a {type(loaded).__name__} alone, which has no joint space.")
    return loaded
