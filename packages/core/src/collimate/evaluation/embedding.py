"""Embeddings of a data set in files: bounded memory, and an interrupted run goes on where it stopped.

Each file `000012.safetensors` holds, for every modality, a float32 tensor (N, D), and `index`, the samples' places in
the source; `000012.keys.json` beside it holds their names. `embeddings.json` says how they were made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from collimate import distributed
from collimate.data import Source
from collimate.data.files import write_atomically
from collimate.data.source import Sample
from collimate.encoders import Encoder
from collimate.evaluation.features import Model, Precision, encoder_of, extract
from collimate.training import Method

PLAN = "embeddings.json"


def write_embeddings(
    model: Model,
    source: Source,
    output: str | PathLike[str],
    modalities: Sequence[str] | None = None,
    projected: bool = True,
    samples_per_file: int = 10_000,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    identity: Mapping[str, Any] | None = None,
) -> int:
    """Embed a source into a folder; files that are there already are kept.

    Args:
        model: a method, or an encoder with its processor.
        source: what to embed.
        output: the folder.
        modalities: what to embed of each sample, which must have it; all of the model's if None (an encoder's is
            called `image`).
        projected: into a method's joint space; otherwise each encoder's own vectors.
        samples_per_file: of each file; so many are held in memory.
        batch_size, num_workers, device, precision: as for `extract`.
        identity: what else must be the same for earlier files to be kept, such as the names of model and data.

    Returns:
        how many samples the folder holds.

    Raises:
        ValueError: the folder holds embeddings of something else.
    """
    folder = Path(output)
    names = list(modalities or (model.modalities if isinstance(model, Method) else ["image"]))
    models = (
        {"": model} if projected or isinstance(model, Encoder) else {name: encoder_of(model, name) for name in names}
    )
    plan = {
        **(identity or {}),
        "model": type(model).__name__,
        "samples": len(source),
        "modalities": names,
        "projected": projected,
        "samples_per_file": samples_per_file,
        "precision": precision,
    }
    _refuse_others(folder, plan)
    written = 0
    for number, first in enumerate(range(0, len(source), samples_per_file)):
        path = folder / f"{number:06d}.safetensors"
        if not path.exists():
            part = _Part(source, first, min(len(source), first + samples_per_file))
            made = [
                extract(each, part, [name] if name else names, (), False, batch_size, num_workers, device, precision)
                for name, each in models.items()
            ]
            if distributed.rank() == 0:
                vectors = {name: encoding.pooled for each in made for name, encoding in each.encodings.items()}
                write_atomically(path.with_suffix(".keys.json"), json.dumps(made[0].keys).encode())
                tensors = {name: value.contiguous() for name, value in vectors.items()}
                write_atomically(path, save({**tensors, "index": made[0].index + first}))
            distributed.barrier("writing embeddings")
        with safe_open(path, "pt") as file:
            written += file.get_slice("index").get_shape()[0]
    return written


class _Part(Source):
    """Some consecutive samples of a source."""

    def __init__(self, source: Source, first: int, last: int) -> None:
        self.source, self.first, self.last = source, first, last
        self.name = f"{source.name}, {first} to {last - 1}"

    def __len__(self) -> int:
        return self.last - self.first

    def read(self, index: int) -> Sample:
        return self.source.read(self.first + index)


def _refuse_others(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / PLAN
    begun = path.exists() and any(folder.glob("*.safetensors"))  # a run that failed at once stands in nobody's way
    if begun and (found := json.loads(path.read_text())) != plan:
        differing = sorted(name for name in {*found, *plan} if found.get(name) != plan.get(name))
        raise ValueError(f"{folder} holds other embeddings ({', '.join(differing)} differ): choose another output.")
    folder.mkdir(parents=True, exist_ok=True)
    if distributed.rank() == 0:
        write_atomically(path, json.dumps(plan, indent=1).encode())
