"""Embeddings of a data set in files: bounded memory, and an interrupted run goes on where it stopped.

Each file `000012.safetensors` holds, for every modality `m`:

- `m`, float32 (N, D): the samples' vectors;
- where tokens are wanted, `m.tokens` (T, D'), the real tokens of all N samples one after the other, and `m.offsets`,
  int64 (N + 1), where those of each sample begin; `m.grid` in the file's metadata is their grid, if all lie on one;

and `index`, int64 (N,): the samples' places in the source. `000012.keys.json` beside it holds their names, and
`embeddings.json` says how all were made. `collimate.evaluation.EmbeddingIndex` reads and searches them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from collimate import distributed
from collimate.data import Source
from collimate.data.files import write_atomically
from collimate.data.source import Sample
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.evaluation.features import Features, Model, Precision, encoder_of, extract, modality_of
from collimate.training import Method

PLAN = "embeddings.json"
SAMPLES_PER_FILE = 10_000
SAMPLES_WITH_TOKENS_PER_FILE = 1_000
TokenPrecision = Literal["float32", "float16"]


def write_embeddings(
    model: Model,
    source: Source,
    output: str | PathLike[str],
    modalities: Sequence[str] | None = None,
    projected: bool = True,
    samples_per_file: int | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    identity: Mapping[str, Any] | None = None,
    tokens: bool = False,
    token_precision: TokenPrecision = "float32",
    also: Sequence[str] = (),
) -> int:
    """Embed a source into a folder; files that are there already are kept.

    Args:
        model: a method, or an encoder with its processor.
        source: what to embed.
        output: the folder.
        modalities: what to embed of each sample, which must have it; all of the model's if None (an encoder's
            is what its processor says, or `image`).
        projected: into a method's joint space; otherwise each encoder's own vectors.
        samples_per_file: of each file; so many are held in memory. 10 000, or 1 000 with tokens, if None.
        batch_size, num_workers, device, precision: as for `extract`.
        identity: what else must be the same for earlier files to be kept, such as the names of model and data.
        tokens: the tokens too, as the model gives them, without padding.
        token_precision: of the tokens as they are written.
        also: `captions` or keys of the samples, whose values each file has beside it as JSON (`000012.captions.json`).

    Returns:
        how many samples the folder holds.

    Raises:
        ValueError: the folder holds embeddings of something else, or the model has no tokens.
    """
    folder = Path(output)
    names = list(modalities or (model.modalities if isinstance(model, Method) else [modality_of(model)]))
    models = (
        {"": model} if projected or isinstance(model, Encoder) else {name: encoder_of(model, name) for name in names}
    )
    samples_per_file = samples_per_file or (SAMPLES_WITH_TOKENS_PER_FILE if tokens else SAMPLES_PER_FILE)
    plan = {
        **(identity or {}),
        "model": type(model).__name__,
        "weights": fingerprint(model),
        "samples": len(source),
        "modalities": names,
        "projected": projected,
        "samples_per_file": samples_per_file,
        "precision": precision,
        "tokens": token_precision if tokens else None,
        "also": list(also),
    }
    _refuse_others(folder, plan)
    written = 0
    for number, first in enumerate(range(0, len(source), samples_per_file)):
        path = folder / f"{number:06d}.safetensors"
        if not path.exists():
            part = Part(source, range(first, min(len(source), first + samples_per_file)))
            made = [
                extract(each, part, [name] if name else names, also, tokens, batch_size, num_workers, device, precision)
                for name, each in models.items()
            ]
            if distributed.rank() == 0:
                _write(path, made, first, token_precision if tokens else None)
            distributed.barrier("writing embeddings")
        with safe_open(path, "pt") as file:
            written += file.get_slice("index").get_shape()[0]
    return written


def fingerprint(model: Model) -> str:
    """Of a model's weights: another model under the same name is found out by it."""
    digest = blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Part(Source):
    """Some samples of a source.

    Args:
        source: the whole.
        places: which of its samples, in which order.
    """

    def __init__(self, source: Source, places: Sequence[int]) -> None:
        self.source, self.places = source, places
        whole = len(places) == len(source)
        self.name = source.name if whole or not places else f"{source.name}, {places[0]} to {places[-1]}"

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> Sample:
        return self.source.read(self.places[index])


def _write(path: Path, made: list[Features], first: int, token_precision: TokenPrecision | None) -> None:
    tensors: dict[str, Tensor] = {"index": made[0].index + first}
    metadata = {}
    for name, encoding in ((name, encoding) for each in made for name, encoding in each.encodings.items()):
        tensors[name] = encoding.pooled.contiguous()
        if token_precision is not None:
            tokens, tensors[f"{name}.offsets"] = _ragged(name, encoding)
            tensors[f"{name}.tokens"] = tokens.to(getattr(torch, token_precision))
            if encoding.grid is not None and encoding.mask is None and not encoding.prefix:
                metadata[f"{name}.grid"] = json.dumps(encoding.grid)
    beside = {"keys": made[0].keys, **made[0].extras}
    for name, values in beside.items():
        plain = values.tolist() if isinstance(values, Tensor) else values
        write_atomically(path.with_suffix(f".{name.removesuffix('.json')}.json"), json.dumps(plain).encode())
    write_atomically(path, save(tensors, metadata))  # last: it stands for the whole


def _ragged(name: str, encoding: Encoding) -> tuple[Tensor, Tensor]:
    """The real tokens of all samples one after the other, and where each sample's begin."""
    if encoding.tokens is None:
        raise ValueError(f"The model gives no tokens of {name!r}, so there are none to write.")
    real = encoding.token_mask
    offsets = torch.zeros(len(real) + 1, dtype=torch.int64)
    offsets[1:] = real.sum(1).cumsum(0)
    return encoding.tokens[real].contiguous(), offsets


def _refuse_others(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / PLAN
    begun = path.exists() and any(folder.glob("*.safetensors"))  # a run that failed at once stands in nobody's way
    if begun and (found := json.loads(path.read_text())) != plan:
        differing = sorted(name for name in {*found, *plan} if found.get(name) != plan.get(name))
        raise ValueError(f"{folder} holds other embeddings ({', '.join(differing)} differ): choose another output.")
    folder.mkdir(parents=True, exist_ok=True)
    if distributed.rank() == 0:
        write_atomically(path, json.dumps(plan, indent=1).encode())
