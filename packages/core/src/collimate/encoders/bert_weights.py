"""Published weights of BERT, from transformers, from the original release, and from checkpoints of the ALBEF family.

The parameters of `Bert` carry the official names. Files differ in what stands around them: a `bert.` that fine-tuned
checkpoints lack, the oldest names of layer norms, parts that BERT's second objective needed, tied weights that are
written twice, once, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from collimate.encoders.bert_layers import LAYER_NORM_EPS

METHOD_PREFIX = "text_encoder."  # where checkpoints of ALBEF, TCL and ALPRO keep their BERT
UNUSED = ("embeddings.position_ids", "pooler.", "cls.seq_relationship.")  # 0, 1, 2...; the next-sentence objective's
DECODER, DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
TIED = {DECODER: "embeddings.word_embeddings.weight", DECODER_BIAS: "cls.predictions.bias"}
RANDOM_IF_ABSENT = (".crossattention.", "cls.predictions.")  # which plain BERT, or its bare encoder, does not have
CONFIG = "config.json"
FILES = ("model.safetensors", "pytorch_model.bin")


def official_bert_weights(weights: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A published BERT's weights under the names of `Bert`.

    Args:
        weights: a state dict, by official names, with or without `bert.` in front.
        prefix: only names that begin with it are taken, without it: `text_encoder.` or `text_encoder_m.` of a
            checkpoint of ALBEF, TCL or ALPRO.

    Raises:
        CheckpointError: a decoder is not the word embeddings; here the two are one.
    """
    from collimate.checkpoints.files import CheckpointError  # that package imports this one

    named = {_plain(name.removeprefix(prefix)): value for name, value in weights.items() if name.startswith(prefix)}
    named = {name: value for name, value in named.items() if not name.startswith(UNUSED)}
    if "cls.predictions.transform.dense.weight" not in named:
        return named
    for copy, original in TIED.items():
        if not torch.equal(named.setdefault(copy, named[original]), named[original]):
            raise CheckpointError(f"The weights' {prefix}{copy} differs from {original}; in a Bert they are tied.")
    return named


def fill_bert(bert: nn.Module, source: str, sizes: Mapping[str, int]) -> None:
    """Give a `Bert` published weights.

    Args:
        bert: its cross-attention and its token head stay as they are where the weights have none.
        source: as `Bert.pretrained`.
        sizes: what the weights' config.json must say, by its names.

    Raises:
        CheckpointError: the weights are missing, damaged, or of another model.
    """
    from collimate.checkpoints.files import CheckpointError, read_state_dict

    path = _file(source, sizes)
    weights = read_state_dict(path)
    found = official_bert_weights(weights, METHOD_PREFIX if any(n.startswith(METHOD_PREFIX) for n in weights) else "")
    own = bert.state_dict()
    if not any(name.startswith("cls.") for name in own):
        found = {name: value for name, value in found.items() if not name.startswith("cls.")}
    missing = [name for name in own if name not in found and not any(part in name for part in RANDOM_IF_ABSENT)]
    if wrong := [*missing, *(name for name in found if name not in own or own[name].shape != found[name].shape)]:
        raise CheckpointError(
            f"{path}: not the weights of a BERT of these sizes. Missing, too many, or of another shape: "
            f"{', '.join(wrong[:4])} ({len(wrong)} in all). Give Bert the sizes of its weights."
        )
    bert.load_state_dict({**own, **found})


def _plain(name: str) -> str:
    """A name without `bert.`, and with the present name of a norm's parameters."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _file(source: str, sizes: Mapping[str, int]) -> Path:
    """The file of weights in a folder, on the hub, or itself."""
    from collimate.checkpoints.files import CheckpointError
    from collimate.checkpoints.folder import download

    if Path(source).is_file():
        return Path(source)
    folder = Path(source) if Path(source).is_dir() else download(source)
    _check_config(folder / CONFIG, sizes)
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder}: holds no weights, neither {' nor '.join(FILES)}.")
    return file


def _check_config(path: Path, sizes: Mapping[str, int]) -> None:
    """What no shape tells: heads, activation, positions. Sizes too, for a message in the words of the configuration."""
    from collimate.checkpoints.files import CheckpointError

    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as the configuration of a BERT ({error}).") from error
    wanted = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "layer_norm_eps": LAYER_NORM_EPS,
        **sizes,
    }
    if wrong := [
        f"{name} is {config[name]}, expected {value}"
        for name, value in wanted.items()
        if config.get(name, value) != value
    ]:
        raise CheckpointError(
            f"{path}: not a BERT of these sizes: {'; '.join(wrong)}. Give Bert the sizes of its weights."
        )
