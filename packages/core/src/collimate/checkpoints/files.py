"""Reading and writing weights: nothing a file says is ever run, and a half-written file is never left.

Every reader here names the file in its errors.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")  # openai/CLIP keeps three numbers as weights

WRAPPERS = ("state_dict", "model", "model_state")  # of training programs, which keep the optimizer's state beside it


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; says which file, why, and what to do."""


def read_safetensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: it is missing, truncated or corrupt.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}). It was probably cut short while it was written or "
            "copied: copy it again, or use an earlier checkpoint."
        ) from error


def write_safetensors(weights: dict[str, Tensor], path: str | PathLike[str]) -> None:
    """Write tensors; those that share memory are written each on its own.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    try:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def read_pickle(path: str | PathLike[str]) -> Any:
    """A file of `torch.save`, of which only plain data and tensors are accepted.

    Raises:
        CheckpointError: it is damaged, or asks for code to be run.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, because it holds more than tensors and plain data and could run code when read. "
            f"Convert it to safetensors where you trust it.{_asked_for(error)}"
        ) from error
    except Exception as error:  # the unpickler raises what it likes on damaged files
        raise CheckpointError(f"{path}: not a whole torch checkpoint ({error}).") from error


def _asked_for(error: pickle.UnpicklingError) -> str:
    """What a file would have had called, where torch's long advice names it."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" (It asks for {named[1]}.)" if named else ""


def read_state_dict(path: str | PathLike[str]) -> dict[str, Tensor]:
    """A state dict from safetensors, `torch.save` or a TorchScript archive, as published files have them.

    A surrounding `state_dict`, `model` or `model_state` is unwrapped, a leading `module.` dropped, half precision made
    float32.

    Raises:
        CheckpointError: the file is damaged, refused, or holds no state dict.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        weights: Any = read_safetensors(path)
    elif _is_torchscript(path):
        weights = torch.jit.load(path, map_location="cpu").state_dict()
    else:
        weights = read_pickle(path)
    if isinstance(weights, dict):
        inner = (weights[name] for name in WRAPPERS if isinstance(weights.get(name), dict))
        weights = next(inner, weights)
    if not (isinstance(weights, dict) and weights and all(isinstance(value, Tensor) for value in weights.values())):
        raise CheckpointError(f"{path}: holds no state dict.")
    return tidy(weights)


def tidy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict in the plain form: no `module.` in front, no half precision, nothing but weights."""
    named = {name.removeprefix("module."): value for name, value in weights.items()}
    half = (torch.float16, torch.bfloat16)
    return {
        name: value.float() if value.dtype in half else value
        for name, value in named.items()
        if name not in OPENAI_EXTRAS
    }


@contextmanager
def replaced_folder(folder: str | PathLike[str]) -> Iterator[Path]:
    """Write into a new folder beside `folder`, which takes its place only when the block has ended well."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = None
    try:
        yield fresh
        for path in fresh.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        fresh.chmod(0o755)  # mkdtemp's is private
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(old / folder.name)
        fresh.rename(folder)
    except BaseException:
        if old is not None and not folder.exists():
            (old / folder.name).rename(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())
