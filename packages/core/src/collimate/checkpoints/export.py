"""Export: a model in another project's format, read again and compared before it counts as written."""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from collimate.checkpoints.files import CheckpointError, replaced_folder, write_safetensors
from collimate.checkpoints.folder import load, refuse_other_folders, save
from collimate.checkpoints.plain import plain_model
from collimate.encoders import Encoder

Format = Literal["collimate", "open_clip", "transformers", "onnx"]
TOLERANCE = 1e-4  # of the largest entry of a modality's features: both sides compute in float32

Features = Callable[[str, Tensor], Tensor]
"""Modality and finished inputs to features in the joint space."""


def export(model: Any, folder: str | PathLike[str], format: Format) -> dict[str, float]:
    """Write a model, read it again with the other project's own code, and compare.

    Low-rank updates are merged and frozen encoders unwrapped first. Nothing is left behind on failure.

    Args:
        model: a method, or, for `collimate`, an encoder. It is moved to the CPU.
        folder: where to; replaced if it holds an export or a model, refused if it holds anything else.
        format: `collimate` (see `save`), `open_clip` (`open_clip.create_model("local-dir:<folder>")`; what serves the
            objective alone, such as CLOC's prompter, lies beside it in `collimate_rest.safetensors`), `transformers`
            (`AutoModel.from_pretrained(folder)`), or `onnx` (one file a modality).

    Returns:
        Modality -> the largest difference of its features, over their largest entry.

    Raises:
        ValueError: the format cannot express the model; says what it lacks.
        CheckpointError: what was written does not compute the same.
    """
    writers = {"collimate": _collimate, "open_clip": _open_clip, "transformers": _transformers, "onnx": _onnx}
    if format not in writers:
        raise ValueError(f"There is no format {format!r}; the formats are {', '.join(get_args(Format))}.")
    if isinstance(model, Encoder) and format != "collimate":
        raise ValueError(f"An encoder alone is exported to `collimate`; {format} takes a whole method.")
    folder = Path(folder)
    refuse_other_folders(folder)
    plain = plain_model(model).cpu().eval()
    inputs = _inputs(model)
    with replaced_folder(folder) as fresh, torch.no_grad():
        again = writers[format](plain, inputs, fresh)
        differences = {}
        for modality, batch in inputs.items():
            expected = _features(model, modality, batch)
            difference = (again(modality, batch) - expected).abs().max() / expected.abs().max()
            differences[modality] = float(difference)
        if worst := {name: value for name, value in differences.items() if not value <= TOLERANCE}:
            raise CheckpointError(f"The {format} export computes something else, off by {worst} of the largest entry.")
    return differences


def _collimate(model: Any, inputs: dict[str, Tensor], folder: Path) -> Features:
    save(model, folder)
    again = load(folder, trust=[type(model).__module__.partition(".")[0]])
    return lambda modality, batch: _features(again, modality, batch)


def _open_clip(model: Any, inputs: dict[str, Tensor], folder: Path) -> Features:
    import open_clip

    from collimate.checkpoints.open_clip import preprocessing_to_open_clip, to_open_clip, weights_beside_open_clip

    config, weights = to_open_clip(model)
    files = {"model_cfg": config, "preprocess_cfg": preprocessing_to_open_clip(model)}
    (folder / "open_clip_config.json").write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")
    write_safetensors(weights, folder / "open_clip_model.safetensors")
    if rest := weights_beside_open_clip(model):
        write_safetensors(rest, folder / "collimate_rest.safetensors")
    again: Any = open_clip.create_model(f"local-dir:{folder}").eval()
    return lambda modality, batch: (again.encode_image if modality == "image" else again.encode_text)(batch)


def _transformers(model: Any, inputs: dict[str, Tensor], folder: Path) -> Features:
    from transformers import AutoModel

    from collimate.checkpoints.transformers import processors_to_transformers, to_transformers

    to_transformers(model).save_pretrained(folder)
    processors_to_transformers(model, folder)
    again: Any = AutoModel.from_pretrained(folder).eval()

    def features(modality: str, batch: Tensor) -> Tensor:
        return (again.get_image_features if modality == "image" else again.get_text_features)(batch).pooler_output

    return features


def _onnx(model: Any, inputs: dict[str, Tensor], folder: Path) -> Features:
    from collimate.checkpoints.onnx import write_onnx

    # Traced with one sample less than it is compared with, so that a fixed batch size would show.
    runs = {name: write_onnx(model, name, batch[:-1], folder / f"{name}.onnx") for name, batch in inputs.items()}
    return lambda modality, batch: runs[modality](batch)


def _inputs(model: Any) -> dict[str, Tensor]:
    """Finished inputs of each modality."""
    encoders = {"input": model} if isinstance(model, Encoder) else dict(model.encoders.items())
    inputs: dict[str, Tensor] = {}
    for modality, encoder in encoders.items():
        example = encoder.example()
        if example is None:
            raise ValueError(f"The encoder of {modality!r} gives no `example()` to compare an export by.")
        inputs[modality] = torch.cat([example, example[:1]])
    return inputs


def _features(model: Any, modality: str, batch: Tensor) -> Tensor:
    device = next(model.parameters()).device
    training, _ = model.training, model.eval()
    encoding = model(batch.to(device)) if isinstance(model, Encoder) else model(modality, batch.to(device))
    model.train(training)
    return encoding.pooled.float().cpu()
