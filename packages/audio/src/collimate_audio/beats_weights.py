"""Published checkpoints of BEATs: of microsoft/unilm, and what ESPnet exports under the same names.

A checkpoint is a dictionary with `cfg`, `model` and, where it is fine-tuned, `label_dict`. Files differ in the names of
weight norm: `weight_g` and `weight_v`, or those that newer torch gives a parametrisation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from os import PathLike
from typing import Any

from torch import Tensor

from collimate.checkpoints.files import CheckpointError, read_pickle, tidy

OFFICIAL = {  # what the constructor of `BEATs` calls the keys of `cfg`
    "encoder_embed_dim": "width",
    "encoder_layers": "layers",
    "encoder_attention_heads": "heads",
    "encoder_ffn_embed_dim": "hidden",
    "embed_dim": "patch_width",
    "input_patch_size": "patch_size",
    "conv_bias": "patch_bias",
    "activation_fn": "activation",
    "layer_norm_first": "pre_norm",
    "deep_norm": "deep_norm",
    "conv_pos": "position_kernel",
    "conv_pos_groups": "position_groups",
    "relative_position_embedding": "relative_position",
    "gru_rel_pos": "gated",
    "num_buckets": "buckets",
    "max_distance": "max_distance",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "dropout_input": "input_dropout",
    "encoder_layerdrop": "layer_drop",
    "layer_wise_gradient_decay_ratio": "gradient_decay",
}
OFFICIAL_DEFAULTS = {  # beats/BEATs.py, BEATsConfig, where they are not those of the published base model
    "deep_norm": False,
    "relative_position_embedding": False,
    "gru_rel_pos": False,
    "max_distance": 1280,
    "layer_wise_gradient_decay_ratio": 1.0,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
}
WEIGHT_NORM = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
NOT_BACKBONE = ("predictor.", "quantize", "patch_embedding_pad.", "raw2fbank_pad.")
HEAD = "predictor."
QUANTIZER = {  # what `EMAQuantizer` calls the released quantizer's tensors
    "quantize.embedding.weight": "quantize.codebook",
    "quantize.cluster_size": "quantize.usage",
    "quantize.embedding.initted": "quantize.started",
}


def read_official(checkpoint: str | PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `cfg` of a published checkpoint, and its weights.

    Raises:
        CheckpointError: the file is damaged or refused, or no such checkpoint.
    """
    held = _held(checkpoint)
    renamed = tidy(dict(held["model"]))
    for new, old in WEIGHT_NORM.items():
        renamed = {name.replace(new, old): value for name, value in renamed.items()}
    return {**OFFICIAL_DEFAULTS, **held["cfg"]}, renamed


def backbone_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `BEATs` that a `cfg` says."""
    return {ours: config[theirs] for theirs, ours in OFFICIAL.items() if theirs in config}


def backbone_weights(weights: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """What of the weights is the backbone's.

    Args:
        wanted: the names that the backbone has.

    Raises:
        CheckpointError: some are missing, or there are others.
    """
    found = {name: value for name, value in weights.items() if not name.startswith(NOT_BACKBONE)}
    if not any(".grep_" in name for name in wanted):  # the released code makes gates that nothing uses
        found = {name: value for name, value in found.items() if ".grep_" not in name}
    if wrong := sorted(set(wanted) ^ found.keys()):
        raise CheckpointError(
            f"The weights are not those of the BEATs that their cfg describes. Missing, or too many: "
            f"{', '.join(wrong[:4])} ({len(wrong)} in all)."
        )
    return found


def quantizer_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of the weights is `BeatsTokenizer`'s beyond its encoder.

    Raises:
        CheckpointError: there are no codes.
    """
    found = {ours: weights[theirs] for theirs, ours in QUANTIZER.items() if theirs in weights}
    if "quantize.codebook" not in found:
        raise CheckpointError("This checkpoint is no tokenizer: it holds no codes, only an encoder.")
    found["quantize.started"] = found["quantize.started"].bool().reshape(())
    return {**found, **{name: value for name, value in weights.items() if name.startswith("quantize_layer.")}}


def head_of(checkpoint: str | PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments and the weights of `BeatsHead` that a published fine-tuned checkpoint holds.

    Raises:
        CheckpointError: it is damaged, or not fine-tuned.
    """
    held = _held(checkpoint)
    config, weights = read_official(held)
    found = {name: value for name, value in weights.items() if name.startswith(HEAD)}
    if HEAD + "weight" not in found:
        raise CheckpointError("This checkpoint is not fine-tuned: it holds no predictor, only a backbone.")
    classes, width = found[HEAD + "weight"].shape
    labels = held.get("label_dict")
    arguments = {
        "width": width,
        "classes": classes,
        "labels": None if labels is None else [str(labels[index]) for index in sorted(labels, key=int)],
        "dropout": config.get("predictor_dropout", 0.1),  # the default of beats/BEATs.py
    }
    return arguments, found


def _held(checkpoint: str | PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    held = checkpoint if isinstance(checkpoint, Mapping) else read_pickle(checkpoint)
    if not (
        isinstance(held, Mapping) and isinstance(held.get("cfg"), Mapping) and isinstance(held.get("model"), Mapping)
    ):
        named = "The checkpoint" if isinstance(checkpoint, Mapping) else f"{checkpoint}"
        raise CheckpointError(f"{named}: not a checkpoint of BEATs, which is a dictionary with `cfg` and `model`.")
    return held
