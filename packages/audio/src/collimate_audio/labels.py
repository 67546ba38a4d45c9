"""Labels of a data set's patches on disk: made once by a tokenizer, read by as many epochs as there are.

A folder holds `labels.json`, which says what made them, and for so many samples a pair of files: `000012.npy`, int16
(n, L), a row for each sample in the source's order, with `UNSCORED` at padding; and `000012.names.npy`, int64 (n,), by
which a sample is known again. A clip of 10 s takes 1 kB. A row is all `UNSCORED` where the sample could not be read.

What is labelled is what a front end makes of each clip when nothing is drawn: its beginning, cut or padded to the front
end's length. So the labels serve an encoder that sees just that. Crops at random places would need labels of their own:
their samples are refused (see `BeatsPretraining`), and a tokenizer in the training is the way.

Shape legend: n samples of a file, L patches of a clip.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int16, Int64
from torch import Tensor

from collimate import distributed
from collimate.checkpoints.files import CheckpointError
from collimate.data import EvalLoader, Sample, Source, class_names, open_source
from collimate.data.files import write_atomically
from collimate.data.source import CorruptSample, Order
from collimate.evaluation.embedding import Part, fingerprint
from collimate.evaluation.features import evaluating, place, progress
from collimate.losses.masked_tokens import UNSCORED
from collimate_audio.pretraining import LABELLED_BY, LABELS, label_key
from collimate_audio.tokenizers import AcousticTokenizer

PLAN = "labels.json"
FORMAT = 1
CLIPS_PER_FILE = 10_000
MOST_CODES = 2**15  # int16


def write_labels(
    tokenizer: AcousticTokenizer,
    data: str | Source,
    output: str | PathLike[str],
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    clips_per_file: int = CLIPS_PER_FILE,
) -> Path:
    """Label every patch of a source; files that are there already are kept, so that an interrupted run goes on.

    All ranks must call it: they share the work.

    Args:
        tokenizer: with its processor, whose front end is the one that an encoder must have.
        data: samples with sound, as `open_source` takes them; labels of a source given as an object can be read only
            by giving it again.
        output: the folder.
        batch_size: clips of each rank that are labelled at a time.
        num_workers: processes that read and decode; 0 reads in this one.
        device: `auto` is the first GPU where there is one, else the CPU.
        clips_per_file: of each file; so many labels are held in memory.

    Returns:
        the folder.

    Raises:
        ValueError: the folder holds labels of something else (says what differs), the tokenizer has no processor, or
            more codes than fit.
    """
    folder, source = Path(output), open_source(data)
    plan = {**labels_plan(tokenizer, source, clips_per_file), "data": data if isinstance(data, str) else source.name}
    refuse_others(folder, plan)
    if distributed.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / PLAN, json.dumps(plan, indent=1).encode())
    where = place(tokenizer, device)
    for number, first in enumerate(range(0, len(source), clips_per_file)):
        path = folder / f"{number:06d}.npy"
        if not path.exists():
            part = Part(source, range(first, min(len(source), first + clips_per_file)))
            rows, names = _labelled(tokenizer, part, batch_size, num_workers, where)
            if distributed.rank() == 0:
                _write(path.with_suffix(".names.npy"), names)
                _write(path, rows)  # last: it stands for both
            distributed.barrier("writing labels")
    return folder


def labels_plan(tokenizer: AcousticTokenizer, source: Source, clips_per_file: int = CLIPS_PER_FILE) -> dict[str, Any]:
    """What must be equal for labels to be the same: front end, tokenizer with its weights, and samples.

    Raises:
        ValueError: the tokenizer has no processor, or more codes than fit.
    """
    processor: Any = tokenizer.processor
    if processor is None:
        raise ValueError("The tokenizer has no processor, so its front end is not known: set `tokenizer.processor`.")
    if tokenizer.codes > MOST_CODES:
        raise ValueError(f"Labels are stored in 16 bits, which hold {MOST_CODES} codes; this has {tokenizer.codes}.")
    return {
        "format": FORMAT,
        "samples": len(source),
        "labelled_by": json.loads(label_key(processor, tokenizer.patch_size, tokenizer.codes)),
        "tokenizer": type(tokenizer).__name__,
        "weights": fingerprint(tokenizer),
        "clips_per_file": clips_per_file,
    }


def refuse_others(folder: Path, plan: dict[str, Any]) -> None:
    """Raises:
    ValueError: the folder holds labels that were made otherwise; says what differs, and what to do.
    """
    begun = (folder / PLAN).exists() and any(folder.glob("*.npy"))  # a run that failed at once stands in nobody's way
    if begun and (found := read_plan(folder)) != plan:
        names = [name for name in {**found, **plan} if found.get(name) != plan.get(name)]
        differing = "; ".join(f"{name}: {found.get(name)} there, {plan.get(name)} now" for name in names)
        raise ValueError(
            f"{folder} holds labels that were made otherwise ({differing}). Choose another output, or remove the "
            "folder if its labels are no longer wanted."
        )


def read_plan(folder: str | PathLike[str]) -> dict[str, Any]:
    """What made the labels of a folder.

    Raises:
        FileNotFoundError: there are none.
        CheckpointError: it cannot be read, or is of a later version.
    """
    path = Path(folder) / PLAN
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no {path}: {folder} holds no labels. `collimate audio tokenize` writes them."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}).") from error
    if plan.get("format", 0) > FORMAT:
        raise CheckpointError(f"{path}: written by a later Collimate: upgrade to read it.")
    return plan


class LabelledSource(Source):
    """A source whose samples bring the labels of their patches: `labels:<folder>` on the command line.

    To each sample are added `patch_labels`, int16 (L,), and `patch_labels_by`, which says for what front end.

    Args:
        folder: that `write_labels` wrote, to its end.
        source: what was labelled; opened as it was then unless given.

    Raises:
        FileNotFoundError: there are no labels, or they are not complete.
        ValueError: the source has not the samples that were labelled.
    """

    def __init__(self, folder: str | PathLike[str], source: Source | None = None) -> None:
        self.folder, self.plan = Path(folder), read_plan(folder)
        self.source = open_source(self.plan["data"]) if source is None else source
        self.name = f"{self.source.name}, labelled in {folder}"
        self.labelled_by = json.dumps(self.plan["labelled_by"], sort_keys=True)
        if len(self.source) != self.plan["samples"]:
            raise ValueError(
                f"{folder} has labels of {self.plan['samples']} samples, {self.source.name} has {len(self.source)}: "
                "the data have changed since. Label them anew, into another folder."
            )
        files = range(0, len(self.source), self.plan["clips_per_file"])
        if missing := sum(not self._file(number).exists() for number in range(len(files))):
            raise FileNotFoundError(
                f"{folder} lacks {missing} of {len(files)} files of labels: the labelling was interrupted. Run it "
                "again with the same arguments, and it goes on."
            )

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        sample = self.source.read(index)
        number, row = divmod(index, self.plan["clips_per_file"])
        path = self._file(number)
        if _name_number(sample) != int(_mapped(path.with_suffix(".names.npy"))[row]):
            raise ValueError(
                f"{self.folder}: the sample {index} of {self.source.name} is now {sample['__key__']!r}, and was "
                "another when it was labelled: the data have changed since. Label them anew, into another folder."
            )
        labels: Int16[Tensor, " L"] = torch.from_numpy(_mapped(path)[row].copy())
        if bool((labels == UNSCORED).all()):
            raise CorruptSample(f"{self.source.name}: {sample['__key__']}", "no labels", "it could not be read then")
        return {**sample, LABELS: labels, LABELLED_BY: self.labelled_by}

    def peek(self, index: int, keys: Sequence[str]) -> Sample:
        return super().peek(index, keys) if {LABELS, LABELLED_BY} & set(keys) else self.source.peek(index, keys)

    def order(self, seed: int, epoch: int) -> Order:
        return self.source.order(seed, epoch)

    @property
    def class_names(self) -> list[str] | None:
        return class_names(self.source)

    @property
    def size_of(self) -> Callable[[int], float]:
        """Where the source knows how long its samples are; batches are sorted by it."""
        return self.source.size_of  # type: ignore[attr-defined]

    @property
    def is_remote(self) -> bool:
        return getattr(self.source, "is_remote", False)

    @property
    def shuffle_window(self) -> int:
        return getattr(self.source, "shuffle_window", 0)

    def prefetch(self, indices: Sequence[int]) -> None:
        self.source.prefetch(indices)  # type: ignore[attr-defined]

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npy"


def read_labels(folder: str | PathLike[str]) -> Int64[Tensor, "N L"]:
    """The labels of all samples of a folder, in the source's order."""
    plan, folder = read_plan(folder), Path(folder)
    files = range(-(-plan["samples"] // plan["clips_per_file"]))
    return torch.cat([torch.from_numpy(np.load(folder / f"{number:06d}.npy")).long() for number in files])


def open_labelled(folder: str) -> LabelledSource:
    """What `labels:<folder>` names."""
    return LabelledSource(folder)


@torch.inference_mode()
def _labelled(
    tokenizer: AcousticTokenizer, source: Source, batch_size: int, num_workers: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """The labels of a source, and the numbers of its samples' names."""
    processor: Any = tokenizer.processor
    loader = EvalLoader(source, {"audio": processor}, batch_size, num_workers)
    places, labels, names = [], [], []
    with evaluating(tokenizer):
        for batch in progress(loader, f"Labelling {source.name}"):
            sounds = batch["audio"].to(device)
            found = tokenizer.labels(processor.finish(sounds), processor.mask(sounds)).cpu()
            valid = batch["valid"]
            places.append(batch["index"][valid])
            labels.append(found[valid])
            names += [_number(key) for key, real in zip(batch["key"], valid.tolist(), strict=True) if real]
    index = torch.cat(places).to(device)
    mine = torch.cat(labels), torch.tensor(names, dtype=torch.int64)
    found, numbers = (distributed.gather_ordered(rows.to(device), index).cpu() for rows in mine)
    index = distributed.gather_ordered(index, index).cpu()
    rows = np.full((len(source), found.shape[1]), UNSCORED, np.int16)
    rows[index], every = found, np.zeros(len(source), np.int64)
    every[index] = numbers
    return rows, every


def _write(path: Path, array: np.ndarray) -> None:
    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    write_atomically(path, file.getvalue())


@lru_cache(maxsize=256)
def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _name_number(sample: Sample) -> int:
    return _number(sample["__key__"])


def _number(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little", signed=True)
