"""Published weights of TimeSformer, those of ALPRO among them, and those of image transformers to start from.

The parameters of `TimeSformer` carry the official names, which are those of a ViT with `temporal_` parts beside. Files
differ in what stands in front of them, and hold the head of a classifier that ALPRO never used.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from collimate.checkpoints.files import CheckpointError, read_state_dict, tidy
from collimate_video.positions import resized_positions, resized_times

PREFIXES = ("visual_encoder.model.", "model.", "")  # of ALPRO, of facebookresearch/TimeSformer, of an image transformer
HEADS = ("head.", "fc_norm.", "pre_logits.")
HEAD_WIDTH = 64  # of every released model
COPIED = {"temporal_attn.": "attn.", "temporal_norm1.": "norm1."}
"""What attention in time starts from where the weights are an image transformer's: ALPRO, timesformer/helpers.py."""


def official_weights(
    checkpoint: str | PathLike[str] | Mapping[str, Any], prefix: str | None = None
) -> dict[str, Tensor]:
    """The weights of a published TimeSformer under the names of `TimeSformer`.

    Raises:
        CheckpointError: the file is damaged, or there are no such weights in it.
    """
    found = _named(_read(checkpoint), prefix)
    if "time_embed" not in found:
        raise CheckpointError("These are no weights of a TimeSformer: they have no positions in time, `time_embed`.")
    return found


def official_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `TimeSformer` that the shapes of its weights tell."""
    filters = weights["patch_embed.proj.weight"]
    patch_size, width = filters.shape[-1], len(filters)
    return {
        "image_size": round((weights["pos_embed"].shape[1] - 1) ** 0.5) * patch_size,
        "patch_size": patch_size,
        "frames": weights["time_embed"].shape[1],
        "width": width,
        "layers": 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        "heads": max(1, width // HEAD_WIDTH),
        "hidden": len(weights["blocks.0.mlp.fc1.weight"]),
    }


def fill_timesformer(encoder: nn.Module, source: str) -> None:
    """Give a `TimeSformer` published weights, its own or those of an image transformer.

    Args:
        encoder: its positions in time, and the matrices behind attention in time, stay as they are where the weights
            have none. Positions of another number of places or frames are resized to its own.
        source: as `TimeSformer.pretrained`.

    Raises:
        CheckpointError: the weights are missing, damaged, or of another model.
    """
    own = encoder.state_dict()
    found = _named(_read(source), None)
    for name in own:
        for ours, theirs in COPIED.items():
            if ours in name and (image := name.replace(ours, theirs)) in found:
                found.setdefault(name, found[image])
    resize_tables(found, own)
    absent = [name for name in own if name not in found and name != "time_embed" and ".temporal_fc." not in name]
    if wrong := [*absent, *(name for name in found if name not in own or own[name].shape != found[name].shape)]:
        raise CheckpointError(
            f"{source}: not the weights of a TimeSformer, or of a ViT, of these sizes. Missing, too many, or of "
            f"another shape: {', '.join(wrong[:4])} ({len(wrong)} in all). Give TimeSformer the sizes of its weights."
        )
    encoder.load_state_dict({**own, **found})


def resize_tables(found: dict[str, Tensor], own: Mapping[str, Tensor], prefix: str = "") -> None:
    """Bring the positions of places and of frames to the sizes of an encoder; in place.

    Args:
        found: weights, in which the tables may lack.
        own: the encoder's.
        prefix: of its names in both.
    """
    places, times = f"{prefix}pos_embed", f"{prefix}time_embed"
    if places in found and places in own:
        side = round((own[places].shape[1] - 1) ** 0.5)
        found[places] = resized_positions(found[places], (side, side), "bicubic")
    if times in found and times in own:
        found[times] = resized_times(found[times], own[times].shape[1])


def _named(weights: Mapping[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    """What begins with the prefix, or with the first of the known ones, without it, and without heads."""
    prefixes = PREFIXES if prefix is None else (prefix,)
    chosen = next((each for each in prefixes if f"{each}patch_embed.proj.weight" in weights), None)
    if chosen is None:
        raise CheckpointError(
            f"There is no {prefixes[0]}patch_embed.proj.weight in these weights: they are none of a TimeSformer or ViT."
        )
    named = {name.removeprefix(chosen): value for name, value in weights.items() if name.startswith(chosen)}
    return {name: value for name, value in named.items() if not name.startswith(HEADS)}


def _read(source: str | PathLike[str] | Mapping[str, Any]) -> Mapping[str, Tensor]:
    if isinstance(source, Mapping):
        return tidy(dict(source))
    if Path(source).exists():
        return read_state_dict(source)
    if not timm.is_model(str(source)):
        raise CheckpointError(f"{source}: neither a file nor a model of timm.")
    return timm.create_model(str(source), pretrained=True, num_classes=0).state_dict()
