"""A model is a folder: `config.json`, `model.safetensors`, the processors' files, and a card, `README.md`.

`config.json` says how to rebuild the model with its processors, and what it made of a fixed input when it was
saved (the probe). Loading rebuilds, fills in the weights, and encodes that input again: another activation,
tokenizer or picture size is refused instead of giving slightly wrong numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from collimate.checkpoints.card import card
from collimate.checkpoints.files import (
    CheckpointError,
    read_pickle,
    read_safetensors,
    replaced_folder,
    write_safetensors,
)
from collimate.checkpoints.foreign import is_foreign, read_foreign
from collimate.checkpoints.plain import substituted
from collimate.configurable import build
from collimate.encoders import Encoder
from collimate.processing import Processor
from collimate.training.method import CHECKPOINT_KEY, Method

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = 1
PACKAGES = ("collimate", "torch", "torchvision", "timm", "open_clip_torch", "transformers", "pillow")
PROBE_NUMBERS = 16
PROBE_TOLERANCE = 2e-4  # of the vector's length: float32 on other machines differs by 1e-5, a wrong GELU by 1e-3
DEVICE_TOLERANCE = 5e-2  # the same, between float32 on the CPU and a device or precision that rounds

Model = Method | Encoder


def save(model: Model, folder: str | PathLike[str], notes: Mapping[str, str] | None = None) -> None:
    """Write a method or an encoder so that `load` gives the same back.

    The folder appears whole or not at all, and an earlier one stays if anything fails.

    Args:
        model: a method, or an encoder with its `processor`.
        folder: where to; replaced if it holds a model, refused if it holds anything else.
        notes: sections of the model card (`Data`, `Metrics`...); the card says nothing that is not known.

    Raises:
        CheckpointError: the folder holds something else, or the model cannot be rebuilt from its configuration.
        OSError: the disk is full, or the folder cannot be written.
    """
    folder = Path(folder)
    refuse_other_folders(folder)
    with replaced_folder(folder) as fresh:
        config = _portable(model, fresh)
        write_safetensors(model.state_dict(), fresh / WEIGHTS)
        with torch.random.fork_rng(devices=[]):
            rebuilt = _rebuild(config, fresh, trust=[type(model).__module__.split(".")[0]])
        config["probe"] = _probe(rebuilt)
        exact = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
        tolerance = PROBE_TOLERANCE if exact else DEVICE_TOLERANCE
        if wrong := _probe_difference(config["probe"], _probe(model), tolerance):
            raise CheckpointError(
                f"{type(model).__name__} does not come back from its configuration: {wrong}. Was it changed after "
                "it was built, other than in its weights?"
            )
        (fresh / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (fresh / CARD).write_text(card(model, config, notes or {}), encoding="utf-8")


def load(source: str | PathLike[str], trust: Sequence[str] = ()) -> Any:
    """A method or an encoder, on the CPU in evaluation mode, ready for `encode`.

    Args:
        source: a folder that `save` wrote, a Lightning checkpoint of a training run (`.ckpt`), the id of a model on the
            Hugging Face hub that holds such a folder; or a folder of a model of transformers that an installed package
            reads, see `collimate.checkpoints.foreign`.
        trust: top-level packages, other than Collimate's own, whose classes the configuration may name.

    Raises:
        CheckpointError: it is missing, damaged, from a later version, or does not compute what it did when it was
            saved; the message names the file and the remedy.
        ValueError: the configuration names a class outside the trusted packages.
    """
    path = Path(source)
    if path.is_file():
        return _load_lightning(path, trust)
    folder = path if path.is_dir() else download(str(source))
    config = _read_config(folder / CONFIG)
    if is_foreign(config):
        return read_foreign(folder, config["model_type"])
    model = _rebuild(config, folder, trust)
    if wrong := _probe_difference(config.get("probe", {}), _probe(model), PROBE_TOLERANCE):
        raise CheckpointError(
            f"{folder}: the model does not compute what it did when it was saved: {wrong}. Either {CONFIG}, the "
            f"weights or the processors' files were changed, or a library behaves differently now (written with "
            f"{_versions_text(config)})."
        )
    return model


def refuse_other_folders(folder: Path) -> None:
    """Only a model may be replaced by a model.

    Raises:
        CheckpointError: the path exists and is something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    marks = (CONFIG, "open_clip_config.json", "*.onnx")
    if not (folder.is_dir() and any(any(folder.glob(mark)) for mark in marks)):
        raise CheckpointError(f"{folder} exists and is no model folder: choose another one, or remove it.")


def download(source: str) -> Path:
    """The folder of a model on the Hugging Face hub, on this machine.

    Raises:
        CheckpointError: there is none, or it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG, WEIGHTS, CARD, "processors/**"]))
    except (HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{source!r} is neither a folder nor a file here, nor a model that the Hugging Face hub gives: {reason} "
            f"Name a folder that holds {CONFIG}, a .ckpt file, or an id such as owner/name."
        ) from error


def _portable(model: Model, folder: Path) -> dict[str, Any]:
    """The configuration of a model, with the processors' files written and named relative to the folder."""
    config: dict[str, Any] = {"format": FORMAT, "model": model.config(), "versions": _versions()}
    if isinstance(model, Encoder) and model.processor is not None:
        config["processor"] = model.processor.config()
    for modality, processor in _processors(model).items():
        files = folder / "processors" / modality
        files.mkdir(parents=True)
        processor.save_files(files)
        if any(files.iterdir()):
            own = processor.config()
            moved = {**own, "init_args": {**own["init_args"], "path": f"processors/{modality}"}}
            config = substituted(config, own, moved)
        else:
            files.rmdir()
    if (folder / "processors").exists() and not any((folder / "processors").iterdir()):
        (folder / "processors").rmdir()
    return config


def _rebuild(config: Mapping[str, Any], folder: Path, trust: Sequence[str]) -> Model:
    """The model of a folder, its weights filled in."""
    config = _with_absolute_paths(config, folder)
    try:
        model: Model = build(config["model"], trust)
        if "processor" in config:
            model.processor = build(config["processor"], trust)  # type: ignore[union-attr]
    except (TypeError, KeyError, AttributeError, OSError) as error:
        raise CheckpointError(f"{folder / CONFIG}: does not describe a model that can be built ({error}).") from error
    _fill(model, read_safetensors(folder / WEIGHTS), folder / WEIGHTS)
    return model.eval()


def _fill(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[:3]
        raise CheckpointError(
            f"{path}: these are not the weights of this model. {' '.join(map(str.strip, first))} Expected those that "
            f"were saved with its {CONFIG}: bring both from one model."
        ) from error


def _load_lightning(path: Path, trust: Sequence[str]) -> Any:
    checkpoint = read_pickle(path)
    if not (isinstance(checkpoint, dict) and CHECKPOINT_KEY in checkpoint):
        raise CheckpointError(
            f"{path}: no checkpoint of a Collimate run. Weights of other projects are read by converters, such as "
            "CLIP.from_open_clip(name, path)."
        )
    model = build(checkpoint[CHECKPOINT_KEY]["config"], trust)
    _fill(model, checkpoint["state_dict"], path)
    return model.eval()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: {path.parent} is no model folder. Expected what training leaves as <output>/model, or "
            "`collimate ... export` writes: name that folder."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}).") from error
    if not (isinstance(config, dict) and ("model" in config or is_foreign(config))):
        raise CheckpointError(f"{path}: not the configuration of a Collimate model.")
    if config.get("format", 0) > FORMAT:
        raise CheckpointError(f"{path}: written by a later Collimate ({_versions_text(config)}): upgrade to read it.")
    return config


def _processors(model: Model) -> dict[str, Processor]:
    if isinstance(model, Method):
        return model.processors
    return {} if model.processor is None else {"input": model.processor}


def _probe(model: Model) -> dict[str, list[float]]:
    """Modality -> a few numbers of what the model makes of a fixed input, over the vector's length."""
    probes = {}
    for modality, inputs in _probe_inputs(model).items():
        with torch.no_grad(), _evaluating(model):
            encoding = model.encode(modality, inputs) if isinstance(model, Method) else model.encode(inputs)
        pooled = encoding.pooled[0].double().cpu()
        every = max(1, len(pooled) // PROBE_NUMBERS)
        probes[modality] = (pooled / pooled.norm().clamp_min(1e-12))[::every][:PROBE_NUMBERS].tolist()
    return probes


def _probe_inputs(model: Model) -> dict[str, Any]:
    processors, encoded = _processors(model), getattr(model, "modalities", None)  # methods may process labels too
    raw = {name: each.example() for name, each in processors.items() if encoded is None or name in encoded}
    inputs: dict[str, Any] = {modality: [example] for modality, example in raw.items() if example is not None}
    if isinstance(model, Encoder) and not inputs and (example := model.example()) is not None:
        inputs["input"] = example
    return inputs


def _probe_difference(
    stored: Mapping[str, Sequence[float]], now: Mapping[str, Sequence[float]], tolerance: float
) -> str | None:
    for modality, numbers in stored.items():
        if modality not in now:
            return f"the processor of {modality!r} is missing"
        if len(numbers) != len(now[modality]):
            return f"its {modality!r} vectors have another width"
        difference = max((abs(a - b) for a, b in zip(numbers, now[modality], strict=True)), default=0.0)
        if not difference <= tolerance:
            return f"its {modality!r} vector of a fixed input is off by {difference:.2g} of its length"
    return None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _with_absolute_paths(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        resolved = {key: _with_absolute_paths(item, folder) for key, item in value.items()}
        if isinstance(resolved.get("path"), str) and resolved["path"].startswith("processors/"):
            resolved["path"] = str(folder / resolved["path"])
        return resolved
    if isinstance(value, list):
        return [_with_absolute_paths(item, folder) for item in value]
    return value


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _versions_text(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in config.get("versions", {}).items())
